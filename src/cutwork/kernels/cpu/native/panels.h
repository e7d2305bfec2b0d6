// What products read: rows where they lie, copies of them, or panels, which are rows turned so that those of one column
// lie side by side; and sharing work out.

#pragma once

#include "activations.h"

namespace CUTWORK_ISA {

// Floats in a cache line.
constexpr int64_t LINE = 16;
// What random access to a panel may take of the cache that each core has to itself: most of 1 MiB.
constexpr int64_t PANEL_BYTES = 900 << 10;
// A result of so many bytes does not stay in a cache until it is read.
constexpr int64_t STREAMED_BYTES = 512 << 10;
// Up to so many tokens are read where they lie, while the values pass once.
constexpr int64_t FEW_TOKENS = 8;
// Tokens over which the gradient of the values is summed before it goes back to memory.
constexpr int64_t CHUNK = 64;

// A unit of so many inputs is read where it lies, a cache line of each token. Shorter ones would fetch a line for a few
// numbers; their inputs are turned into a panel first.
constexpr int64_t RUN = LINE;
// So many rows at a time: as many addresses as there are registers for, and lines as lie in one set of a cache.
constexpr int WAYS = 12;

// Whether rows so wide all fall into one set of the first cache, so that each drives out the others.
inline bool collide(int64_t width) { return width * sizeof(float) % 4096 == 0; }

// Brings what will be read next into the second cache, a little at a time, since of much at once the CPU forgets most;
// and no more than leaves room for what is read now.
struct Fetch {
    static constexpr int64_t ROOM = 64 << 10;  // floats
    const float *at, *end;
    const float *later, *later_end;  // what is fetched then
    int64_t step;                    // floats at each of some steps

    Fetch(const float* from, int64_t count, int64_t steps)
        : at(from), end(from ? from + clamped(count, ROOM) : nullptr), later(end), later_end(end),
          step(most(count, 0) / most(1, steps) + 1) {}
    Fetch(const Fetch& first, const Fetch& second)
        : at(first.at), end(first.end), later(second.at), later_end(second.end), step(first.step + second.step) {}
    inline void go(int64_t steps) {
        for (const float* stop = at + least(steps * step, end - at); at < stop; at += LINE)
            __builtin_prefetch(at, 0, 2);
        if (at >= end) at = later, end = later = later_end;
    }
};

// The first `inside` lanes from memory, zero beyond.
inline Vec some_lanes(const float* from, int64_t inside) {
    if (inside >= LANES) return load<Vec>(from);
    float lanes[LANES] = {};
    std::memcpy(lanes, from, sizeof(float) * inside);
    return load<Vec>(lanes);
}

// LANES rows and columns of matrix[rows, width], turned: what lies outside is zero.
inline void load_turned(const float* from, int64_t width, int64_t rows, int64_t columns, Vec (&block)[LANES]) {
    if (rows >= LANES && columns >= LANES) {
        for (int t = 0; t < LANES; ++t) block[t] = load<Vec>(from + t * width);
    } else {
        for (int64_t t = 0; t < LANES; ++t) {
            float row[LANES] = {};
            if (t < rows) std::memcpy(row, from + t * width, sizeof(float) * clamped(columns, LANES));
            block[t] = load<Vec>(row);
        }
    }
    transpose(block);
}

// Rows [first, first + count) of matrix[., width], columns [begin, end) and up to 15 more, as panel[column][stride]:
// activated, and zero where they lie outside, up to a multiple of 16 rows if the stride has room for them. Column c
// goes to row place[c] of the panel if places are given, else to c - begin.
inline void pack(const float* matrix, int64_t width, int64_t first, int64_t count, int64_t begin, int64_t end,
                 float* panel, int64_t stride, Activation activation = NONE, const int32_t* place = nullptr) {
    for (int64_t c0 = begin; c0 < end; c0 += LANES) {
        for (int64_t t0 = 0; t0 < least(stride, rounded_up(count, 16)); t0 += LANES) {
            Vec block[LANES];
            load_turned(matrix + (first + t0) * width + c0, width, count - t0, width - c0, block);
            if (activation != NONE)
                for (int c = 0; c < LANES; ++c) block[c] = activated(activation, block[c]);
            if (place) {
                const int64_t inside = least(LANES, width - c0);
                for (int64_t c = 0; c < inside; ++c) store(panel + place[c0 + c] * stride + t0, block[c]);
            } else {
                float* to = panel + (c0 - begin) * stride + t0;
                for (int c = 0; c < LANES; ++c) store(to + c * stride, block[c]);
            }
        }
    }
}

// An odd number of cache lines, so that rows do not collide.
inline int64_t staged_width(int64_t columns) { return rounded_up(columns, 2 * LINE) + LINE; }

// Copies `count` rows of matrix[., width], columns [begin, end) or those that `order` names instead, and activates
// them.
inline void stage(const float* matrix, int64_t width, int64_t count, int64_t begin, int64_t end, const int32_t* order,
                  Activation activation, float* to) {
    const int64_t columns = end - begin, step = staged_width(columns);
    for (const float* row = matrix; row < matrix + count * width; row += width, to += step)
        for (int64_t c = 0; c < columns; c += LANES) {
            Vec v;
            if (!order && columns - c >= LANES) {
                v = load<Vec>(row + begin + c);
            } else {
                float some[LANES] = {};
                for (int64_t i = 0; i < least(LANES, columns - c); ++i)
                    some[i] = row[order ? order[begin + c + i] : begin + c + i];
                v = load<Vec>(some);
            }
            store(to + c, activation == NONE ? v : activated(activation, v));
        }
}

// The first group of part `index` of `parts` that cost about the same, if a group costs its units and a bit.
inline int64_t first_group(const Weight& w, int64_t index, int64_t parts) {
    const int64_t goal = (w.ptr[w.groups] + w.groups) * index / parts;
    int64_t low = 0, high = w.groups;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (w.ptr[middle] + middle < goal) low = middle + 1;
        else high = middle;
    }
    return low;
}

