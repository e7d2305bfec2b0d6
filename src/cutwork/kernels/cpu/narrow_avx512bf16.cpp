// The narrow kernels for AVX-512 with VNNI and BF16, which multiplies bfloat16.

#define CUTWORK_ISA avx512bf16_narrow
#define LANES 16
#define OUTPUTS_AT_ONCE 8
#include "narrow.inc"

extern const NarrowKernels AVX512_BF16_NARROW = {
    "avx512bf16",
    avx512bf16_narrow::bf16_forward,
    avx512bf16_narrow::bf16_input_gradient,
    avx512bf16_narrow::bf16_weight_gradient,
    avx512bf16_narrow::int8_forward,
    avx512bf16_narrow::int8_forward_bf16,
};
