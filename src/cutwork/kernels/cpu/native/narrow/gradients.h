// The gradients of the bfloat16 product. In that of the input a word holds neighbouring outputs, which is how values
// lie; in that of the weight, neighbouring tokens.

#pragma once

#include "input.h"

namespace CUTWORK_ISA::narrow {

// Tokens whose gradients are summed at a time.
constexpr int64_t GRADIENT_PANEL = 48;

// ---- gradient of the input ----------------------------------------------------------------------------------------

inline uint32_t word_at(const uint16_t* from) {
    uint32_t word;
    std::memcpy(&word, from, sizeof word);
    return word;
}

// Adds to J rows of dx_panel, LANES tokens wide, what B pairs of outputs of one group contribute.
template <int B, int J>
inline void input_rows(const uint16_t* values, int64_t stride, const Words (&dy)[B], float* const (&dx)[J]) {
    Vec acc[J];
    for (int j = 0; j < J; ++j) acc[j] = load<Vec>(dx[j]);
    for (int b = 0; b < B; ++b)
        for (int j = 0; j < J; ++j) acc[j] = dot(acc[j], splat(word_at(values + j * stride + 2 * b)), dy[b]);
    for (int j = 0; j < J; ++j) store(dx[j], acc[j]);
}

// `w` has an even number of rows.
template <int B>
void input_slice(const Weight& w, int64_t group, int64_t offset, const uint32_t* dy_panel, float* dx_panel,
                 int64_t t0) {
    Words dy[B];
    for (int b = 0; b < B; ++b)
        dy[b] = load<Words>(dy_panel + ((group * w.rows + offset) / 2 + b) * GRADIENT_PANEL + t0);
    const int64_t end = w.ptr[group + 1];
    const uint16_t* values = values_at<uint16_t>(w, w.ptr[group]) + offset;
    int64_t k = w.ptr[group];
    if (w.columns == 1) {
        for (; k + 4 <= end; k += 4, values += 4 * w.rows) {
            float* to = dx_panel + t0;
            const int32_t* c = w.col + k;
            input_rows<B, 4>(values, w.rows, dy,
                             {to + c[0] * GRADIENT_PANEL, to + c[1] * GRADIENT_PANEL, to + c[2] * GRADIENT_PANEL,
                              to + c[3] * GRADIENT_PANEL});
        }
    }
    for (; k < end; ++k) {
        float* to = dx_panel + w.col[k] * GRADIENT_PANEL + t0;
        int64_t j = 0;
        for (; j + 4 <= w.columns; j += 4, values += 4 * w.rows, to += 4 * GRADIENT_PANEL)
            input_rows<B, 4>(values, w.rows, dy,
                             {to, to + GRADIENT_PANEL, to + 2 * GRADIENT_PANEL, to + 3 * GRADIENT_PANEL});
        for (; j < w.columns; ++j, values += w.rows, to += GRADIENT_PANEL) input_rows<B, 1>(values, w.rows, dy, {to});
    }
}

// panel[input][GRADIENT_PANEL] as rows of bfloat16.
inline void unpack(const float* panel, int64_t inputs, int64_t count, uint16_t* rows) {
    for (int64_t c0 = 0; c0 < inputs; c0 += 2 * LANES) {
        const int64_t inside = least(2 * LANES, inputs - c0);
        for (int64_t t0 = 0; t0 < count; t0 += LANES) {
            Words block[LANES];
            for (int64_t i = 0; i < LANES; ++i) {
                const float* from = panel + (c0 + 2 * i) * GRADIENT_PANEL + t0;
                block[i] = paired(narrowed(load<Vec>(from)), narrowed(load<Vec>(from + GRADIENT_PANEL)));
            }
            transpose(block);
            uint16_t* to = rows + t0 * inputs + c0;
            const bool aligned = is_aligned(to) && inputs % (2 * LANES) == 0;
            for (int64_t t = 0; t < least(LANES, count - t0); ++t, to += inputs) {
                if (aligned) stream(reinterpret_cast<float*>(to), (Vec)block[t]);
                else std::memcpy(to, &block[t], sizeof(uint16_t) * inside);
            }
        }
    }
}

// The rows of dy with their outputs in the order of the groups, each of which begins at an even place.
inline Rows rows_of_gradient(const Weight& w, int64_t rows, const uint16_t* dy, int64_t count, uint16_t* staged) {
    if (!w.order && w.rows == rows) return rows_of(dy, w.outputs, count);
    const int64_t width = w.groups * rows;
    for (int64_t t = 0; t < count; ++t, dy += w.outputs)
        for (int64_t group = 0; group < w.groups; ++group)
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t p = group * w.rows + r;
                staged[t * width + group * rows + r] = r >= w.rows || p >= w.outputs ? 0 : dy[w.order ? w.order[p] : p];
            }
    return rows_of(staged, width, count);
}

