// The gradient of the values: sums over the pixels of a strip at a time.

#pragma once

#include "plan.h"

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

void weight_gradient(const Conv& c, const float* x, const float* dy, float* dw, int threads) {
    const Weight& w = c.weight;
    const int64_t image = c.down.size * c.across.size * c.channels, pixels = c.down.out * c.across.out;
    const int64_t floats = w.ptr[w.groups] * w.columns * w.rows;
    if (!is_worth_sharing(w, c.images * pixels)) threads = 1;
    // The order of the sums depends on the bands and on the heaps of images, so neither may depend on the threads.
    const Plan plan(c, bands_for(c, Phases(c.down).reach, 1, floats_of_dy(c)), 0);
    const int64_t items = plan.items(),
                  heaps = most(1, least(least(MOST_HEAPS, items), c.images * pixels / HEAP_PIXELS));
    const int64_t padded = rounded_up(plan.lanes(), 2);
    const int64_t most_pixels = (c.down.out + plan.bands - 1) / plan.bands * padded;
    const int64_t strip_floats = w.groups * w.rows * most_pixels, strip_bytes = sizeof(float) * strip_floats;
    int64_t slices = 1;
    while (heaps * slices % threads && slices < threads) ++slices;
    Scratch partial((heaps - 1) * floats);
    auto heap_of = [&](int64_t heap) { return heap ? partial.data + (heap - 1) * floats : dw; };
#pragma omp parallel num_threads(threads)
    {
        Scratch panel(plan.floats), strips_of_dy(strip_floats);
        std::memset(panel.data, 0, sizeof(float) * plan.floats);
        std::memset(strips_of_dy.data, 0, strip_bytes);
#pragma omp for
        for (int64_t group = 0; group < w.groups; ++group) plan.locate(group);
#pragma omp for schedule(static)
        for (int64_t job = 0; job < heaps * slices; ++job) {
            const int64_t heap = job / slices, slice = job % slices;
            const int64_t from = first_group(w, slice, slices), end = first_group(w, slice + 1, slices);
            const int64_t row = w.columns * w.rows;
            std::memset(heap_of(heap) + w.ptr[from] * row, 0, sizeof(float) * (w.ptr[end] - w.ptr[from]) * row);
            const Share part(items, heap, heaps);
            for (int64_t item = part.begin; item < part.end; ++item) {
                const int64_t index = plan.image(item), images = plan.images(item), output = pixels * w.outputs;
                const Share band = plan.band(item);
                const int64_t steps = (w.ptr[end] - w.ptr[from]) * w.columns * plan.slices() * (band.end - band.begin);
                Fetch fetch(plan.fetch_x(item, x, steps), plan.fetch_dy(item, dy, steps));
                pack_images(plan, x + index * image, images, band.begin, panel.data);
                const Strips strips{plan,   panel.data, strips_of_dy.data,     most_pixels,
                                    padded, band.begin, band.end - band.begin, fetch};
                if (images < plan.fold) std::memset(strips_of_dy.data, 0, strip_bytes);
                for (int64_t row = 0; row < strips.count; ++row)
                    pack_strips(strips, {from, end}, row, dy + index * output, images);
                for (int64_t group = from; group < end; ++group)
                    each_slice(w.rows, [&](auto slice, int64_t offset) {
                        sum_slice(strips, slice, group, offset, heap_of(heap));
                    });
            }
        }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < (floats + BLOCK - 1) / BLOCK; ++block)
            for (int64_t heap = 1; heap < heaps; ++heap)
                for (int64_t i = block * BLOCK; i < least(floats, (block + 1) * BLOCK); ++i) dw[i] += heap_of(heap)[i];
    }
}

}  // namespace CUTWORK_ISA::conv
