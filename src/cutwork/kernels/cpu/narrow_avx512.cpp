// The narrow kernels for AVX-512 F, BW, DQ and VL.

#define CUTWORK_ISA avx512_narrow
#define LANES 16
#define OUTPUTS_AT_ONCE 8
#include "narrow.inc"

extern const NarrowKernels AVX512_NARROW = {
    "avx512",
    avx512_narrow::bf16_forward,
    avx512_narrow::bf16_input_gradient,
    avx512_narrow::bf16_weight_gradient,
    avx512_narrow::int8_forward,
    avx512_narrow::int8_forward_bf16,
};