// A weight with an even number of rows, of which the last may be zero.
struct Even {
    explicit Even(const Weight& given)
        : weight(given), values(given.rows % 2 ? given.ptr[given.groups] * given.columns * (given.rows + 1) : 0) {
        if (given.rows % 2 == 0) return;
        weight.values = values.data, weight.rows = given.rows + 1;
        const uint16_t* from = values_at<uint16_t>(given, 0);
        uint16_t* to = values.data;
        for (int64_t column = 0; column < given.ptr[given.groups] * given.columns; ++column, *to++ = 0)
            for (int64_t row = 0; row < given.rows; ++row) *to++ = *from++;
    }
    Weight weight;
    Memory<uint16_t> values;
};

void input_gradient(const Weight& given, const uint16_t* dy, uint16_t* dx, int64_t tokens, int threads) {
    if (!is_worth_sharing(given, tokens)) threads = 1;
    const Even even(given);
    const Weight& w = even.weight;
    const int64_t panels = (tokens + GRADIENT_PANEL - 1) / GRADIENT_PANEL;
    const int64_t columns = rounded_up(w.inputs + w.columns, 32), words = rounded_up(w.groups * w.rows / 2 + 1, LANES);
#pragma omp parallel num_threads(threads)
    {
        Memory<uint16_t> staged(GRADIENT_PANEL * w.groups * w.rows);
        Memory<uint32_t> dy_panel(words * GRADIENT_PANEL);
        Scratch dx_panel(columns * GRADIENT_PANEL);
#pragma omp for schedule(static, 1)
        for (int64_t p = 0; p < panels; ++p) {
            const int64_t first = p * GRADIENT_PANEL, count = least(GRADIENT_PANEL, tokens - first);
            const Rows rows_of_dy = rows_of_gradient(given, w.rows, dy + first * w.outputs, count, staged.data);
            pack_words<GRADIENT_PANEL>(rows_of_dy, words, dy_panel.data);
            std::memset(dx_panel.data, 0, sizeof(float) * columns * GRADIENT_PANEL);
            for (int64_t group = 0; group < w.groups; ++group)
                for (int64_t t0 = 0; t0 < count; t0 += LANES) {
                    int64_t o = 0;
                    for (; o + 32 <= w.rows; o += 32) input_slice<16>(w, group, o, dy_panel.data, dx_panel.data, t0);
                    for (; o + 16 <= w.rows; o += 16) input_slice<8>(w, group, o, dy_panel.data, dx_panel.data, t0);
                    for (; o + 8 <= w.rows; o += 8) input_slice<4>(w, group, o, dy_panel.data, dx_panel.data, t0);
                    for (; o < w.rows; o += 2) input_slice<1>(w, group, o, dy_panel.data, dx_panel.data, t0);
                }
            unpack(dx_panel.data, w.inputs, count, dx + first * w.inputs);
        }
        finish_streaming();
    }
}

// ---- gradient of the weight ---------------------------------------------------------------------------------------

// Adds the sum over a chunk of tokens to C columns of values: rows of x_panel times the strip dy[CHUNK / 2][LANES].
template <int C>
inline void add_chunk(const uint32_t* const (&x)[C], const uint32_t* dy, float* const (&dw)[C], int64_t lanes) {
    Vec acc[C];
    for (int c = 0; c < C; ++c) acc[c] = load_part<Vec>(dw[c], lanes);
    for (int64_t t = 0; t < CHUNK / 2; t += 2) {
        const Words d0 = load<Words>(dy + t * LANES), d1 = load<Words>(dy + (t + 1) * LANES);
        for (int c = 0; c < C; ++c) {
            acc[c] = dot(acc[c], splat(x[c][t]), d0);
            acc[c] = dot(acc[c], splat(x[c][t + 1]), d1);
        }
    }
    for (int c = 0; c < C; ++c) store_part(dw[c], acc[c], lanes);
}

// LANES places from `place` on of a row of dy, of which only `lanes` count.
inline Halves gradients_at(const Weight& w, const uint16_t* row, int64_t place, int64_t lanes) {
    if (!w.order) return load_part<Halves>(row + place, lanes);
    Halves v = {};
    for (int64_t i = 0; i < lanes; ++i) v[i] = row[w.order[place + i]];
    return v;
}

