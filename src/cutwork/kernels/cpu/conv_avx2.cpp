// The convolution kernels for AVX2 and FMA.

#define CUTWORK_ISA conv_avx2
#define LANES 8
#define PIXELS_1 12
#define PIXELS_2 6
#define OUTPUTS_3 4
#define ROWS_1 12
#define ROWS_2 6
#include "conv.inc"

extern const ConvKernels AVX2_CONV = {"avx2", conv_avx2::forward, conv_avx2::input_gradient,
                                       conv_avx2::weight_gradient};
