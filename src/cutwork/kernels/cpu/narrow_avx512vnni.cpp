// The narrow kernels for AVX-512 with VNNI, which multiplies int8.

#define CUTWORK_ISA avx512vnni_narrow
#define LANES 16
#define OUTPUTS_AT_ONCE 8
#include "narrow.inc"

extern const NarrowKernels AVX512_VNNI_NARROW = {
    "avx512vnni",
    avx512vnni_narrow::bf16_forward,
    avx512vnni_narrow::bf16_input_gradient,
    avx512vnni_narrow::bf16_weight_gradient,
    avx512vnni_narrow::int8_forward,
    avx512vnni_narrow::int8_forward_bf16,
};
