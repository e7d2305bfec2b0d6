// y = after(conv(x) + bias)

#pragma once

#include "in_place.h"
#include "plan.h"

namespace CUTWORK_ISA::conv {

struct Forward {
    const Plan& p;
    const float* panel;
    const float* bias;  // padded to whole groups, in the order of the places
    float* y;           // the first pixel of the band
    int64_t image;      // from an image of y to the next
    int64_t images;
    int64_t width;         // of a pixel of y
    int64_t first, count;  // rows of outputs
    Activation after;
    bool past_caches;
    Fetch& fetch;
};

// Writes the sums[count][N] of neighbouring lanes of a row, outputs from o on.
template <class V, int N>
inline void put_sums(const Forward& f, const V* sums, int64_t o, int64_t row, int64_t lane, int64_t count) {
    constexpr int64_t vector = sizeof(V) / sizeof(float);
    const int64_t inside = least(vector * N, f.width - o), fold = f.p.fold;
    float* start = f.y + row * f.p.c.across.out * f.width + o;
    const bool is_plain = vector == LANES && inside == vector * N && f.after == NONE;
    for (int64_t s = 0; s < count; ++s, sums += N) {
        const int64_t image = fold == 1 ? 0 : (lane + s) % fold, column = fold == 1 ? lane + s : (lane + s) / fold;
        if (image >= f.images) continue;
        float* to = start + image * f.image + column * f.width;
        if (is_plain) {
            for (int n = 0; n < N; ++n) {
                if (f.past_caches) stream(to + n * vector, sums[n]);
                else store(to + n * vector, sums[n]);
            }
            continue;
        }
        for (int64_t n = 0; n * vector < inside; ++n) {
            float all[LANES] = {};
            std::memcpy(all, sums + n, sizeof(V));
            Vec v = load<Vec>(all);
            if (f.after != NONE) v = activated(f.after, v);
            put(to + n * vector, v, least(vector, inside - n * vector), f.past_caches);
        }
    }
}

// S lanes of a row times N vectors of outputs.
template <class V, int N, int S>
void compute_lanes(const Forward& f, Range values, int64_t o, int64_t offset, int64_t row, int64_t lane) {
    constexpr int64_t vector = sizeof(V) / sizeof(float);
    const Weight& w = f.p.c.weight;
    V acc[S][N];
    for (int s = 0; s < S; ++s)
        for (int n = 0; n < N; ++n) acc[s][n] = load<V>(f.bias + o + n * vector);
    f.fetch.go(S);
    const float* base = f.panel + row * f.p.row_stride + lane;
    const float* from = values_at<float>(w, 0) + values.begin * w.rows + offset;
    const int32_t *at = f.p.offsets.data + values.begin, *end = f.p.offsets.data + values.end;
    for (; at < end; ++at, from += w.rows) {
        const float* x = base + *at;
        V v[N];
        for (int n = 0; n < N; ++n) v[n] = load<V>(from + n * vector);
        for (int s = 0; s < S; ++s)
            for (int n = 0; n < N; ++n) acc[s][n] += x[s] * v[n];
    }
    put_sums<V, N>(f, acc[0], o, row, lane, S);
}

// T tiles of LANES lanes times LANES outputs, some at a time: the lanes lie in the vectors, so that a product needs
// about half a read. One vector of outputs beside single lanes needs a whole one, and reading is what it then waits
// for: 0.8 times as fast with AVX-512.
template <int T>
void compute_turned(const Forward& f, Range values, int64_t o, int64_t offset, const int64_t (&rows)[T],
                    const int64_t (&lanes)[T]) {
    const Weight& w = f.p.c.weight;
    const float* bases[T];
    for (int t = 0; t < T; ++t) bases[t] = f.panel + rows[t] * f.p.row_stride + lanes[t];
    f.fetch.go(T * LANES);
    Vec sums[T][LANES];
    for (int first = 0; first < LANES; first += OUTPUTS) {
        Vec acc[OUTPUTS][T];
        for (int b = 0; b < OUTPUTS; ++b)
            for (int t = 0; t < T; ++t) acc[b][t] = all(f.bias[o + first + b]);
        const float* from = values_at<float>(w, 0) + values.begin * w.rows + offset + first;
        const int32_t *at = f.p.offsets.data + values.begin, *end = f.p.offsets.data + values.end;
        for (; at < end; ++at, from += w.rows) {
            Vec x[T];
            for (int t = 0; t < T; ++t) x[t] = load<Vec>(bases[t] + *at);
#pragma GCC unroll 8
            for (int b = 0; b < OUTPUTS; ++b)
                for (int t = 0; t < T; ++t) acc[b][t] += from[b] * x[t];
        }
        for (int b = 0; b < OUTPUTS; ++b)
            for (int t = 0; t < T; ++t) sums[t][first + b] = acc[b][t];
    }
    for (int t = 0; t < T; ++t) {
        transpose(sums[t]);
        put_sums<Vec, 1>(f, sums[t], o, rows[t], lanes[t], LANES);
    }
}

// The rows of LANES outputs of a group, whose lanes fill vectors.
void compute_turned(const Forward& f, int64_t group, int64_t offset) {
    const Conv& c = f.p.c;
    const int64_t o = group * c.weight.rows + offset, each = f.p.tiles_of_row();
    for (int64_t row = 0; row < f.count;) {
        const Range taps = taps_inside(c.down, f.first + row);
        int64_t end = row + 1;
        while (end < f.count && taps == taps_inside(c.down, f.first + end)) ++end;
        const Range values = f.p.values(group, taps);
        const int64_t tiles = (end - row) * each, parts = (tiles + VECTORS - 1) / VECTORS;
        for (int64_t part = 0; part < parts; ++part) {
            const Share share(tiles, part, parts);
            Counted<VECTORS>::run(share.end - share.begin, [&](auto number) {
                constexpr int T = decltype(number)::value;
                int64_t rows[T], lanes[T];
                for (int64_t t = 0; t < T; ++t)
                    rows[t] = row + (share.begin + t) / each, lanes[t] = (share.begin + t) % each * LANES;
                if constexpr (T > 1) compute_turned<T>(f, values, o, offset, rows, lanes);
                else compute_lanes<Vec, 1, LANES>(f, values, o, offset, rows[0], lanes[0]);
            });
        }
        row = end;
    }
}

// The rows of a slice of a group, each in equal parts of at most MOST lanes.
template <class V, int N, int MOST>
void compute_slice(const Forward& f, int64_t group, int64_t offset) {
    const Conv& c = f.p.c;
    const int64_t o = group * c.weight.rows + offset, lanes = c.across.out * f.p.fold,
                  parts = (lanes + MOST - 1) / MOST;
    if (o >= f.width) return;
    for (int64_t row = 0; row < f.count; ++row) {
        const Range values = f.p.values(group, taps_inside(c.down, f.first + row));
        for (int64_t part = 0; part < parts; ++part) {
            const Share share(lanes, part, parts);
            Counted<MOST>::run(share.end - share.begin, [&](auto number) {
                compute_lanes<V, N, decltype(number)::value>(f, values, o, offset, row, share.begin);
            });
        }
    }
}

void compute_group(const Forward& f, int64_t group) {
    const int64_t rows = f.p.c.weight.rows;
    int64_t o = 0;
    for (; o + 2 * LANES <= rows; o += 2 * LANES) compute_slice<Vec, 2, PIXELS_2>(f, group, o);
    for (; o + LANES <= rows; o += LANES) {
        const bool fills_vectors = f.p.lanes() % LANES == 0 && group * rows + o + LANES <= f.width;
        if (fills_vectors) compute_turned(f, group, o);
        else compute_slice<Vec, 1, PIXELS_1>(f, group, o);
    }
    if constexpr (LANES > 8)
        for (; o + 8 <= rows; o += 8) compute_slice<VectorOf<8>::Floats, 1, PIXELS_PART>(f, group, o);
    if constexpr (LANES > 4)
        for (; o + 4 <= rows; o += 4) compute_slice<VectorOf<4>::Floats, 1, PIXELS_PART>(f, group, o);
    for (; o < rows; ++o) compute_slice<float, 1, PIXELS_PART>(f, group, o);
}

void forward(const Conv& c, const float* x, const float* bias, float* y, Activation after, int threads) {
    const Weight& w = c.weight;
    const int64_t image = c.down.size * c.across.size * c.channels, pixels = c.down.out * c.across.out;
    if (!is_worth_sharing(w, c.images * pixels)) threads = 1;
    if (is_read_in_place(c)) {
        const Sources down = sources_of(c.down), across = sources_of(c.across);
        const Product product{w, down, across, c.images, c.down.size, c.across.size, c.channels, bias, after};
        return multiply_in_place(product, x, y, threads);
    }
    const int64_t places = rounded_up(w.groups * w.rows, LINE) + 2 * LINE;
    const Plan plan(c, bands_for(c, Phases(c.down).reach, threads), 0);
    const int64_t items = plan.items(), slices = w.order ? 1 : least(w.groups, most(1, threads / most(1, items)));
    const int64_t longest = (c.down.out + plan.bands - 1) / plan.bands * c.across.out;
    const bool past_caches = streams(y, c.images * pixels, w.outputs);
    Scratch placed_bias(places);
    Memory<int32_t> place(w.order ? w.outputs : 0);
    std::memset(placed_bias.data, 0, sizeof(float) * places);
    for (int64_t p = 0; bias && p < w.outputs; ++p) placed_bias.data[p] = bias[w.order ? w.order[p] : p];
    if (w.order) invert(w, place.data);
#pragma omp parallel num_threads(threads)
    {
        Scratch panel(plan.floats), placed_y(w.order ? plan.fold * longest * places : 0);
        std::memset(panel.data, 0, sizeof(float) * plan.floats);
#pragma omp for
        for (int64_t group = 0; group < w.groups; ++group) plan.locate(group);
#pragma omp for schedule(static)
        for (int64_t job = 0; job < items * slices; ++job) {
            const int64_t item = job / slices, slice = job % slices;
            const int64_t index = plan.image(item), images = plan.images(item);
            const Share band = plan.band(item);
            float* to = y + (index * pixels + band.begin * c.across.out) * w.outputs;
            const int64_t count = band.end - band.begin;
            pack_images(plan, x + index * image, images, band.begin, panel.data);
            const int64_t steps = w.groups * plan.slices() * count * plan.lanes();
            Fetch fetch = plan.fetch_x(item, slices == 1 ? x : nullptr, steps);
            Forward f{plan,       panel.data, placed_bias.data, to,    pixels * w.outputs, images,
                        w.outputs,  band.begin, count,            after, past_caches,        fetch};
            if (w.order) {
                f.y = placed_y.data, f.image = longest * places, f.width = places;
                f.past_caches = false;
            }
            const int64_t from = first_group(w, slice, slices), end = first_group(w, slice + 1, slices);
            for (int64_t group = from; group < end; ++group) compute_group(f, group);
            for (int64_t i = 0; w.order && i < images; ++i)
                for (int64_t pixel = 0; pixel < count * c.across.out; ++pixel)
                    put_in_order(placed_y.data + (i * longest + pixel) * places, place.data,
                                 nullptr, to + (i * pixels + pixel) * w.outputs, w.outputs, past_caches);
        }
        finish_streaming();
    }
}

}  // namespace CUTWORK_ISA::conv
