// The tile kernels for AVX2 and FMA.

#define CUTWORK_ISA avx2
#define LANES 8
#define TOKENS_1 12
#define TOKENS_2 6
#define TOKENS_4 0
#define ROWS_1 12
#define ROWS_2 6
#include "tiles.inc"

extern const Kernels AVX2_KERNELS = {"avx2", avx2::forward, avx2::input_gradient, avx2::weight_gradient};
