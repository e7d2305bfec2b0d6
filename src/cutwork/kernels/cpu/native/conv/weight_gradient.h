// The gradient of the values: sums over the pixels of a strip at a time.

#pragma once

#include "pairs.h"

namespace CUTWORK_ISA::conv {

// Floats of a gradient that lie together in the first cache.
constexpr int64_t STRIP = 8 << 10;
// Images are summed in so many heaps, which threads share out, of at least so many pixels each.
constexpr int64_t MOST_HEAPS = 4, HEAP_PIXELS = 2048;
// Floats of a gradient that a thread takes of all heaps at a time.
constexpr int64_t BLOCK = 1024;

// Adds the sum over some rows of pixels to C columns of values: places of the panel times the strip [pixel][N vectors].
// A function of its own, because inside another its pointers find no registers: 0.9 times as fast.
template <class V, int N, int C>
__attribute__((noinline)) void add_products(const float* panel, const int32_t* offsets, int64_t row_stride,
                                            const float* strip, int64_t rows, int64_t columns, float* dw, int64_t step,
                                            Fetch& fetch) {
    constexpr int64_t lanes = sizeof(V) / sizeof(float);
    const float* x[C];
    V acc[C][N];
    for (int c = 0; c < C; ++c) {
        x[c] = panel + offsets[c];
        for (int n = 0; n < N; ++n) acc[c][n] = load<V>(dw + c * step + n * lanes);
    }
    for (int64_t row = 0; row < rows; ++row) {
        fetch.go(C);
        for (int64_t t = 0; t < columns; t += 2, strip += 2 * N * lanes) {
            const int64_t at = row * row_stride + t;
            V d[2][N];
            for (int i = 0; i < 2; ++i)
                for (int n = 0; n < N; ++n) d[i][n] = load<V>(strip + (i * N + n) * lanes);
            for (int c = 0; c < C; ++c)
                for (int i = 0; i < 2; ++i)
                    for (int n = 0; n < N; ++n) acc[c][n] += x[c][at + i] * d[i][n];
        }
    }
    for (int c = 0; c < C; ++c)
        for (int n = 0; n < N; ++n) store(dw + c * step + n * lanes, acc[c][n]);
}

// Outputs of a group that are computed together: N vectors of them, beside at most MOST columns of values.
template <class V, int N, int MOST>
struct Slice {
    typedef V Vector;
    static constexpr int64_t vectors = N, vector = sizeof(V) / sizeof(float), width = N * vector, columns = MOST;
};

// Calls something with each slice of a group and its offset.
template <class F>
inline void each_slice(int64_t rows, F call) {
    int64_t o = 0;
    for (; o + 2 * LANES <= rows; o += 2 * LANES) call(Slice<Vec, 2, COLUMNS_2>{}, o);
    for (; o + LANES <= rows; o += LANES) call(Slice<Vec, 1, COLUMNS_1>{}, o);
    if constexpr (LANES > 8)
        for (; o + 8 <= rows; o += 8) call(Slice<VectorOf<8>::Floats, 1, COLUMNS_PART>{}, o);
    if constexpr (LANES > 4)
        for (; o + 4 <= rows; o += 4) call(Slice<VectorOf<4>::Floats, 1, COLUMNS_PART>{}, o);
    for (; o < rows; ++o) call(Slice<float, 1, COLUMNS_PART>{}, o);
}

// The images of a band: x as a panel, dy slice by slice as [pixel][width].
struct Strips {
    const Plan& p;
    const float* panel;
    float* strips;
    int64_t pixels;        // that each strip has room for
    int64_t padded;        // lanes of a row, an even number
    int64_t first, count;  // rows of outputs
    Fetch& fetch;

