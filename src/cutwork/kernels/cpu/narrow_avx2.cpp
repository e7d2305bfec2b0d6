// The narrow kernels for AVX2 and FMA.

#define CUTWORK_ISA avx2_narrow
#define LANES 8
#define OUTPUTS_AT_ONCE 4
#include "narrow.inc"

extern const NarrowKernels AVX2_NARROW = {
    "avx2",
    avx2_narrow::bf16_forward,
    avx2_narrow::bf16_input_gradient,
    avx2_narrow::bf16_weight_gradient,
    avx2_narrow::int8_forward,
    avx2_narrow::int8_forward_bf16,
};
