// The convolution kernels for AVX2 and FMA.

#define CUTWORK_ISA conv_avx2
#define PIXELS_1 6, 5, 4, 3, 2
#define PIXELS_2 3, 2
#define TILES_AT_ONCE 1
#define ROWS_1 4
#define ROWS_2 2
#include "conv.inc"

extern const ConvKernels AVX2_CONV = {"avx2", conv_avx2::forward, conv_avx2::input_gradient,
                                       conv_avx2::weight_gradient};
