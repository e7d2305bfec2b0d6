// The product for many tokens, which lie in the lanes: a word of weights meets two vectors of tokens. Results come by
// output, which suits any order, and are turned when cache lines of them are complete.

#pragma once

#include "results.h"

namespace CUTWORK_ISA::narrow {

// Tokens: more would not pay, because fewer columns of a panel fit into the fastest cache.
constexpr int64_t MANY_PANEL = 2 * LANES;

// Rows of bfloat16 as panel[column][MANY_PANEL], an even number of columns.
inline void pack_halves(const Rows& rows, Activation activation, int64_t columns, uint16_t* panel) {
    for (int64_t word = 0; 2 * word < columns; word += LANES) {
        Words block[2][LANES];
        for (int i = 0; i < 2; ++i) load_turned(rows, i * LANES, word, block[i]);
        for (int64_t w = 0; w < least(LANES, columns / 2 - word); ++w) {
            if (activation != NONE)
                for (int i = 0; i < 2; ++i) block[i][w] = activated(activation, block[i][w]);
            uint16_t* to = panel + 2 * (word + w) * MANY_PANEL;
            store(to, firsts(block[0][w], block[1][w]));
            store(to + MANY_PANEL, seconds(block[0][w], block[1][w]));
        }
    }
}

// ---- the steps of a group -----------------------------------------------------------------------------------------

// Where the steps of all groups read a panel, worked out once: bfloat16 takes two columns for each, which may lie
// anywhere; int8 takes one of words, those of the input if runs are wide enough or else those gathered for the group.
template <class F>
struct Steps {
    static constexpr bool is_int8 = F::K == INT8_STEP;
    static constexpr int64_t COLUMNS_A_STEP = is_int8 ? 1 : 2;
    Steps(const Weight& w, const Places& places, bool gathered, int64_t zero_column)
        : columns(places.first_step.data[w.groups] * COLUMNS_A_STEP) {
        for (int64_t group = 0; group < w.groups; ++group) {
            int32_t* to = columns.data + places.first_step.data[group] * COLUMNS_A_STEP;
            int64_t number = 0;
            for (Inputs inputs(w, group); inputs.more(); ++number) {
                const int64_t input = inputs.next();
                const int64_t column = is_int8 ? (gathered ? number : input) / INT8_STEP : input;
                if (!is_int8 || number % INT8_STEP == 0) *to++ = static_cast<int32_t>(column * MANY_PANEL);
            }
            if (!is_int8 && number % BF16_STEP) *to = static_cast<int32_t>(zero_column * MANY_PANEL);
        }
    }
    Memory<int32_t> columns;
};

inline void read(const uint16_t* panel, const int32_t* columns, int64_t step, Words (&x)[2]) {
    const Words a = load<Words>(panel + columns[2 * step]), b = load<Words>(panel + columns[2 * step + 1]);
    x[0] = joined(a, b), x[1] = joined_next(a, b);
}

inline void read(const uint32_t* panel, const int32_t* columns, int64_t step, Words (&x)[2]) {
    for (int i = 0; i < 2; ++i) x[i] = load<Words>(panel + columns[step] + i * LANES);
}

// ---- the product --------------------------------------------------------------------------------------------------

inline void add(const uint16_t* from, Vec (&v)[2]) {
    const Words both = load<Words>(from), none = {};
    v[0] += (Vec)joined(none, both), v[1] += (Vec)joined_next(none, both);
}
inline void add(const float* from, Vec (&v)[2]) {
    for (int i = 0; i < 2; ++i) v[i] += load<Vec>(from + i * LANES);
}

inline void put_tokens(uint16_t* to, const Vec (&v)[2]) { store(to, narrowed(v[0], v[1])); }
inline void put_tokens(float* to, const Vec (&v)[2]) {
    for (int i = 0; i < 2; ++i) store(to + i * LANES, v[i]);
}

// J outputs of a group for all tokens of a panel.
template <int J, class F, class Column, class T>
__attribute__((noinline)) void sum_outputs(const Places& places, const TokenScales<MANY_PANEL>& of_tokens,
                                           const Column* panel, const int32_t* columns, int64_t steps,
                                           const uint32_t* values, int64_t stride, int64_t place, const Call<T>& call,
                                           T* const (&to)[J]) {
    typename F::Sum acc[J][2] = {};
    for (int64_t step = 0; step < steps; ++step, values += stride) {
        Words x[2];
        read(panel, columns, step, x);
        for (int j = 0; j < J; ++j) {
            const Words v = splat(values[j]);
            for (int i = 0; i < 2; ++i) acc[j][i] = dot(acc[j][i], x[i], v);
        }
    }
    // Fully unrolled with constant indices, or the sums would leave their registers.
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) {
        Vec v[2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            v[i] = for_tokens(places, of_tokens, i * LANES, place + j, acc[j][i]);
            if (call.after != NONE) v[i] = activated(call.after, v[i]);
        }
        if (call.residual) add(to[j], v);
        put_tokens(to[j], v);
    }
}

