// The tile kernels for AVX2 and FMA.

#define CUTWORK_ISA avx2
#define TOKENS_1 6
#define TOKENS_2 3
#define TOKENS_4 1
#define ROWS_1 4
#define ROWS_2 2
#include "tiles.inc"

extern const Kernels AVX2_KERNELS = {"avx2", avx2::forward, avx2::input_gradient, avx2::weight_gradient};
