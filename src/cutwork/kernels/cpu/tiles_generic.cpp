// The tile kernels for no particular instruction set: SSE2 on x86, NEON on ARM.

#define CUTWORK_ISA generic
#define LANES 4
#define TOKENS_1 8
#define TOKENS_2 4
#define TOKENS_4 0
#define ROWS_1 8
#define ROWS_2 4
#include "tiles.inc"

extern const Kernels GENERIC_KERNELS = {"generic", generic::forward, generic::input_gradient, generic::weight_gradient};
