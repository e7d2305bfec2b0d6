// The products with a compressed weight in float32, compiled once for each instruction set.

#include "linear/forward.h"
#include "linear/input_gradient.h"
#include "linear/weight_gradient.h"

namespace CUTWORK_ISA {

extern const LinearKernels LINEAR = {linear::forward, linear::input_gradient, linear::weight_gradient};

}  // namespace CUTWORK_ISA
