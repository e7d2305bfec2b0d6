// The convolution kernels for no particular instruction set: SSE2 on x86, NEON on ARM.

#define CUTWORK_ISA conv_generic
#define PIXELS_1 4, 2
#define PIXELS_2 2, 1
#define TILES_AT_ONCE 1
#define ROWS_1 2
#define ROWS_2 1
#include "conv.inc"

extern const ConvKernels GENERIC_CONV = {"generic", conv_generic::forward, conv_generic::input_gradient,
                                       conv_generic::weight_gradient};
