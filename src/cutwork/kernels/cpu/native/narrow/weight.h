// The weight in bfloat16 or int8, and what a call works out of it before it multiplies.
//
// All kernels here multiply words, see `words.h`. In the product with x a word holds a step.

#pragma once

#include "../panels.h"
#include "../words.h"

namespace CUTWORK_ISA::narrow {

struct Bf16 {
    typedef uint16_t Column;  // what a column of a panel is made of
    typedef Vec Sum;
    static constexpr int64_t K = BF16_STEP;  // numbers in a word
};

struct Int8 {
    typedef uint32_t Column;
    typedef Ints Sum;
    static constexpr int64_t K = INT8_STEP;
};

inline Vec numbers(const float* from) { return load<Vec>(from); }
inline Vec numbers(const uint16_t* from) { return widened(load<Halves>(from)); }
inline Vec numbers(const float* from, int64_t lanes) { return load_part<Vec>(from, lanes); }
inline Vec numbers(const uint16_t* from, int64_t lanes) { return widened(load_part<Halves>(from, lanes)); }

inline void put(float* to, Vec v, int64_t lanes) { store_part(to, v, lanes); }
inline void put(uint16_t* to, Vec v, int64_t lanes) { store_part(to, narrowed(v), lanes); }

inline bool is_aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 64 == 0; }

using CUTWORK_ISA::activated;

// The activation of both bfloat16 numbers of each word.
inline Words activated(Activation kind, Words both) {
    return paired(narrowed(activated(kind, first_of(both))), narrowed(activated(kind, second_of(both))));
}

// What a call of a forward kernel is given beside the weight. T is what x and y are made of.
template <class T>
struct Call {
    const T* x;
    const float *bias, *scales;
    const T* residual;
    T* y;
    int64_t tokens;
    Activation before, after;
    int threads;
};

// The kept inputs of a group, one after the other.
struct Inputs {
    Inputs(const Weight& w, int64_t group) : w(w), unit(w.ptr[group]), end(w.ptr[group + 1]) {}
    bool more() const { return unit < end; }
    int64_t next() {
        const int64_t input = w.col[unit] + offset;
        if (++offset == w.columns) offset = 0, ++unit;
        return input;
    }
    const Weight& w;
    int64_t unit, end, offset = 0;
};

// What a call works out of the weight before it multiplies. Place p belongs to output order[p]; beyond the last output
// places are zero, up to a few vectors.
struct Places {
    Places(const Weight& w, int64_t size, const float* given_bias, const float* given_scales)
        : count(rounded_up(w.groups * w.rows, LANES) + 4 * LANES), first_step(w.groups + 1), bias(count), scales(count),
          sums(count) {
        first_step.data[0] = 0;
        for (int64_t group = 0; group < w.groups; ++group) {
            const int64_t steps = num_steps(w, group, size);
            first_step.data[group + 1] = first_step.data[group] + steps;
            most_steps = most(most_steps, steps);
        }
        for (int64_t p = 0; p < count; ++p) {
            const int64_t o = p >= w.outputs ? -1 : w.order ? w.order[p] : p;
            bias.data[p] = o < 0 || !given_bias ? 0 : given_bias[o];
            scales.data[p] = o < 0 || !given_scales ? 0 : given_scales[o];
            sums.data[p] = 0;
        }
    }
    int64_t steps(int64_t group) const { return first_step.data[group + 1] - first_step.data[group]; }

    int64_t count, most_steps = 0;
    Memory<int64_t> first_step;
    Memory<float> bias, scales;
    Memory<int32_t> sums;  // of the int8 weights of an output
};

// The bfloat16 values of a group as they are, [units * columns, rows]: two columns make a step. One that is missing is
// zero.
struct AsStored {
    const uint16_t* at;
    int64_t stride, lanes, kept;

    template <int N, bool PART>
    inline void read(int64_t step, Words (&v)[N]) const {
        const uint16_t* from = at + 2 * step * stride;
        const bool both = 2 * step + 1 < kept;
        for (int n = 0; n < N; ++n, from += LANES) {
            const Halves first = PART ? load_part<Halves>(from, lanes) : load<Halves>(from);
            Halves second = {};
            if (both) second = PART ? load_part<Halves>(from + stride, lanes) : load<Halves>(from + stride);
            v[n] = paired(first, second);
        }
    }
};

// The values of a group as words: [steps, rows].
inline void lay_out(const Weight& w, int64_t group, uint32_t* to) {
    const uint16_t* values = values_at<uint16_t>(w, w.ptr[group]);
    const int64_t kept = (w.ptr[group + 1] - w.ptr[group]) * w.columns;
    for (int64_t step = 0; 2 * step < kept; ++step, to += w.rows) {
        Words v[1];
        int64_t o = 0;
        for (; o + LANES <= w.rows; o += LANES) {
            AsStored{values + o, w.rows, LANES, kept}.template read<1, false>(step, v);
            store(to + o, v[0]);
        }
        if (o < w.rows) {
            AsStored{values + o, w.rows, w.rows - o, kept}.template read<1, true>(step, v);
            store_part(to + o, v[0], w.rows - o);
        }
    }
}

// The sums of the weights of each output of a group.
inline void add_up(const uint32_t* words, int64_t steps, int64_t rows, int32_t* sums) {
    for (int64_t o = 0; o < rows; o += LANES) {
        const int64_t lanes = least(LANES, rows - o);
        Ints sum = {};
        for (int64_t step = 0; step < steps; ++step)
            sum = dot(sum, splat(0x01010101u), load_part<Words>(words + step * rows + o, lanes));
        store_part(sums + o, sum, lanes);
    }
}

}  // namespace CUTWORK_ISA::narrow
