// The product for a few tokens: values are read where they lie, once, and outputs lie in the lanes.

#pragma once

#include "results.h"

namespace CUTWORK_ISA::narrow {

constexpr int64_t FEW_PANEL = most(LANES, FEW_TOKENS);

// Words that were laid out for the kernel: [steps, rows].
struct Laid {
    const uint32_t* at;
    int64_t stride, lanes;

    template <int N, bool PART>
    inline void read(int64_t step, Words (&v)[N]) const {
        const uint32_t* from = at + step * stride;
        for (int n = 0; n < N; ++n) v[n] = PART ? load_part<Words>(from, lanes) : load<Words>(from + LANES * n);
    }
};

// Everything that the product of one group with the tokens needs.
template <class F>
struct Product {
    const Weight& w;
    const Places& places;
    const TokenScales<FEW_PANEL>& of_tokens;
    int64_t group, count;  // of tokens
    const uint32_t* x;
    bool gathered;   // x holds the steps of the group, not the whole input
    float* results;  // [tokens, places.count]

    // Sums over U runs of steps side by side, so that few tokens do not wait for one addition after the other.
    template <int T, int N, int U, bool PART, class Values>
    inline void sum(const uint32_t* from_x, const Values& values, typename F::Sum (&total)[T][N]) const {
        typename F::Sum acc[U][T][N];
        for (int u = 0; u < U; ++u)
            for (int t = 0; t < T; ++t)
                for (int n = 0; n < N; ++n) acc[u][t][n] = typename F::Sum{};
        const int64_t begin = w.ptr[group], units = w.ptr[group + 1] - begin;
        const int64_t runs = gathered ? 1 : units, length = gathered ? places.steps(group) : w.columns / F::K;
        int64_t step = 0;
        for (int64_t run = 0; run < runs; ++run) {
            const uint32_t* from = from_x + (gathered ? 0 : w.col[begin + run] / F::K) * FEW_PANEL;
            const int64_t end = step + length;
            for (; step + U <= end; step += U)
                for (int u = 0; u < U; ++u, from += FEW_PANEL) {
                    Words v[N];
                    values.template read<N, PART>(step + u, v);
                    for (int t = 0; t < T; ++t)
                        for (int n = 0; n < N; ++n) acc[u][t][n] = dot(acc[u][t][n], splat(from[t]), v[n]);
                }
            for (; U > 1 && step < end; ++step, from += FEW_PANEL) {
                Words v[N];
                values.template read<N, PART>(step, v);
                for (int t = 0; t < T; ++t)
                    for (int n = 0; n < N; ++n) acc[0][t][n] = dot(acc[0][t][n], splat(from[t]), v[n]);
            }
        }
        for (int t = 0; t < T; ++t)
            for (int n = 0; n < N; ++n) {
                total[t][n] = acc[0][t][n];
                for (int u = 1; u < U; ++u) total[t][n] += acc[u][t][n];
            }
    }

    // The lanes that a group does not fill are the next one's, which comes later.
    template <int T, int N, int U, bool PART, class Values>
    inline void slice(int64_t offset, const Values& values) const {
        const int64_t place = group * w.rows + offset;
        for (int64_t t0 = 0; t0 < count; t0 += T) {
            typename F::Sum total[T][N];
            sum<T, N, U, PART>(x + t0, values, total);
            // Fully unrolled with constant indices, or the sums would leave their registers.
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) {
                if (t0 + t >= count) break;
                float* to = results + (t0 + t) * places.count + place;
                for (int n = 0; n < N; ++n)
                    store(to + LANES * n, for_outputs(places, of_tokens, t0 + t, place + LANES * n, total[t][n]));
            }
        }
    }

