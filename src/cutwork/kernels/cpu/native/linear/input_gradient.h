// dx = dy W, times the derivative of the activation before W

#pragma once

#include "forward.h"

namespace CUTWORK_ISA::linear {

// Tokens: for fewer, to turn the tiles takes longer than to do without.
constexpr int64_t TRANSPOSED_FROM = 128;
// Of LANES tokens each, over which the values pass once.
constexpr int64_t STRIPES = PANEL_TOKENS / LANES;

// Adds to J rows of a stripe of dx what B outputs of one group contribute.
template <class V, int B, int J>
inline void add_to_rows(const float* values, int64_t stride, const V (&dy)[B], float* const (&dx)[J]) {
    V acc[J];
    for (int j = 0; j < J; ++j) acc[j] = load<V>(dx[j]);
    for (int b = 0; b < B; ++b)
        for (int j = 0; j < J; ++j) acc[j] += values[j * stride + b] * dy[b];
    for (int j = 0; j < J; ++j) store(dx[j], acc[j]);
}

// One stripe, LANES tokens wide in memory, of which those of V are computed; B outputs of a group stay in registers.
template <class V, int B>
void add_slice(const Weight& w, int64_t group, int64_t offset, const float* dy_stripe, float* dx_stripe) {
    V dy[B];
    for (int b = 0; b < B; ++b) dy[b] = load<V>(dy_stripe + (group * w.rows + offset + b) * LANES);
    const int64_t end = w.ptr[group + 1];
    int64_t k = w.ptr[group];
    const float* values = values_at<float>(w, k) + offset;
    if (w.columns == 1) {
        for (; k + 4 <= end; k += 4, values += 4 * w.rows) {
            const int32_t* c = w.col + k;
            add_to_rows<V, B, 4>(values, w.rows, dy,
                                 {dx_stripe + c[0] * LANES, dx_stripe + c[1] * LANES, dx_stripe + c[2] * LANES,
                                  dx_stripe + c[3] * LANES});
        }
    }
    for (; k < end; ++k) {
        float* to = dx_stripe + w.col[k] * LANES;
        int64_t j = 0;
        for (; j + 4 <= w.columns; j += 4, values += 4 * w.rows, to += 4 * LANES)
            add_to_rows<V, B, 4>(values, w.rows, dy, {to, to + LANES, to + 2 * LANES, to + 3 * LANES});
        for (; j < w.columns; ++j, values += w.rows, to += LANES) add_to_rows<V, B, 1>(values, w.rows, dy, {to});
    }
}

template <class V>
void add_group(const Weight& w, int64_t group, const float* dy_stripe, float* dx_stripe) {
    int64_t o = 0;
    if constexpr (LANES > 8)
        for (; o + 16 <= w.rows; o += 16) add_slice<V, 16>(w, group, o, dy_stripe, dx_stripe);
    for (; o + 8 <= w.rows; o += 8) add_slice<V, 8>(w, group, o, dy_stripe, dx_stripe);
    for (; o + 4 <= w.rows; o += 4) add_slice<V, 4>(w, group, o, dy_stripe, dx_stripe);
    for (; o < w.rows; ++o) add_slice<V, 1>(w, group, o, dy_stripe, dx_stripe);
}

// A weight turned: its units are runs of outputs.
struct Transposed {
    Transposed(const Weight& given, int threads)
        : ptr((given.inputs + given.columns - 1) / given.columns + 1),
          col(given.ptr[given.groups]),
          from(given.ptr[given.groups]),
          values(given.ptr[given.groups] * given.columns * given.rows) {
        const int64_t units = given.ptr[given.groups], groups = (given.inputs + given.columns - 1) / given.columns;
        std::memset(ptr.data, 0, sizeof(int32_t) * (groups + 1));
        for (int64_t k = 0; k < units; ++k) ++ptr.data[given.col[k] / given.columns + 1];
        for (int64_t g = 0; g < groups; ++g) ptr.data[g + 1] += ptr.data[g];
        Memory<int32_t> next(groups);
        std::memcpy(next.data, ptr.data, sizeof(int32_t) * groups);
        for (int64_t group = 0; group < given.groups; ++group)
            for (int64_t k = given.ptr[group]; k < given.ptr[group + 1]; ++k) {
                const int32_t place = next.data[given.col[k] / given.columns]++;
                col.data[place] = static_cast<int32_t>(group * given.rows);
                from.data[place] = static_cast<int32_t>(k);
            }
#pragma omp parallel for num_threads(threads)
        for (int64_t place = 0; place < units; ++place)
            turn(values_at<float>(given, from.data[place]), given.columns, given.rows,
                 values.data + place * given.columns * given.rows);
        weight = {values.data,   ptr.data, col.data,      nullptr,   given.inputs,
                  given.outputs, groups,   given.columns, given.rows};
    }

