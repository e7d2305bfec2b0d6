// dvalues = dy^T before(x) where W keeps something

#pragma once

#include "../panels.h"

namespace CUTWORK_ISA::linear {

// Columns of x in a panel, half a MiB; up to twice as many where units are few.
constexpr int64_t PANEL_COLUMNS = 2048;

// Adds the sum over a chunk of tokens to C columns of values: rows of the panel times the strip dy[CHUNK][N vectors].
template <class V, int N, int C>
inline void add_products(const float* const (&x)[C], const float* dy, float* const (&dw)[C], int64_t tokens,
                         bool is_first) {
    constexpr int64_t lanes = sizeof(V) / sizeof(float);
    V acc[C][N] = {};
    if (!is_first)
        for (int c = 0; c < C; ++c)
            for (int n = 0; n < N; ++n) acc[c][n] = load<V>(dw[c] + n * lanes);
    for (int64_t t = 0; t < tokens; t += 2) {
        V d[2][N];
        for (int i = 0; i < 2; ++i)
            for (int n = 0; n < N; ++n) d[i][n] = load<V>(dy + ((t + i) * N + n) * lanes);
        for (int c = 0; c < C; ++c)
            for (int i = 0; i < 2; ++i)
                for (int n = 0; n < N; ++n) acc[c][n] += x[c][t + i] * d[i][n];
    }
    for (int c = 0; c < C; ++c)
        for (int n = 0; n < N; ++n) store(dw[c] + n * lanes, acc[c][n]);
}

// The same for C columns of values one after the other: inputs of one run, read where they lie, `stride` from token to
// token.
template <class V, int N, int C>
inline void add_run(const float* x, int64_t stride, const float* dy, float* dw, int64_t rows, int64_t tokens,
                    bool is_first) {
    constexpr int64_t lanes = sizeof(V) / sizeof(float);
    V acc[C][N] = {};
    if (!is_first)
        for (int c = 0; c < C; ++c)
            for (int n = 0; n < N; ++n) acc[c][n] = load<V>(dw + c * rows + n * lanes);
    for (int64_t t = 0; t < tokens; ++t, x += stride) {
        V d[N];
        for (int n = 0; n < N; ++n) d[n] = load<V>(dy + (t * N + n) * lanes);
        for (int c = 0; c < C; ++c)
            for (int n = 0; n < N; ++n) acc[c][n] += x[c] * d[n];
    }
    for (int c = 0; c < C; ++c)
        for (int n = 0; n < N; ++n) store(dw + c * rows + n * lanes, acc[c][n]);
}

struct Strip {
    const Weight& w;
    const float* dy;
    int64_t first, count;  // tokens
    bool is_packed;
    const float* x;        // of the chunk: x[column - begin][CHUNK] if packed, else x[token][stride] from `begin` on
    int64_t stride, begin;
    float* dw;
    bool is_first;
    Fetch& ahead;
    // The next group's gradients, which lie far apart, where no CPU looks ahead; and some of the next chunk.
    void fetch(const float* next) const {
        for (int64_t o = 0; o < w.rows && o < 2 * LINE; o += LINE) __builtin_prefetch(next + o, 0, 2);
        ahead.go(1);
    }
};

// The units [k, end) of a group that lie in rows, with the strip of N vectors of its outputs from `offset` on.
template <class V, int N, int C>
__attribute__((noinline)) void sum_runs(const Strip& s, int64_t k, int64_t end, int64_t offset, const float* strip) {
    // A few columns at the end are slow, so 8 are 4 and 4 and not 6 and 2.
    constexpr int THIRD = most(C / 3, 1), REST = C - THIRD;
    const Weight& w = s.w;
    float* values = s.dw + k * w.columns * w.rows + offset;
    for (; k < end; ++k, values += w.columns * w.rows) {
        const float* row = s.x + w.col[k] - s.begin;
        const int64_t run = least(w.columns, w.inputs - w.col[k]);
        // Rows of the next unit, some at each step: no CPU looks ahead over so many at once.
        const float* next = k + 1 < end ? s.x + w.col[k + 1] - s.begin : nullptr;
        const int64_t fetched = (s.count * C + w.columns - 1) / w.columns;
        int64_t fetched_to = 0;
        auto add = [&](auto size, int64_t j) {
            for (const int64_t stop = least(s.count, fetched_to + fetched); next && fetched_to < stop; ++fetched_to)
                for (int64_t c = 0; c < least(w.columns, 2 * LINE); c += LINE)
                    __builtin_prefetch(next + fetched_to * s.stride + c);
            add_run<V, N, decltype(size)::value>(row + j, s.stride, strip, values + j * w.rows, w.rows, s.count,
                                                 s.is_first);
        };
        int64_t j = 0;
        for (; run - j >= C && run - j != C + THIRD; j += C) add(Number<C>{}, j);
        for (; run - j >= REST; j += REST) add(Number<REST>{}, j);
        for (; j < run; ++j) add(Number<1>{}, j);
        for (; s.is_first && j < w.columns; ++j) std::memset(values + j * w.rows, 0, sizeof(V) * N);
    }
}

// The units [k, end) of a group, N vectors of its outputs from `offset` on.
template <class V, int N, int C>
void sum_slice(const Strip& s, int64_t group, int64_t k, int64_t end, int64_t offset) {
    constexpr int64_t lanes = sizeof(V) / sizeof(float), width = lanes * N;
    const Weight& w = s.w;
    alignas(64) float strip[CHUNK * width];
    const int64_t o = group * w.rows + offset, inside = clamped(w.outputs - o, width),
                  tokens = rounded_up(s.count, LINE);
    if (inside < width || s.count < CHUNK) std::memset(strip, 0, sizeof strip);
    for (int64_t t = 0; t < s.count; ++t) {
        const float* from = s.dy + (s.first + t) * w.outputs;
        s.fetch(from + o + w.rows);
        if (w.order)
            for (int64_t i = 0; i < inside; ++i) strip[t * width + i] = from[w.order[o + i]];
        else if (inside == width)
            for (int n = 0; n < N; ++n) store(strip + t * width + n * lanes, load<V>(from + o + n * lanes));
        else std::memcpy(strip + t * width, from + o, sizeof(float) * inside);
    }
    if (!s.is_packed) return sum_runs<V, N, C>(s, k, end, offset, strip);
    const float* x[C];
    float* to[C];
    int pending = 0;
    for (; k < end; ++k) {
        const float* row = s.x + (w.col[k] - s.begin) * CHUNK;
        float* values = s.dw + k * w.columns * w.rows + offset;
        for (int64_t j = 0; j < w.columns; ++j, row += CHUNK, values += w.rows) {
            x[pending] = row, to[pending] = values;
            if (++pending == C) add_products<V, N, C>(x, strip, to, tokens, s.is_first), pending = 0;
        }
    }
    for (int c = 0; c < pending; ++c) {
        const float* one[1] = {x[c]};
        float* place[1] = {to[c]};
        add_products<V, N, 1>(one, strip, place, tokens, s.is_first);
    }
}

void sum_group(const Strip& s, int64_t group, int64_t k, int64_t end) {
    const int64_t rows = s.w.rows;
    if (k == end) return;
    int64_t o = 0;
    // Rows of a panel are read for two tokens at once, which takes too many registers.
    if constexpr (COLUMNS_4 > 0)
        for (; !s.is_packed && o + 4 * LANES <= rows; o += 4 * LANES) sum_slice<Vec, 4, COLUMNS_4>(s, group, k, end, o);
    for (; o + 2 * LANES <= rows; o += 2 * LANES) sum_slice<Vec, 2, COLUMNS_2>(s, group, k, end, o);
    for (; o + LANES <= rows; o += LANES) sum_slice<Vec, 1, COLUMNS_1>(s, group, k, end, o);
    if constexpr (LANES > 8)
        for (; o + 8 <= rows; o += 8) sum_slice<VectorOf<8>::Floats, 1, COLUMNS_1>(s, group, k, end, o);
    if constexpr (LANES > 4)
        for (; o + 4 <= rows; o += 4) sum_slice<VectorOf<4>::Floats, 1, COLUMNS_1>(s, group, k, end, o);
    for (; o < rows; ++o) sum_slice<float, 1, COLUMNS_1>(s, group, k, end, o);
}

// Cuts the columns so that each part has about as many units, and fits a panel: edges[part] is where it begins.
void cut_columns(const Weight& w, int64_t parts, int64_t* edges) {
    Memory<int32_t> counts(w.inputs);
    std::memset(counts.data, 0, sizeof(int32_t) * w.inputs);
    const int64_t units = w.ptr[w.groups];
    for (int64_t k = 0; k < units; ++k) ++counts.data[w.col[k]];
    int64_t seen = 0, column = 0;
    edges[0] = 0;
    for (int64_t part = 1; part < parts; ++part) {
        const int64_t lowest = w.inputs - (parts - part) * 2 * PANEL_COLUMNS,
                      highest = edges[part - 1] + 2 * PANEL_COLUMNS;
        while (column < least(w.inputs, highest) && (seen < units * part / parts || column < lowest))
            seen += counts.data[column++];
        edges[part] = column;
    }
    edges[parts] = w.inputs;
}

// Into how many ranges of columns threads share x, each of which packs its own; the rest of the sharing is by groups,
// whose strips of dy each range copies again.
inline int64_t best_ranges(const Weight& w, int64_t threads) {
    int64_t best = 1, least_work = INT64_MAX;
    for (int64_t ranges = 1; ranges <= threads; ++ranges) {
        const int64_t work = w.inputs * threads / ranges + w.outputs * ranges;
        if (threads % ranges == 0 && work < least_work) best = ranges, least_work = work;
    }
    return best;
}

void weight_gradient(const Weight& w, const float* x, const float* dy, float* dw, int64_t tokens, Activation before,
                     int threads) {
    if (!tokens) return (void)std::memset(dw, 0, sizeof(float) * w.ptr[w.groups] * w.columns * w.rows);
    if (!is_worth_sharing(w, tokens)) threads = 1;
    const bool is_packed = w.columns < RUN, is_copied = is_packed || before != NONE || collide(w.inputs);
#pragma omp parallel num_threads(threads)
    {
        const Team team;
        const int64_t ranges = is_copied ? best_ranges(w, team.size) : 1;
        const int64_t parts = team.size / ranges, mine = team.me % parts;
        const int64_t from = first_group(w, mine, parts), to = first_group(w, mine + 1, parts);
        const int64_t each = is_copied ? (w.inputs + ranges * PANEL_COLUMNS - 1) / (ranges * PANEL_COLUMNS) : 1;
        Memory<int64_t> edges(ranges * each + 1);
        cut_columns(w, ranges * each, edges.data);
        Scratch panel(is_copied ? staged_width(2 * PANEL_COLUMNS + w.columns + 2 * LINE) * CHUNK : 0);
        Memory<int32_t> begins(2 * w.groups);
        for (int64_t i = 0; i < each; ++i) {
            const int64_t range = team.me / parts * each + i, begin = edges.data[range], end = edges.data[range + 1];
            int32_t *lows = begins.data, *highs = lows + w.groups;
            for (int64_t group = from; group < to; ++group) {
                int32_t k = w.ptr[group];
                while (k < w.ptr[group + 1] && w.col[k] < begin) ++k;
                lows[group] = k;
                while (k < w.ptr[group + 1] && w.col[k] < end) ++k;
                highs[group] = k;
            }
            int64_t strips = 0;
            for (int64_t group = from; group < to; ++group)
                if (lows[group] < highs[group]) strips += (w.rows + 2 * LANES - 1) / (2 * LANES);
            for (int64_t first = 0; first < tokens; first += CHUNK) {
                const int64_t count = least(CHUNK, tokens - first);
                const int64_t copied_to = least(w.inputs, end + w.columns - 1);
                if (is_packed) pack(x, w.inputs, first, count, begin, end + w.columns - 1, panel.data, CHUNK, before);
                else if (is_copied)
                    stage(x + first * w.inputs, w.inputs, count, begin, copied_to, nullptr, before, panel.data);
                // The next chunk, where two of them fit into the cache.
                const bool fits = CHUNK * (w.inputs + w.outputs) <= Fetch::ROOM;
                const int64_t next = first + count, next_count = fits ? least(count, tokens - next) : 0;
                Fetch ahead(Fetch(x + next * w.inputs, next_count * w.inputs, count * strips),
                            Fetch(dy + next * w.outputs, next_count * w.outputs, count * strips));
                const Strip strip{w,
                                  dy,
                                  first,
                                  count,
                                  is_packed,
                                  is_copied ? panel.data : x + first * w.inputs,
                                  is_copied ? staged_width(copied_to - begin) : w.inputs,
                                  begin,
                                  dw,
                                  first == 0,
                                  ahead};
                for (int64_t group = from; group < to; ++group)
                    sum_group(strip, group, lows[group], highs[group]);
            }
        }
    }
}

}  // namespace CUTWORK_ISA::linear
