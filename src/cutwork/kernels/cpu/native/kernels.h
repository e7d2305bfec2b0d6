// What a compressed weight is to the kernels, and the kernels that an instruction set offers.
//
// One vocabulary, here as in Python. A weight is a matrix of outputs by inputs. Its outputs are cut into groups of
// `rows`; the last may hang over. A group keeps units: runs of `columns` inputs that start at `col`, the last of which
// may hang over too. The values of a unit lie input by input, `rows` outputs side by side; what hangs over is zero.
// A place is where an output stands among the rows of all groups. Legend: M tokens, I inputs, O outputs.

#pragma once

#include <cstdint>

struct Weight {
    const void *values;    // float or bfloat16: [units, columns, rows]; int8: [steps, rows, INT8_STEP]
    const int32_t *ptr;    // [groups + 1]: where the units of each group begin
    const int32_t *col;    // [units]: the first input of each, ascending in a group
    const int32_t *order;  // [outputs]: which output stands at each place; null where each stands at its own
    int64_t outputs, inputs, groups, rows, columns;
};

// A step is as many kept inputs of a group, in the order of its units and their columns, as one word of 32 bits holds;
// the last of a group is filled with zeros.
constexpr int64_t BF16_STEP = 2, INT8_STEP = 4;

// How many steps of `size` inputs a group has. Static, because of an inline function the linker keeps one copy for all
// files, and that could be one that this CPU cannot run.
[[maybe_unused]] static int64_t num_steps(const Weight &w, int64_t group, int64_t size) {
    return ((w.ptr[group + 1] - w.ptr[group]) * w.columns + size - 1) / size;
}

// How many all groups have.
[[maybe_unused]] static int64_t num_steps(const Weight &w, int64_t size) {
    int64_t steps = 0;
    for (int64_t group = 0; group < w.groups; ++group) steps += num_steps(w, group, size);
    return steps;
}

// Images lie in memory pixel by pixel, the channels of each side by side. The inputs of a convolution's weight are
// ordered (kernel row, kernel column, channel).
struct Axis {
    int64_t size, out, kernel, stride, padding, dilation;
};

// A stride beyond the image and its margins has the results of one as long as they are. It is cut to that, because
// kernels sort the places of a stride one by one.
[[maybe_unused]] static Axis axis_of(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    const int64_t places = size + 2 * padding, room = places - dilation * (kernel - 1) - 1;
    return {size, room < 0 ? 0 : room / stride + 1, kernel, stride < places ? stride : places, padding, dilation};
}

struct Conv {
    Weight weight;
    Axis down, across;
    int64_t images, channels;
    int64_t channel_groups;  // of channels and outputs that do not see each other; no group of rows straddles two
};

// In the order of the names in ops/activations.py.
enum Activation : int { NONE, RELU, GELU, GELU_TANH, SILU };

// Of all kernels the results do not depend on the number of threads.

