// The convolution kernels for no particular instruction set: SSE2 on x86, NEON on ARM.

#define CUTWORK_ISA conv_generic
#define LANES 4
#define PIXELS_1 8
#define PIXELS_2 4
#define OUTPUTS_3 4
#define ROWS_1 8
#define ROWS_2 4
#include "conv.inc"

extern const ConvKernels GENERIC_CONV = {"generic", conv_generic::forward, conv_generic::input_gradient,
                                       conv_generic::weight_gradient};
