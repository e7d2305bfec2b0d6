// The tile kernels for AVX-512 F, BW, DQ and VL.

#define CUTWORK_ISA avx512
#define LANES 16
#define TOKENS_1 16
#define TOKENS_2 12
#define TOKENS_4 6
#define ROWS_1 16
#define ROWS_2 8
#include "tiles.inc"

extern const Kernels AVX512_KERNELS = {"avx512", avx512::forward, avx512::input_gradient, avx512::weight_gradient};
