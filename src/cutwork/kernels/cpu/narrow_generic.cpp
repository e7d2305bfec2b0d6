// The narrow kernels for no particular instruction set: SSE2 on x86, NEON on ARM.

#define CUTWORK_ISA generic_narrow
#define LANES 16
#define TOKENS_1 4
#define TOKENS_2 2
#define TOKENS_4 1
#include "narrow.inc"

extern const NarrowKernels GENERIC_NARROW = {
    "generic",
    generic_narrow::bf16_forward,
    generic_narrow::bf16_input_gradient,
    generic_narrow::bf16_weight_gradient,
    generic_narrow::int8_forward,
    generic_narrow::int8_forward_bf16,
};
