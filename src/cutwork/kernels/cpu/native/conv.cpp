// The convolutions with a compressed weight in float32, compiled once for each instruction set.

#include "conv/forward.h"
#include "conv/input_gradient.h"
#include "conv/weight_gradient.h"

namespace CUTWORK_ISA {

extern const ConvKernels CONV = {conv::forward, conv::input_gradient, conv::weight_gradient};

}  // namespace CUTWORK_ISA