// Two vectors of outputs of a group for all tokens of a panel, straight to y: with int8 there is less to multiply than
// to write, and turning results of 32 bits would take longer than loading every word of x for itself.
__attribute__((noinline)) void write_sums(const Places& places, const TokenScales<MANY_PANEL>& of_tokens,
                                          const uint32_t* panel, const int32_t* columns, int64_t steps,
                                          const uint32_t* values, int64_t stride, int64_t place,
                                          const Call<float>& call, int64_t count, float* y, int64_t width) {
    constexpr int T = SUMS_OF_2;
    for (int64_t t0 = 0; t0 < count; t0 += T, y += T * width) {
        Ints acc[T][2] = {};
        const uint32_t* from = values;
        for (int64_t step = 0; step < steps; ++step, from += stride) {
            const Words v[2] = {load<Words>(from), load<Words>(from + LANES)};
            const uint32_t* x = panel + columns[step] + t0;
            for (int t = 0; t < T; ++t)
                for (int i = 0; i < 2; ++i) acc[t][i] = dot(acc[t][i], splat(x[t]), v[i]);
        }
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) {
            if (t0 + t >= count) break;
#pragma GCC unroll 2
            for (int i = 0; i < 2; ++i) {
                Vec v = for_outputs(places, of_tokens, t0 + t, place + i * LANES, acc[t][i]);
                if (call.after != NONE) v = activated(call.after, v);
                float* to = y + t * width + i * LANES;
                if (is_aligned(to)) stream(to, v);
                else store(to, v);
            }
        }
    }
}

// ---- where results go ---------------------------------------------------------------------------------------------

// How many outputs of a token make a cache line, where registers are that wide.
template <class T>
constexpr int64_t OUTPUTS_A_LINE = 4 * LANES / sizeof(T);

// Rows of a panel of results, [OUTPUTS_A_LINE][MANY_PANEL], turned into those of LANES tokens from `token` on.
inline void load_line(const uint16_t* results, int64_t token, Words (&block)[LANES]) {
    for (int i = 0; i < LANES; ++i, results += 2 * MANY_PANEL) {
        const Words a = load<Words>(results), b = load<Words>(results + MANY_PANEL);
        block[i] = token ? joined_next(a, b) : joined(a, b);
    }
    transpose(block);
}
inline void load_line(const float* results, int64_t token, Words (&block)[LANES]) {
    for (int i = 0; i < LANES; ++i) block[i] = load<Words>(results + i * MANY_PANEL + token);
    transpose(block);
}

// Writes results[outputs][MANY_PANEL] of `count` tokens to y, where rows are `width` wide.
template <class T>
inline void write_outputs(const T* results, int64_t outputs, int64_t count, T* y, int64_t width) {
    for (int64_t o = 0; o < outputs; o += OUTPUTS_A_LINE<T>, results += OUTPUTS_A_LINE<T> * MANY_PANEL) {
        const int64_t inside = least(OUTPUTS_A_LINE<T>, outputs - o);
        for (int64_t t0 = 0; t0 < count; t0 += LANES) {
            Words block[LANES];
            load_line(results, t0, block);
            T* to = y + t0 * width + o;
            for (int64_t t = 0; t < least(LANES, count - t0); ++t, to += width) {
                if (inside < OUTPUTS_A_LINE<T>) std::memcpy(to, &block[t], sizeof(T) * inside);
                else if (is_aligned(to)) stream(reinterpret_cast<float*>(to), (Vec)block[t]);
                else store(to, block[t]);
            }
        }
    }
}

// The residual where the results will be: their rows come to stand in the order of the outputs.
inline void load_residual(const Call<uint16_t>& call, int64_t first, int64_t count, int64_t width, int64_t begin,
                          int64_t end, uint16_t* results) {
    Rows rows = rows_of(call.residual + first * width + begin, width, count);
    rows.bytes = 2 * (end - begin);
    pack_halves(rows, NONE, rounded_up(end - begin, 2), results);
}
inline void load_residual(const Call<float>&, int64_t, int64_t, int64_t, int64_t, int64_t, float*) {}

// ---- forward ------------------------------------------------------------------------------------------------------

