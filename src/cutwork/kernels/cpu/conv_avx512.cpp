// The convolution kernels for AVX-512 F, BW, DQ and VL.

#define CUTWORK_ISA conv_avx512
#define LANES 16
#define PIXELS_1 16
#define PIXELS_2 14
#define OUTPUTS_3 8
#define ROWS_1 16
#define ROWS_2 12
#include "conv.inc"

extern const ConvKernels AVX512_CONV = {"avx512", conv_avx512::forward, conv_avx512::input_gradient,
                                       conv_avx512::weight_gradient};