inline void weight_slice(const Weight& w, int64_t group, int64_t offset, const uint32_t* x_panel,
                         const uint16_t* dy, int64_t count, float* dw) {
    alignas(64) uint32_t strip[CHUNK / 2 * LANES];
    const int64_t place = group * w.rows + offset, lanes = least(LANES, w.rows - offset);
    const int64_t inside = clamped(w.outputs - place, lanes);
    for (int64_t t = 0; t < CHUNK; t += 2) {
        Halves rows[2] = {};
        for (int64_t i = 0; i < 2; ++i)
            if (t + i < count && inside) rows[i] = gradients_at(w, dy + (t + i) * w.outputs, place, inside);
        store(strip + t / 2 * LANES, paired(rows[0], rows[1]));
    }
    constexpr int C = COLUMNS_1;
    const int64_t kept = (w.ptr[group + 1] - w.ptr[group]) * w.columns;
    Inputs inputs(w, group);
    float* column = dw + w.ptr[group] * w.columns * w.rows + offset;
    int64_t i = 0;
    for (; i + C <= kept; i += C) {
        const uint32_t* x[C];
        float* to[C];
        for (int c = 0; c < C; ++c, column += w.rows) x[c] = x_panel + inputs.next() * (CHUNK / 2), to[c] = column;
        add_chunk<C>(x, strip, to, lanes);
    }
    for (; i < kept; ++i, column += w.rows)
        add_chunk<1>({x_panel + inputs.next() * (CHUNK / 2)}, strip, {column}, lanes);
}

// Columns of x in words [begin, end) as panel[input][CHUNK], two tokens in a word.
inline void pack_inputs(const Rows& rows, int64_t begin, int64_t end, uint32_t* panel) {
    for (int64_t word = begin; word < end; word += LANES)
        for (int64_t t = 0; t < CHUNK; t += LANES) {
            Words block[LANES];
            load_turned(rows, t, word, block);
            for (int64_t i = 0; i < LANES; ++i) {
                uint16_t* first = reinterpret_cast<uint16_t*>(panel + (word + i) * CHUNK) + t;
                store(first, __builtin_convertvector(block[i] & 0xffffu, Halves));
                store(first + CHUNK, __builtin_convertvector(block[i] >> 16, Halves));
            }
        }
}

void weight_gradient(const Weight& w, const uint16_t* x, const uint16_t* dy, uint16_t* dvalues, int64_t tokens,
                     int threads) {
    if (!is_worth_sharing(w, tokens)) threads = 1;
    const int64_t words = words_of(w.inputs, w.columns, BF16_STEP), chunks = (tokens + CHUNK - 1) / CHUNK;
    Scratch dw(w.ptr[w.groups] * w.columns * w.rows);
    Memory<uint32_t> panels(2 * words * CHUNK);
#pragma omp parallel num_threads(threads)
    {
        const Team team;
        const int64_t from = first_group(w, team.me, team.size), to = first_group(w, team.me + 1, team.size);
        const int64_t begin = w.ptr[from] * w.columns * w.rows, end = w.ptr[to] * w.columns * w.rows;
        std::memset(dw.data + begin, 0, sizeof(float) * (end - begin));
        const int64_t blocks = words / LANES, pack_from = blocks * team.me / team.size * LANES;
        const int64_t pack_to = blocks * (team.me + 1) / team.size * LANES;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            uint32_t* panel = panels.data + chunk % 2 * words * CHUNK;
            const int64_t first = chunk * CHUNK, count = least(CHUNK, tokens - first);
            pack_inputs(rows_of(x + first * w.inputs, w.inputs, count), pack_from, pack_to, panel);
#pragma omp barrier
            for (int64_t group = from; group < to; ++group) {
                // Rows of dy lie far apart, where no CPU looks ahead.
                const int64_t next = (group + 1) * w.rows;
                for (int64_t t = 0; !w.order && group + 1 < to && t < count; ++t)
                    for (int64_t o = next; o < least(next + w.rows, w.outputs); o += 32)
                        __builtin_prefetch(dy + (first + t) * w.outputs + o, 0, 2);
                for (int64_t o = 0; o < w.rows; o += LANES)
                    weight_slice(w, group, o, panel, dy + first * w.outputs, count, dw.data);
            }
        }
        for (int64_t i = begin; i < end; i += LANES)
            put(dvalues + i, numbers(dw.data + i, least(LANES, end - i)), least(LANES, end - i));
    }
}

}  // namespace CUTWORK_ISA::narrow