// Products of two numbers, below which waking other threads takes as long as the work.
constexpr int64_t WORTH_SHARING = 1 << 16;

// Whether the product of a weight with so many tokens, or pixels, is worth sharing among threads.
inline bool is_worth_sharing(const Weight& w, int64_t tokens) {
    return w.ptr[w.groups] * w.columns * w.rows * tokens >= WORTH_SHARING;
}

// At which place each output stands: the inverse of w.order.
inline void invert(const Weight& w, int32_t* place) {
    for (int64_t p = 0; p < w.outputs; ++p) place[w.order[p]] = static_cast<int32_t>(p);
}

// The values of a unit.
template <class T>
inline const T* values_at(const Weight& w, int64_t unit) {
    return static_cast<const T*>(w.values) + unit * w.columns * w.rows;
}

// Writes LANES columns of one row, `inside` of them really there.
inline void put(float* to, Vec v, int64_t inside, bool past_caches) {
    if (inside < LANES) std::memcpy(to, &v, sizeof(float) * inside);
    else if (past_caches) stream(to, v);
    else store(to, v);
}

// Whether rows of a result are worth streaming: they begin on a vector, and the whole does not stay in a cache.
inline bool streams(const float* to, int64_t rows, int64_t width) {
    const bool is_aligned = (reinterpret_cast<uintptr_t>(to) | (width * sizeof(float))) % 64 == 0;
    return is_aligned && rows * width * sizeof(float) >= STREAMED_BYTES;
}

// One row of a result whose outputs stand in the order of their places.
inline void put_in_order(const float* row, const int32_t* place, const float* residual, float* to, int64_t width,
                         bool past_caches) {
    for (int64_t o = 0; o < width; o += LANES) {
        const int64_t inside = least(LANES, width - o);
        float lanes[LANES] = {};
        for (int64_t i = 0; i < inside; ++i) lanes[i] = row[place[o + i]];
        Vec v = load<Vec>(lanes);
        if (residual) v += some_lanes(residual + o, inside);
        put(to + o, v, inside, past_caches);
    }
}

// After streaming: makes what was written visible to the other threads.
inline void finish_streaming() {
#ifdef __SSE__
    _mm_sfence();
#endif
}

}  // namespace CUTWORK_ISA
