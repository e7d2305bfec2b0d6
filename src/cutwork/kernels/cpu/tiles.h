// What a compressed weight is to the kernels, and the kernels that every instruction set offers.
//
// The outputs of a layer are cut into groups of `bo`; the last may hang over. A group keeps units: runs of `bi` inputs
// that start at `col`, the last of which may hang over too. The values of a unit lie input by input, `bo` outputs side
// by side; what hangs over is zero. Legend: M tokens, I inputs, O outputs.

#pragma once

#include <cstdint>

struct Weight {
    const float *values;  // [units, bi, bo]
    const int32_t *ptr;   // [groups + 1]: where the units of each group begin
    const int32_t *col;   // [units]: the first input of each
    int64_t outputs, inputs, groups, bo, bi;
};

struct Kernels {
    const char *isa;
    // y[M, O] = x[M, I] W^T + bias
    void (*forward)(const Weight &, const float *x, const float *bias, float *y, int64_t tokens, int threads);
    // dx[M, I] = dy[M, O] W
    void (*input_gradient)(const Weight &, const float *dy, float *dx, int64_t tokens, int threads);
    // dvalues = dy^T x where W keeps something; the order of the sum is the same for any number of threads
    void (*weight_gradient)(const Weight &, const float *x, const float *dy, float *dvalues, int64_t tokens,
                            int threads);
};

extern const Kernels GENERIC_KERNELS, AVX2_KERNELS, AVX512_KERNELS;