    inline float* strip(int64_t o, int64_t row, int64_t width) const {
        return strips + o * pixels + row * padded * width;
    }
};

// The slices of some groups at one row of images. What is not there stays zero, as it was made.
void pack_strips(const Strips& s, Range groups, int64_t row, const float* dy, int64_t images) {
    const Conv& c = s.p.c;
    const Weight& w = c.weight;
    for (int64_t group = groups.begin; group < groups.end; ++group)
        each_slice(w.rows, [&](auto slice, int64_t offset) {
            typedef decltype(slice) S;
            const int64_t o = group * w.rows + offset, there = clamped(w.outputs - o, S::width), fold = s.p.fold;
            for (int64_t image = 0; image < images; ++image) {
                const float* from = dy + (image * c.down.out + s.first + row) * c.across.out * w.outputs;
                float* to = s.strip(o, row, S::width) + image * S::width;
                for (int64_t column = 0; column < c.across.out; ++column, from += w.outputs, to += fold * S::width) {
                    if (!w.order && there == S::width)
                        for (int64_t i = 0; i < S::width; i += S::vector)
                            store(to + i, load<typename S::Vector>(from + o + i));
                    else
                        for (int64_t i = 0; i < there; ++i) to[i] = from[w.order ? w.order[o + i] : o + i];
                }
            }
        });
}

// All values of one slice of a group, in equal parts of columns.
template <class S>
void sum_slice(const Strips& s, S, int64_t group, int64_t offset, float* dw) {
    const Plan& p = s.p;
    const Conv& c = p.c;
    const Weight& w = c.weight;
    const int64_t rows_together = most(1, STRIP / (s.padded * S::width));
    for (int64_t first = 0; first < s.count; first += rows_together) {
        const int64_t rows = least(rows_together, s.count - first);
        for (int64_t tap = 0; tap < c.down.kernel; ++tap) {
            const Range values = p.values(group, {tap, tap + 1});
            // Rows for which this tap falls on the margin add nothing.
            Range inside{first, first + rows};
            auto falls_inside = [&](int64_t row) {
                const Range taps = taps_inside(c.down, s.first + row);
                return taps.begin <= tap && tap < taps.end;
            };
            while (inside.begin < inside.end && !falls_inside(inside.begin)) ++inside.begin;
            while (inside.begin < inside.end && !falls_inside(inside.end - 1)) --inside.end;
            if (inside.begin == inside.end || values.begin == values.end) continue;
            const int64_t count = values.end - values.begin, parts = (count + S::columns - 1) / S::columns;
            const float* panel = s.panel + inside.begin * p.row_stride;
            const float* strip = s.strip(group * w.rows + offset, inside.begin, S::width);
            for (int64_t part = 0; part < parts; ++part) {
                const Share share(count, part, parts);
                const int64_t r = values.begin + share.begin;
                Counted<S::columns>::run(share.end - share.begin, [&](auto number) {
                    add_products<typename S::Vector, S::vectors, decltype(number)::value>(
                        panel, p.offsets.data + r, p.row_stride, strip, inside.end - inside.begin, s.padded,
                        dw + r * w.rows + offset, w.rows, s.fetch);
                });
            }
        }
    }
}

// What a thread sums with strips.
struct StripSums {
    const Plan& p;
    const float *x, *dy;
    const int64_t padded;  // lanes of a row, an even number
    const int64_t pixels;  // that each strip has room for
    const int64_t strip_floats;
    Scratch panel, strips;

    StripSums(const Plan& plan, const float* all_x, const float* all_dy)
        : p(plan), x(all_x), dy(all_dy), padded(rounded_up(p.lanes(), 2)),
          pixels((p.c.down.out + p.bands - 1) / p.bands * padded),
          strip_floats(p.c.weight.groups * p.c.weight.rows * pixels), panel(p.floats), strips(strip_floats) {
        std::memset(panel.data, 0, sizeof(float) * p.floats);
        std::memset(strips.data, 0, sizeof(float) * strip_floats);
#pragma omp for
        for (int64_t group = 0; group < p.c.weight.groups; ++group) p.locate(group);
    }