    // Values by offset into the group, `values_at(offset)`.
    template <class ValuesAt>
    inline void run(const ValuesAt& values_at) const {
        int64_t o = 0;
        if (count == 1) {
            for (; o + 4 * LANES <= w.rows; o += 4 * LANES) slice<1, 4, 2, false>(o, values_at(o));
            for (; o + LANES <= w.rows; o += LANES) slice<1, 1, 4, false>(o, values_at(o));
            if (o < w.rows) slice<1, 1, 4, true>(o, values_at(o));
        } else {
            for (; o + 2 * LANES <= w.rows; o += 2 * LANES) slice<4, 2, 1, false>(o, values_at(o));
            for (; o + LANES <= w.rows; o += LANES) slice<4, 1, 2, false>(o, values_at(o));
            if (o < w.rows) slice<4, 1, 2, true>(o, values_at(o));
        }
    }
};

// Writes the results of places [begin, end) of one token.
template <class T>
void finish(const Weight& w, const Call<T>& call, int64_t token, const float* results, int64_t begin,
            int64_t end) {
    for (int64_t p = begin; p < end; p += LANES) {
        const int64_t lanes = least(LANES, end - p), row = token * w.outputs;
        Vec v = load<Vec>(results + p);
        if (call.after != NONE) v = activated(call.after, v);
        if (!w.order) {
            if (call.residual) v += numbers(call.residual + row + p, lanes);
            put(call.y + row + p, v, lanes);
            continue;
        }
        T some[LANES];
        if (call.residual) {
            for (int64_t i = 0; i < lanes; ++i) some[i] = call.residual[row + w.order[p + i]];
            v += numbers(some, lanes);
        }
        put(some, v, LANES);
        for (int64_t i = 0; i < lanes; ++i) call.y[row + w.order[p + i]] = some[i];
    }
}

template <class F, class T>
void forward_few(const Weight& w, const Call<T>& call) {
    constexpr bool is_int8 = F::K == INT8_STEP;
    const bool gathered = w.columns % F::K != 0;
    const int64_t words = words_of(w.inputs, w.columns, F::K);
    Places places(w, F::K, call.bias, call.scales);
    Memory<uint32_t> panel(words * FEW_PANEL);
    Memory<char> staged(is_int8 ? FEW_PANEL * words * 4 : 0);
    TokenScales<FEW_PANEL> of_tokens = {};
    pack_words<FEW_PANEL>(rows_of(F{}, call.x, w.inputs, call.tokens, staged.data, words * 4, of_tokens), words,
                          panel.data);
    for (int64_t i = 0; call.before != NONE && i < words * FEW_PANEL; i += LANES)
        store(panel.data + i, activated(call.before, load<Words>(panel.data + i)));
#pragma omp parallel num_threads(call.threads)
    {
        const Team team;
        const int64_t begin = first_group(w, team.me, team.size), end = first_group(w, team.me + 1, team.size);
        Memory<uint32_t> own(gathered ? places.most_steps * FEW_PANEL : 0);
        Memory<float> results(call.tokens * places.count);
        for (int64_t group = begin; group < end; ++group) {
            if (gathered) gather<F, FEW_PANEL>(w, group, panel.data, words, own.data);
            const Product<F> product = {w, places, of_tokens, group, call.tokens, gathered ? own.data : panel.data,
                                        gathered, results.data};
            if constexpr (is_int8) {
                const uint32_t* values =
                    static_cast<const uint32_t*>(w.values) + places.first_step.data[group] * w.rows;
                add_up(values, places.steps(group), w.rows, places.sums.data + group * w.rows);
                product.run([&](int64_t offset) { return Laid{values + offset, w.rows, w.rows - offset}; });
            } else {
                const uint16_t* values = values_at<uint16_t>(w, w.ptr[group]);
                const int64_t kept = (w.ptr[group + 1] - w.ptr[group]) * w.columns;
                product.run([&](int64_t offset) { return AsStored{values + offset, w.rows, w.rows - offset, kept}; });
            }
        }
        for (int64_t t = 0; t < call.tokens; ++t)
            finish(w, call, t, results.data + t * places.count, begin * w.rows, least(end * w.rows, w.outputs));
    }
}

}  // namespace CUTWORK_ISA::narrow