    Memory<int32_t> ptr, col, from;  // from: which unit of the given weight each is
    Memory<float> values;
    Weight weight;

  private:
    // to[width, rows] = from[rows, width]
    static void turn(const float* from, int64_t rows, int64_t width, float* to) {
        for (int64_t row = 0; row < rows; row += LANES)
            for (int64_t column = 0; column < width; column += LANES) {
                Vec block[LANES];
                load_turned(from + row * width + column, width, rows - row, width - column, block);
                for (int64_t c = 0; c < least(LANES, width - column); ++c)
                    put(to + (column + c) * rows + row, block[c], rows - row, false);
            }
    }
};

void input_gradient(const Weight& w, const float* dy, const float* x, float* dx, int64_t tokens, Activation before,
                    int threads) {
    if (!is_worth_sharing(w, tokens)) threads = 1;
    if (w.columns >= RUN && w.rows >= RUN && tokens >= TRANSPOSED_FROM) {
        const Transposed turned(w, threads);
        const float* source = before == NONE ? nullptr : x;
        const Call call{dy, w.order, NONE, nullptr, NONE, nullptr, source, before, dx};
        return multiply(turned.weight, call, tokens, threads);
    }
    const int64_t columns = rounded_up(w.inputs + w.columns, LINE), places = rounded_up(w.groups * w.rows, LINE);
    int64_t stripes = STRIPES;
    while (stripes > 1 && (columns + places) * LANES * int64_t(sizeof(float)) * stripes > PANEL_BYTES) --stripes;
    const bool past_caches = streams(dx, tokens, w.inputs);
#pragma omp parallel num_threads(threads)
    {
        const Team team;
        // Half a stripe takes half the time where there are vectors of that size.
        const int64_t unit = LANES > 8 ? 8 : LANES;
        const Share units((tokens + unit - 1) / unit, team.me, team.size);
        const int64_t begin = units.begin * unit, end = least(units.end * unit, tokens);
        Scratch dy_panel(stripes * places * LANES), dx_panel(stripes * columns * LANES);
        Memory<int32_t> place(w.order ? w.outputs : 0);
        if (w.order) invert(w, place.data);
        // Rows that hang over belong to no output and are not packed when outputs have places.
        std::memset(dy_panel.data, 0, sizeof(float) * stripes * places * LANES);
        for (int64_t first = begin; first < end; first += LANES * stripes) {
            const int64_t now = least(stripes, (end - first + LANES - 1) / LANES);
            std::memset(dx_panel.data, 0, sizeof(float) * now * columns * LANES);
            for (int64_t s = 0; s < now; ++s) {
                const int64_t token = first + LANES * s;
                pack(dy, w.outputs, token, least(LANES, end - token), 0, w.order ? w.outputs : places,
                     dy_panel.data + s * places * LANES, LANES, NONE, w.order ? place.data : nullptr);
            }
            for (int64_t group = 0; group < w.groups; ++group)
                for (int64_t s = 0; s < now; ++s) {
                    const float* dy_stripe = dy_panel.data + s * places * LANES;
                    float* dx_stripe = dx_panel.data + s * columns * LANES;
                    if (LANES > 8 && end - first - LANES * s <= 8)
                        add_group<VectorOf<8>::Floats>(w, group, dy_stripe, dx_stripe);
                    else add_group<Vec>(w, group, dy_stripe, dx_stripe);
                }
            for (int64_t s = 0; s < now; ++s)
                for (int64_t c0 = 0; c0 < w.inputs; c0 += LANES) {
                    Vec block[LANES];
                    const float* from = dx_panel.data + (s * columns + c0) * LANES;
                    for (int c = 0; c < LANES; ++c) block[c] = load<Vec>(from + c * LANES);
                    transpose(block);
                    const int64_t inside = least(LANES, w.inputs - c0), token = first + LANES * s;
                    for (int64_t t = 0; t < least(LANES, end - token); ++t) {
                        const int64_t at = (token + t) * w.inputs + c0;
                        if (before != NONE) {
                            float source[LANES] = {};
                            std::memcpy(source, x + at, sizeof(float) * inside);
                            block[t] *= derivative(before, load<Vec>(source));
                        }
                        put(dx + at, block[t], inside, past_caches);
                    }
                }
        }
        finish_streaming();
    }
}

}  // namespace CUTWORK_ISA::linear
