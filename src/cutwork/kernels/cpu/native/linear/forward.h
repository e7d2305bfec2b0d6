// y = after(before(x) W^T + bias) + residual, and what else is a product of rows with a weight

#pragma once

#include "../panels.h"

namespace CUTWORK_ISA::linear {

// Tokens packed together: a multiple of LINE and of all TOKENS_*.
constexpr int64_t PANEL_TOKENS = 48;
// A panel pays where the units that read an input are at least one for so many rows of a group.
constexpr int64_t ROWS_A_READ = 8;
// Threads share out tokens as long as each gets so many, then the groups as well.
constexpr int64_t SHARED_TOKENS = 32;

// What is multiplied with a weight, and what becomes of it; pointers but x and y may be null.
struct Call {
    const float* x;
    const int32_t* x_order;  // which column of x each input is
    Activation before;
    const float* bias;
    Activation after;
    const float* residual;
    const float* source;  // y is multiplied with the derivative at this of `derived`; many tokens without order only
    Activation derived;
    float* y;
};

struct Forward {
    const Weight& w;
    const float* bias;  // padded to whole groups, in the order of the places
    const float* residual;
    float* y;
    int64_t width;  // of y
    Activation after;
    bool past_caches;
    Fetch& ahead;
    const float* source = nullptr;  // as in Call
    Activation derived = NONE;
};

// Where inputs are read from: input i of token t stands at base[i * input + t * token].
template <bool PACKED>
struct Tokens {
    const float* base;
    int64_t stride;
    inline float at(int64_t input, int64_t token) const {
        return PACKED ? base[input * PANEL_TOKENS + token] : base[input + token * stride];
    }
    inline Tokens from(int64_t token) const { return {PACKED ? base + token : base + token * stride, stride}; }
};

// acc[chain][token][vector] of the outputs at `offset` in a group. Several chains hide the latency of a sum.
template <class V, int T, int N, int S, bool PACKED>
inline void sum_units(const Weight& w, int64_t group, int64_t offset, Tokens<PACKED> x, V (&acc)[S][T][N]) {
    constexpr int64_t lanes = sizeof(V) / sizeof(float);
    auto add = [&](int chain, int64_t input, const float* values) {
        V v[N];
        for (int n = 0; n < N; ++n) v[n] = load<V>(values + n * lanes);
        for (int t = 0; t < T; ++t) {
            const float one = x.at(input, t);
            for (int n = 0; n < N; ++n) acc[chain][t][n] += one * v[n];
        }
    };
    const int64_t end = w.ptr[group + 1];
    int64_t k = w.ptr[group];
    const float* values = values_at<float>(w, k) + offset;
    if (S > 1 && w.columns == 1) {
        for (; k + S <= end; k += S, values += S * w.rows)
            for (int s = 0; s < S; ++s) add(s, w.col[k + s], values + s * w.rows);
    }
    for (; k < end; ++k, values += w.columns * w.rows) {
        const int64_t input = w.col[k];
        // Only a panel has something, zeros, where a run hangs over.
        const int64_t run = PACKED ? w.columns : least(w.columns, w.inputs - input);
        // Runs of the next unit lie anywhere in their rows, so the CPU cannot bring them from the second cache ahead.
        if (!PACKED && k + 1 < end)
            for (int64_t t = 0; t < T; ++t)
                for (int64_t c = 0; c < least(w.columns, 2 * LINE); c += LINE)
                    __builtin_prefetch(x.base + w.col[k + 1] + c + t * x.stride);
        int64_t j = 0;
        if (S > 1)
            for (; j + S <= run; j += S)
                for (int s = 0; s < S; ++s) add(s, input + j + s, values + (j + s) * w.rows);
        for (; j < run; ++j) add(0, input + j, values + j * w.rows);
    }
    for (int s = 1; s < S; ++s)
        for (int t = 0; t < T; ++t)
            for (int n = 0; n < N; ++n) acc[0][t][n] += acc[s][t][n];
}

// One tile of the result: T tokens from `token` on, N vectors of outputs; `there` of the tokens are really there.
template <class V, int T, int N, int S, bool PACKED>
void compute_tile(const Forward& f, int64_t group, int64_t offset, Tokens<PACKED> x, int64_t token, int64_t there) {
    constexpr int64_t lanes = sizeof(V) / sizeof(float);
    const int64_t o = group * f.w.rows + offset, inside = least(lanes * N, f.width - o);
    if (inside <= 0) return;
    f.ahead.go(1);
    // Of rows far apart no CPU looks ahead, and the sums take long enough to bring them.
    if (f.source)
        for (int64_t t = 0; t < there; ++t)
            for (int64_t n = 0; n < inside; n += LINE) __builtin_prefetch(f.source + (token + t) * f.width + o + n);
    V acc[S][T][N] = {};
    for (int t = 0; t < T; ++t)
        for (int n = 0; n < N; ++n) acc[0][t][n] = load<V>(f.bias + o + n * lanes);
    sum_units<V, T, N, S>(f.w, group, offset, x, acc);
    float* to = f.y + token * f.width + o;
    if (inside == lanes * N && there == T && f.after == NONE && !f.residual && !f.source) {
        for (int t = 0; t < T; ++t)
            for (int n = 0; n < N; ++n) {
                float* place = to + t * f.width + n * lanes;
                if (f.past_caches) stream(place, acc[0][t][n]);
                else store(place, acc[0][t][n]);
            }
        return;
    }
    for (int64_t t = 0; t < there; ++t)
        for (int64_t n = 0; n * lanes < inside; ++n) {
            const int64_t at = (token + t) * f.width + o + n * lanes, count = least(lanes, inside - n * lanes);
            float row[LANES] = {};
            std::memcpy(row, &acc[0][t][n], sizeof(V));
            Vec v = load<Vec>(row);
            if (f.after != NONE) v = activated(f.after, v);
            if (f.source) v *= derivative(f.derived, some_lanes(f.source + at, count));
            if (f.residual) v += some_lanes(f.residual + at, count);
            put(f.y + at, v, count, f.past_caches);
        }
}

// Some tokens of a panel for one slice of a group; the last tile is as narrow as will do.
template <class V, int T, int N>
void compute_slice(const Forward& f, int64_t group, int64_t offset, Tokens<true> x, int64_t first, int64_t count) {
    constexpr int HALF = (T + 1) / 2, QUARTER = (HALF + 1) / 2;
    int64_t t = 0;
    for (; count - t > HALF; t += T)
        compute_tile<V, T, N, 1>(f, group, offset, x.from(t), first + t, least(T, count - t));
    for (; count - t > QUARTER; t += HALF)
        compute_tile<V, HALF, N, 1>(f, group, offset, x.from(t), first + t, least(HALF, count - t));
    for (; t < count; t += QUARTER)
        compute_tile<V, QUARTER, N, 1>(f, group, offset, x.from(t), first + t, least(QUARTER, count - t));
}

// The same of rows, beside which is somebody else's memory: tiles of just as many as there are. Narrow ones are slow,
// so 16 tokens are 8 and 8 and not 12 and 4.
template <class V, int T, int N>
void compute_slice(const Forward& f, int64_t group, int64_t offset, Tokens<false> x, int64_t first, int64_t count) {
    constexpr int THIRD = most(T / 3, 1), REST = T - THIRD;
    int64_t t = 0;
    for (; count - t >= T && count - t != T + THIRD; t += T)
        compute_tile<V, T, N, 1>(f, group, offset, x.from(t), first + t, T);
    for (; count - t >= REST; t += REST)
        compute_tile<V, REST, N, 1>(f, group, offset, x.from(t), first + t, REST);
    for (; count - t >= THIRD; t += THIRD)
        compute_tile<V, THIRD, N, 1>(f, group, offset, x.from(t), first + t, THIRD);
    for (; t < count; ++t) compute_tile<V, 1, N, 1>(f, group, offset, x.from(t), first + t, 1);
}

template <bool PACKED>
void compute_group(const Forward& f, int64_t group, Tokens<PACKED> x, int64_t first, int64_t count) {
    constexpr int ONE = PACKED || TOKENS_1 < WAYS ? TOKENS_1 : WAYS;
    const int64_t rows = f.w.rows;
    int64_t o = 0;
    if constexpr (TOKENS_4 > 0)
        for (; o + 4 * LANES <= rows; o += 4 * LANES) compute_slice<Vec, TOKENS_4, 4>(f, group, o, x, first, count);
    for (; o + 2 * LANES <= rows; o += 2 * LANES) compute_slice<Vec, TOKENS_2, 2>(f, group, o, x, first, count);
    for (; o + LANES <= rows; o += LANES) compute_slice<Vec, ONE, 1>(f, group, o, x, first, count);
    if constexpr (LANES > 8)
        for (; o + 8 <= rows; o += 8) compute_slice<VectorOf<8>::Floats, ONE, 1>(f, group, o, x, first, count);
    if constexpr (LANES > 4)
        for (; o + 4 <= rows; o += 4) compute_slice<VectorOf<4>::Floats, ONE, 1>(f, group, o, x, first, count);
    for (; o < rows; ++o) compute_slice<float, ONE, 1>(f, group, o, x, first, count);
}

// A few tokens, read where they lie: the values stream by once.
template <int T>
void compute_few(const Forward& f, int64_t group, Tokens<false> x, int64_t first) {
    constexpr int S = T == 1 ? 4 : T == 2 ? 2 : 1;
    const int64_t rows = f.w.rows;
    int64_t o = 0;
    if constexpr (T <= TOKENS_4)
        for (; o + 4 * LANES <= rows; o += 4 * LANES) compute_tile<Vec, T, 4, 1>(f, group, o, x, first, T);
    if constexpr (T <= TOKENS_2)
        for (; o + 2 * LANES <= rows; o += 2 * LANES) compute_tile<Vec, T, 2, (S + 1) / 2>(f, group, o, x, first, T);
    for (; o + LANES <= rows; o += LANES) compute_tile<Vec, T, 1, S>(f, group, o, x, first, T);
    if constexpr (LANES > 8)
        for (; o + 8 <= rows; o += 8) compute_tile<VectorOf<8>::Floats, T, 1, S>(f, group, o, x, first, T);
    if constexpr (LANES > 4)
        for (; o + 4 <= rows; o += 4) compute_tile<VectorOf<4>::Floats, T, 1, S>(f, group, o, x, first, T);
    for (; o < rows; ++o) compute_tile<float, T, 1, S>(f, group, o, x, first, T);
}

void compute_few(const Forward& f, Share groups, const float* x, int64_t width, int64_t tokens) {
    for (int64_t group = groups.begin; group < groups.end; ++group)
        for (int64_t t = 0; t < tokens;) {
            const Tokens<false> from{x + t * width, width};
            const int64_t left = tokens - t;
            if (TOKENS_1 >= 8 && left >= 8) compute_few<8>(f, group, from, t), t += 8;
            else if (left >= 4) compute_few<4>(f, group, from, t), t += 4;
            else if (left >= 2) compute_few<2>(f, group, from, t), t += 2;
            else compute_few<1>(f, group, from, t), t += 1;
        }
}

// The bias as the tiles read it: in the order of the places, zero where groups hang over or where there is none.
inline void place_bias(const Weight& w, const float* bias, float* to) {
    std::memset(to, 0, sizeof(float) * rounded_up(w.groups * w.rows, LINE));
    for (int64_t p = 0; bias && p < w.outputs; ++p) to[p] = bias[w.order ? w.order[p] : p];
}

void multiply_few(const Weight& w, const Call& p, int64_t tokens, int threads) {
    const int64_t places = rounded_up(w.groups * w.rows, LINE);
    const bool is_staged = p.before != NONE || p.x_order;
    const int64_t x_width = is_staged ? staged_width(w.inputs) : w.inputs;
    Scratch placed_bias(places), staged_x(is_staged ? tokens * x_width : 0);
    Scratch placed_y(w.order ? tokens * places : 0);
    Memory<int32_t> place(w.order ? w.outputs : 0);
    place_bias(w, p.bias, placed_bias.data);
    if (is_staged) stage(p.x, w.inputs, tokens, 0, w.inputs, p.x_order, p.before, staged_x.data);
    const float* x = is_staged ? staged_x.data : p.x;
    Fetch nothing(nullptr, 0, 1);
    Forward f{w, placed_bias.data, nullptr, placed_y.data, places, p.after, false, nothing};
    if (!w.order) f.residual = p.residual, f.y = p.y, f.width = w.outputs;
    if (threads == 1) {
        compute_few(f, Share(w.groups, 0, 1), x, x_width, tokens);
    } else {
#pragma omp parallel num_threads(threads)
        {
            const Team team;
            Share groups(0, 0, 1);
            groups.begin = first_group(w, team.me, team.size), groups.end = first_group(w, team.me + 1, team.size);
            compute_few(f, groups, x, x_width, tokens);
        }
    }
    if (!w.order) return;
    invert(w, place.data);
    for (int64_t t = 0; t < tokens; ++t)
        put_in_order(placed_y.data + t * places, place.data, p.residual ? p.residual + t * w.outputs : nullptr,
                     p.y + t * w.outputs, w.outputs, false);
}

void multiply(const Weight& w, const Call& p, int64_t tokens, int threads) {
    if (!tokens) return;
    if (!is_worth_sharing(w, tokens)) threads = 1;
    if (tokens <= FEW_TOKENS) return multiply_few(w, p, tokens, threads);
    const int64_t columns = rounded_up(w.inputs + w.columns, LINE), places = rounded_up(w.groups * w.rows, LINE);
    // A panel pays where each input is read often enough, and more often the more outputs it is read for at once.
    const bool is_packed = w.columns < RUN && ROWS_A_READ * w.ptr[w.groups] > w.rows * w.inputs;
    const bool is_staged = !is_packed && (p.before != NONE || p.x_order || collide(w.inputs));
    const int64_t x_width = is_staged ? staged_width(w.inputs) : w.inputs;
    const int64_t one = is_packed ? TOKENS_1 : least(TOKENS_1, WAYS);
    const int64_t tile = TOKENS_4 && w.rows >= 4 * LANES ? TOKENS_4 : w.rows >= 2 * LANES ? TOKENS_2 : one;
    // A panel is read at random, so it must stay in a cache of a core of its own.
    int64_t panel_tokens = PANEL_TOKENS;
    while (panel_tokens > LINE && columns * panel_tokens * int64_t(sizeof(float)) > PANEL_BYTES) panel_tokens -= LINE;
    const bool past_caches = streams(p.y, tokens, w.outputs);
#pragma omp parallel num_threads(threads)
    {
        const Team team;
        // With few tokens, threads share out the groups as well: each then reads only its part of the values.
        int64_t ranges = team.size;
        while (!w.order && ranges > 1 && (team.size % ranges || ranges * SHARED_TOKENS > tokens)) --ranges;
        const int64_t parts = team.size / ranges, mine = team.me % parts;
        const int64_t from = first_group(w, mine, parts), to = first_group(w, mine + 1, parts);
        const Share fours((tokens + 3) / 4, team.me / parts, ranges);
        const int64_t begin = fours.begin * 4, end = least(fours.end * 4, tokens);
        const int64_t tiles = (end - begin + tile - 1) / tile;
        const int64_t panels = (tiles + panel_tokens / tile - 1) / (panel_tokens / tile);
        Scratch panel(is_packed ? columns * PANEL_TOKENS : is_staged ? x_width * PANEL_TOKENS : 0), placed_bias(places);
        Scratch placed_y(w.order ? PANEL_TOKENS * places : 0);
        Memory<int32_t> place(w.order ? w.outputs : 0);
        place_bias(w, p.bias, placed_bias.data);
        if (w.order) invert(w, place.data);
        for (int64_t i = 0; i < panels; ++i) {
            const Share part(tiles, i, panels);
            const int64_t first = begin + part.begin * tile, y_first = first * w.outputs;
            const int64_t count = least(part.end * tile, end - begin) - part.begin * tile;
            const float* x = is_packed || is_staged ? panel.data : p.x + first * w.inputs;
            if (is_packed) pack(p.x, w.inputs, first, count, 0, columns, panel.data, PANEL_TOKENS, p.before);
            if (is_staged)
                stage(p.x + first * w.inputs, w.inputs, count, 0, w.inputs, p.x_order, p.before, panel.data);
            const int64_t next = first + count, tiles_now = (part.end - part.begin) * (to - from);
            // Whole rows, which are copied, the CPU fetches by itself.
            Fetch ahead(p.x + next * w.inputs, is_staged ? 0 : least(count, end - next) * w.inputs, tiles_now);
            Forward f{w, placed_bias.data, nullptr, placed_y.data, places, p.after, false, ahead};
            if (!w.order) {
                f.residual = p.residual ? p.residual + y_first : nullptr;
                f.y = p.y + y_first, f.width = w.outputs, f.past_caches = past_caches;
                f.source = p.source ? p.source + y_first : nullptr, f.derived = p.derived;
            }
            for (int64_t group = from; group < to; ++group) {
                if (is_packed) compute_group(f, group, Tokens<true>{x, PANEL_TOKENS}, 0, count);
                else compute_group(f, group, Tokens<false>{x, x_width}, 0, count);
            }
            for (int64_t t = 0; w.order && t < count; ++t)
                put_in_order(placed_y.data + t * places, place.data,
                             p.residual ? p.residual + y_first + t * w.outputs : nullptr,
                             p.y + y_first + t * w.outputs, w.outputs, past_caches);
        }
        finish_streaming();
    }
}

void forward(const Weight& w, const float* x, const float* bias, const float* residual, float* y, int64_t tokens,
             Activation before, Activation after, int threads) {
    multiply(w, Call{x, nullptr, before, bias, after, residual, nullptr, NONE, y}, tokens, threads);
}

}  // namespace CUTWORK_ISA::linear
