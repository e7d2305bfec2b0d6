// The tile kernels for no particular instruction set: SSE2 on x86, NEON on ARM.

#define CUTWORK_ISA generic
#define TOKENS_1 4
#define TOKENS_2 2
#define TOKENS_4 1
#define ROWS_1 2
#define ROWS_2 1
#include "tiles.inc"

extern const Kernels GENERIC_KERNELS = {"generic", generic::forward, generic::input_gradient, generic::weight_gradient};
