// What a compressed weight is to the kernels, and the kernels that every instruction set offers.
//
// The outputs of a layer are cut into groups of `bo`; the last may hang over. A group keeps units: runs of `bi` inputs
// that start at `col`, the last of which may hang over too. The values of a unit lie input by input, `bo` outputs side
// by side; what hangs over is zero. Legend: M tokens, I inputs, O outputs.

#pragma once

#include <cstdint>

struct Weight {
    const float *values;   // [units, bi, bo]
    const int32_t *ptr;    // [groups + 1]: where the units of each group begin
    const int32_t *col;    // [units]: the first input of each, ascending in a group
    const int32_t *order;  // [outputs]: which output stands at each place; null where each stands at its own
    int64_t outputs, inputs, groups, bo, bi;
};

// In the order of the names in ops/activations.py.
enum Activation : int { NONE, RELU, GELU, GELU_TANH, SILU };

// Results do not depend on the number of threads.
struct Kernels {
    const char *isa;
    // y[M, O] = after(before(x[M, I]) W^T + bias) + residual[M, O]; bias and residual may be null
    void (*forward)(const Weight &, const float *x, const float *bias, const float *residual, float *y, int64_t tokens,
                    Activation before, Activation after, int threads);
    // dx[M, I] = dy[M, O] W, times the derivative of `before` at x
    void (*input_gradient)(const Weight &, const float *dy, const float *x, float *dx, int64_t tokens,
                           Activation before, int threads);
    // dvalues = dy^T before(x) where W keeps something
    void (*weight_gradient)(const Weight &, const float *x, const float *dy, float *dvalues, int64_t tokens,
                            Activation before, int threads);
};

extern const Kernels GENERIC_KERNELS, AVX2_KERNELS, AVX512_KERNELS;
