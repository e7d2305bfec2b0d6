// The products with a compressed weight in numbers narrower than float32. The form of the weight is that of `tiles.h`;
// bfloat16 numbers are handed over as their bits. Sums are float32 for bfloat16 and int32, exact, for int8.
// Legend: M tokens, I inputs, O outputs.

#pragma once

#include "tiles.h"

#include <cstdint>

struct NarrowWeight {
    const void *values;    // bfloat16: [units, bi, bo]; int8: [steps, bo, 4], see `int8_forward`
    const int32_t *ptr;    // [groups + 1]: where the units of each group begin
    const int32_t *col;    // [units]: the first input of each
    const int32_t *order;  // [outputs]: which output stands at each place, or null for the natural order
    int64_t outputs, inputs, groups, bo, bi;
};

struct NarrowKernels {
    const char *isa;
    // y[M, O] = after(before(x[M, I]) W^T + bias) + residual; bias and residual may be null
    void (*bf16_forward)(const NarrowWeight &, const uint16_t *x, const float *bias, const uint16_t *residual,
                         uint16_t *y, int64_t tokens, Activation before, Activation after, int threads);
    // dx[M, I] = dy[M, O] W
    void (*bf16_input_gradient)(const NarrowWeight &, const uint16_t *dy, uint16_t *dx, int64_t tokens, int threads);
    // dvalues = dy^T x where W keeps something; the order of the sum is the same for any number of threads
    void (*bf16_weight_gradient)(const NarrowWeight &, const uint16_t *x, const uint16_t *dy, uint16_t *dvalues,
                                 int64_t tokens, int threads);
    // y[M, O] = after(x[M, I] W^T + bias). A step is four kept inputs of a group, in the order of its units and their
    // columns; the last of a group is filled with zeros. `scales` turn the int8 numbers of each output into its weight.
    // Each row of x is cut into 255 parts between the least and the greatest number in it, zero included.
    void (*int8_forward)(const NarrowWeight &, const float *scales, const float *x, const float *bias, float *y,
                         int64_t tokens, Activation after, int threads);
    void (*int8_forward_bf16)(const NarrowWeight &, const float *scales, const uint16_t *x, const float *bias,
                              uint16_t *y, int64_t tokens, Activation after, int threads);
};

extern const NarrowKernels GENERIC_NARROW, AVX2_NARROW, AVX512_NARROW, AVX512_VNNI_NARROW, AVX512_BF16_NARROW;
