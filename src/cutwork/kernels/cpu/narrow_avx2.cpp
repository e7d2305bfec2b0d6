// The narrow kernels for AVX2 and FMA.

#define CUTWORK_ISA avx2_narrow
#define LANES 16
#define TOKENS_1 6
#define TOKENS_2 3
#define TOKENS_4 1
#include "narrow.inc"

extern const NarrowKernels AVX2_NARROW = {
    "avx2",
    avx2_narrow::bf16_forward,
    avx2_narrow::bf16_input_gradient,
    avx2_narrow::bf16_weight_gradient,
    avx2_narrow::int8_forward,
    avx2_narrow::int8_forward_bf16,
};