    void add(int64_t item, Range groups, float* dw) const {
        const Conv& c = p.c;
        const Weight& w = c.weight;
        const int64_t index = p.image(item), images = p.images(item);
        const Share band = p.band(item);
        const int64_t count = band.end - band.begin;
        const int64_t steps = (w.ptr[groups.end] - w.ptr[groups.begin]) * w.columns * p.slices() * count;
        Fetch fetch(p.fetch_x(item, x, steps), p.fetch_dy(item, dy, steps));
        pack_images(p, x + index * c.down.size * c.across.size * c.channels, images, band.begin, panel.data);
        const Strips all{p, panel.data, strips.data, pixels, padded, band.begin, count, fetch};
        if (images < p.fold) std::memset(strips.data, 0, sizeof(float) * strip_floats);
        for (int64_t row = 0; row < count; ++row)
            pack_strips(all, groups, row, dy + index * c.down.out * c.across.out * w.outputs, images);
        for (int64_t group = groups.begin; group < groups.end; ++group)
            each_slice(w.rows, [&](auto slice, int64_t offset) { sum_slice(all, slice, group, offset, dw); });
    }
};

// What a thread sums with pairs.
struct PairSums {
    const Conv& c;
    const float *x, *dy;
    const Items& items;
    Copies copies;

    PairSums(const Conv& conv, const Items& all_items, const float* all_x, const float* all_dy)
        : c(conv), x(all_x), dy(all_dy), items(all_items), copies(c, items.most_images(), items.most_rows()) {}

    void add(int64_t item, Range groups, float* dw) {
        copies.take(x, dy, items.images(item), items.rows(item), groups);
        const Weight& w = c.weight;
        for (int64_t group = groups.begin; group < groups.end; ++group)
            for (int64_t unit = w.ptr[group]; unit < w.ptr[group + 1]; ++unit)
                sum_unit(copies, unit, group * w.rows, dw + unit * w.columns * w.rows);
    }
};

// Adds up what all items contribute, which `make()` sums, for each thread anew. The order of the sums depends on the
// items and on the heaps of them, so neither may depend on the threads.
template <class Make>
void sum_in_heaps(const Conv& c, int64_t items, float* dw, int threads, Make make) {
    const Weight& w = c.weight;
    const int64_t floats = w.ptr[w.groups] * w.columns * w.rows;
    const int64_t heaps =
        most(1, least(least(MOST_HEAPS, items), c.images * c.down.out * c.across.out / HEAP_PIXELS));
    int64_t slices = 1;
    while (heaps * slices % threads && slices < threads) ++slices;
    Scratch partial((heaps - 1) * floats);
    auto heap_of = [&](int64_t heap) { return heap ? partial.data + (heap - 1) * floats : dw; };
#pragma omp parallel num_threads(threads)
    {
        auto sums = make();
#pragma omp for schedule(static)
        for (int64_t job = 0; job < heaps * slices; ++job) {
            const int64_t heap = job / slices, slice = job % slices, row = w.columns * w.rows;
            const Range groups{first_group(w, slice, slices), first_group(w, slice + 1, slices)};
            std::memset(heap_of(heap) + w.ptr[groups.begin] * row, 0,
                        sizeof(float) * (w.ptr[groups.end] - w.ptr[groups.begin]) * row);
            const Share part(items, heap, heaps);
            for (int64_t item = part.begin; item < part.end; ++item) sums.add(item, groups, heap_of(heap));
        }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < (floats + BLOCK - 1) / BLOCK; ++block)
            for (int64_t heap = 1; heap < heaps; ++heap)
                for (int64_t i = block * BLOCK; i < least(floats, (block + 1) * BLOCK); ++i) dw[i] += heap_of(heap)[i];
    }
}

void weight_gradient(const Conv& c, const float* x, const float* dy, float* dw, int threads) {
    if (!is_worth_sharing(c.weight, c.images * c.down.out * c.across.out)) threads = 1;
    if (is_read_in_place(c)) {
        const Items items(c.images, c.down.size * c.across.size * c.channels, c.down.out, c.across.out, 1);
        return sum_in_heaps(c, items.count(), dw, threads, [&] { return PairSums(c, items, x, dy); });
    }
    const Plan plan(c, bands_for(c, Phases(c.down).reach, 1, floats_of_dy(c)), 0);
    sum_in_heaps(c, plan.items(), dw, threads, [&] { return StripSums(plan, x, dy); });
}

}  // namespace CUTWORK_ISA::conv