template <class F, class T>
void forward_many(const Weight& w, const Call<T>& call) {
    constexpr bool is_int8 = F::K == INT8_STEP;
    typedef typename F::Column Column;
    const bool gathered = is_int8 && w.columns % INT8_STEP != 0;
    const int64_t words = words_of(w.inputs, w.columns, F::K);
    const int64_t columns = is_int8 ? words : rounded_up(w.inputs + w.columns + 1, 2);
    const int64_t panels = (call.tokens + MANY_PANEL - 1) / MANY_PANEL;
    Places places(w, F::K, call.bias, call.scales);
    const Steps<F> steps(w, places, gathered, columns - 1);
    Memory<uint32_t> laid(is_int8 ? 0 : places.first_step.data[w.groups] * w.rows);
    const uint32_t* values = is_int8 ? static_cast<const uint32_t*>(w.values) : laid.data;
#pragma omp parallel num_threads(call.threads)
    {
        const Team team;
#pragma omp for schedule(static)
        for (int64_t group = 0; group < w.groups; ++group) {
            const int64_t step = places.first_step.data[group];
            if constexpr (is_int8)
                add_up(values + step * w.rows, places.steps(group), w.rows, places.sums.data + group * w.rows);
            else lay_out(w, group, laid.data + step * w.rows);
        }
        Memory<char> staged(is_int8 ? MANY_PANEL * words * 4 : 0);
        Memory<Column> panel(columns * MANY_PANEL);
        Memory<uint32_t> own(gathered ? places.most_steps * MANY_PANEL : 0);
        Memory<T> results(rounded_up(places.count, OUTPUTS_A_LINE<T>) * MANY_PANEL);
        TokenScales<MANY_PANEL> of_tokens = {};
        int64_t packed = -1;
        // Each thread takes its share of the panels, down to a part of the groups of one; with an order, the results of
        // any group may lie beside those of any other.
        const int64_t parts = w.order ? 1 : team.size, items = panels * parts;
        const Share share(items, team.me, team.size);
        for (int64_t item = share.begin; item < share.end; ++item) {
            const int64_t part = item % parts, first = item / parts * MANY_PANEL,
                          count = least(MANY_PANEL, call.tokens - first);
            if (packed != first) {
                const Rows rows = rows_of(F{}, call.x + first * w.inputs, w.inputs, count, staged.data, words * 4,
                                          of_tokens);
                if constexpr (is_int8) pack_words<MANY_PANEL>(rows, words, panel.data);
                else pack_halves(rows, call.before, columns, panel.data);
                packed = first;
            }
            const int64_t begin = first_group(w, part, parts), end = first_group(w, part + 1, parts);
            const bool last = part + 1 == parts && item + 1 < share.end;
            const int64_t next = first + MANY_PANEL, next_count = last ? clamped(call.tokens - next, MANY_PANEL) : 0;
            Fetch ahead(reinterpret_cast<const float*>(call.x + next * w.inputs),
                        next_count * w.inputs * static_cast<int64_t>(sizeof(T)) / 4, end - begin);
            const bool straight = !w.order && w.rows % (2 * LANES) == 0 && w.outputs == w.groups * w.rows;
            // With an order or a residual, results are written when all are there.
            const bool whole = w.order || call.residual;
            int64_t base = begin * w.rows;
            if (call.residual)
                load_residual(call, first, count, w.outputs, base, least(end * w.rows, w.outputs), results.data);
            for (int64_t group = begin; group < end; ++group) {
                ahead.go(1);
                const int64_t step = places.first_step.data[group];
                const Column* source = panel.data;
                if constexpr (is_int8)
                    if (gathered) gather<F, MANY_PANEL>(w, group, panel.data, words, own.data), source = own.data;
                int64_t o = 0;
                if constexpr (is_int8 && sizeof(T) == 4) {
                    if (straight) {
                        for (; o < w.rows; o += 2 * LANES) {
                            const int64_t place = group * w.rows + o;
                            write_sums(places, of_tokens, source, steps.columns.data + step, places.steps(group),
                                       values + step * w.rows + o, w.rows, place, call, count,
                                       call.y + first * w.outputs + place, w.outputs);
                        }
                        continue;
                    }
                }
                const auto sum = [&](auto number) {
                    constexpr int J = decltype(number)::value;
                    const int64_t place = group * w.rows + o;
                    T* to[J];
                    for (int j = 0; j < J; ++j) {
                        const int64_t p = place + j;
                        to[j] = results.data + (!w.order ? p - base : p < w.outputs ? w.order[p] : p) * MANY_PANEL;
                    }
                    sum_outputs<J, F>(places, of_tokens, source, steps.columns.data + step * Steps<F>::COLUMNS_A_STEP,
                                      places.steps(group), values + step * w.rows + o, w.rows, place, call, to);
                    o += J;
                };
                if constexpr (SUMS_OF_2 > 4) while (o + 8 <= w.rows) sum(Number<8>{});
                while (o + 4 <= w.rows) sum(Number<4>{});
                if (o + 2 <= w.rows) sum(Number<2>{});
                if (o < w.rows) sum(Number<1>{});
                const int64_t done = (group + 1) * w.rows;
                if (group + 1 < end && (whole || done % OUTPUTS_A_LINE<T>)) continue;
                write_outputs(results.data, least(done, w.outputs) - base, count, call.y + first * w.outputs + base,
                              w.outputs);
                base = done;
            }
        }
        finish_streaming();
    }
}

}  // namespace CUTWORK_ISA::narrow
