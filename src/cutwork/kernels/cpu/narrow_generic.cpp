// The narrow kernels for no particular instruction set: SSE2 on x86, NEON on ARM.

#define CUTWORK_ISA generic_narrow
#define LANES 4
#define OUTPUTS_AT_ONCE 4
#include "narrow.inc"

extern const NarrowKernels GENERIC_NARROW = {
    "generic",
    generic_narrow::bf16_forward,
    generic_narrow::bf16_input_gradient,
    generic_narrow::bf16_weight_gradient,
    generic_narrow::int8_forward,
    generic_narrow::int8_forward_bf16,
};