// In float32.
struct LinearKernels {
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

// In float32.
struct ConvKernels {
    // y = after(conv(x) + bias); bias may be null
    void (*forward)(const Conv &, const float *x, const float *bias, float *y, Activation after, int threads);
    void (*input_gradient)(const Conv &, const float *dy, float *dx, int threads);
    void (*weight_gradient)(const Conv &, const float *x, const float *dy, float *dvalues, int threads);
};

// A batch norm of x[rows, channels]: z = x * scale + shift.
struct Norm {
    const float *scale, *shift;  // [channels]
    int64_t rows, channels;
};

// In float32.
struct NormKernels {
    // the mean and the variance of each channel; at least one row
    void (*moments)(const float *x, float *mean, float *var, int64_t rows, int64_t channels, int threads);
    // y = after(z + residual); residual may be null
    void (*forward)(const Norm &, const float *x, const float *residual, float *y, Activation after, int threads);
    // for each channel the sums of dz and of dz * (x - mean), where dz is dy times the derivative of `after`. Without y
    // that is taken at z; with y, which a residual asks for, at y, so `after` must be NONE or RELU.
    void (*gradient_sums)(const Norm &, const float *dy, const float *x, const float *y, const float *mean,
                          double *of_dz, double *of_products, Activation after, int threads);
    // dx = dz * scale + (x - mean) * slope + offset, and dresidual = dz, which may be null
    void (*input_gradient)(const Norm &, const float *dy, const float *x, const float *y, const float *mean,
                           const float *slope, const float *offset, float *dx, float *dresidual, Activation after,
                           int threads);
};

// From scores[outputs, inputs] in float32, none of them nan, to a mask of the same shape, a byte for each entry.
struct SelectionKernels {
    // the `count` largest of all, at least one; of equal ones the first
    void (*largest)(const float *scores, uint8_t *mask, int64_t size, int64_t count, int threads);
    // the `count` best runs, at least one, of the entries of `rows` rows that are `allowed`, a byte for each: the first
    // of a row takes its `columns` largest, the next one those after, the last may have fewer; a run is as good as its
    // mean, summed from the largest on, and no better than one before it in its row; of equal ones the first
    void (*runs)(const float *scores, const uint8_t *allowed, uint8_t *mask, int64_t rows, int64_t width,
                 int64_t columns, int64_t count, int threads);
    // of every `m` neighbours, `count` times, the `n` largest; of equal ones the first
    void (*groups)(const float *scores, uint8_t *mask, int64_t count, int64_t n, int64_t m, int threads);
    // in every 4x4 tile the best choice of `n` in each row and column; of equal ones the first in row-major order
    void (*best_tiles)(const float *scores, uint8_t *mask, int64_t outputs, int64_t inputs, int64_t n, int threads);
    // in every 4x4 tile entries by descending score while there is room, up to `n` in each row and column
    void (*greedy_tiles)(const float *scores, uint8_t *mask, int64_t outputs, int64_t inputs, int64_t n, int threads);
};

// In numbers narrower than float32: bfloat16, handed over as their bits, with sums in float32; and int8, with sums in
// int32, which are exact.
struct NarrowKernels {
    // y[M, O] = after(before(x[M, I]) W^T + bias) + residual[M, O]; bias and residual may be null
    void (*forward)(const Weight &, const uint16_t *x, const float *bias, const uint16_t *residual, uint16_t *y,
                    int64_t tokens, Activation before, Activation after, int threads);
    // dx[M, I] = dy[M, O] W
    void (*input_gradient)(const Weight &, const uint16_t *dy, uint16_t *dx, int64_t tokens, int threads);
    // dvalues = dy^T x where W keeps something
    void (*weight_gradient)(const Weight &, const uint16_t *x, const uint16_t *dy, uint16_t *dvalues, int64_t tokens,
                            int threads);
    // y[M, O] = after(x[M, I] W^T + bias). `scales` turn the int8 numbers of each output into its weight. Each row of x
    // is cut into 255 parts between the least and the greatest number in it, zero included.
    void (*int8_forward)(const Weight &, const float *scales, const float *x, const float *bias, float *y,
                         int64_t tokens, Activation after, int threads);
    void (*int8_forward_bf16)(const Weight &, const float *scales, const uint16_t *x, const float *bias, uint16_t *y,
                              int64_t tokens, Activation after, int threads);
};

// Groups of rows whose bits agree; where the bits of a mask say which weights are kept, such rows can share them.
struct GroupingKernels {
    // order[rows]: a group begins at the first row that is left, and takes again and again the row whose overlap with
    // all it has, times its scale, is largest; of equal ones the first. bits[rows, words]; the overlap with each row
    // of a group counts as many times as that row's scale. The last group may have fewer than `size` rows.
    void (*group)(const uint64_t *bits, const int64_t *scale, int64_t rows, int64_t words, int64_t size,
                  int64_t *order, int threads);
    // sets in bits[outputs, bytes], the highest of a byte first, those of the `chosen` values, a byte for each; units have
    // one column
    void (*mark)(const Weight &, const uint8_t *chosen, uint8_t *bits, int64_t bytes, int threads);
    // means[groups, width] of each run of `size` rows in an order, summed in that order; the last may be shorter
    void (*means)(const float *scores, const int32_t *order, float *means, int64_t rows, int64_t width, int64_t size,
                  int threads);
    // the same means of scores that only the values of units of one column have: -inf where no row of a group has one,
    // and where others have, what has none counts as `least`
    void (*means_of_kept)(const Weight &, float least, const int32_t *order, float *means, int64_t size, int threads);
};
