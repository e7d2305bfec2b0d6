// The gradient of the values of units of many channels: for each tap a sum over pairs of pixels, of x and of dy.
//
// Both are copied so that the channels of a unit, and the outputs of a slice, lie together pixel by pixel: some of them
// then fill the first cache while all columns of a unit are summed.

#pragma once

#include "in_place.h"

namespace CUTWORK_ISA::conv {

// Pairs of which both pixels, of 32 channels and of 32 outputs, nearly fill a first cache of 32 KiB.
constexpr int64_t PAIRS = 112;

// Floats from the first pixel of a run of channels of x, and from that of a slice of one vector of dy.
struct Pair {
    int32_t x, dy;
};

// Adds the sum over some pairs to C columns of a unit at N vectors of outputs.
template <int N, int C>
__attribute__((noinline)) void add_pairs(const float* x, const float* dy, const Pair* pair, const Pair* end, float* dw,
                                         int64_t step) {
    Vec acc[C][N];
    for (int c = 0; c < C; ++c)
        for (int n = 0; n < N; ++n) acc[c][n] = load<Vec>(dw + c * step + n * LANES);
    for (; pair < end; ++pair) {
        const float *a = x + pair->x, *d = dy + int64_t(pair->dy) * N;
        Vec v[N];
        for (int n = 0; n < N; ++n) v[n] = load<Vec>(d + n * LANES);
        for (int c = 0; c < C; ++c)
            for (int n = 0; n < N; ++n) acc[c][n] += a[c] * v[n];
    }
    for (int c = 0; c < C; ++c)
        for (int n = 0; n < N; ++n) store(dw + c * step + n * LANES, acc[c][n]);
}

// Some images, or a band of rows of one, as copies: x run by run, dy slice by slice.
struct Copies {
    const Conv& c;
    const Phases down, across;
    const int64_t taps, room;  // for so many pixels of x
    Scratch x, dy;
    Memory<Pair> pairs;
    Memory<int64_t> starts;  // [taps + 1]: which of the pairs belong to each tap
    int64_t pixels_of_x = 0, pixels_of_dy = 0;

    Copies(const Conv& conv, int64_t images, int64_t rows)
        : c(conv), down(c.down), across(c.across), taps(c.down.kernel * c.across.kernel),
          room(images * least(c.down.size, (rows - 1) * c.down.stride + (c.down.kernel - 1) * c.down.dilation + 1) *
               c.across.size),
          x(room * c.channels), dy(images * rows * c.across.out * c.weight.outputs),
          pairs(images * rows * c.across.out * taps), starts(taps + 1) {}

    // `groups` are those of which dy is needed.
    void take(const float* all_x, const float* all_dy, Share images, Share rows, Range groups) {
        const Axis& a = c.down;
        const Range read{clamped(rows.begin * a.stride - a.padding, a.size),
                         clamped((rows.end - 1) * a.stride - a.padding + (a.kernel - 1) * a.dilation + 1, a.size)};
        const int64_t height = read.end - read.begin, band = rows.end - rows.begin;
        pixels_of_x = (images.end - images.begin) * height * c.across.size;
        pixels_of_dy = (images.end - images.begin) * band * c.across.out;
        for (int64_t image = images.begin; image < images.end; ++image) {
            for (int64_t row = read.begin; row < read.end; ++row)
                if (down.slots.data[(row + a.padding) % a.stride] >= 0)
                    copy_x(all_x + (image * a.size + row) * c.across.size * c.channels,
                           ((image - images.begin) * height + row - read.begin) * c.across.size);
            copy_dy(all_dy + (image * a.out + rows.begin) * c.across.out * c.weight.outputs,
                    (image - images.begin) * band * c.across.out, band * c.across.out, groups);
        }
        list_pairs(images.end - images.begin, rows, read);
    }

    // The channels that a unit reads.
    const float* run(int64_t channel) const { return x.data + channel * pixels_of_x; }
    // Outputs from `o` on.
    const float* slice(int64_t o) const { return dy.data + o * pixels_of_dy; }

  private:
    void copy_x(const float* row, int64_t pixel) {
        const int64_t columns = c.weight.columns;
        for (int64_t column = 0; column < c.across.size; ++column, row += c.channels) {
            if (across.slots.data[(column + c.across.padding) % c.across.stride] < 0) continue;
            float* to = x.data + (pixel + column) * columns;
            for (int64_t channel = 0; channel < c.channels; channel += columns, to += pixels_of_x * columns)
                for (int64_t i = 0; i < columns; i += LANES) store(to + i, load<Vec>(row + channel + i));
        }
    }

    void copy_dy(const float* from, int64_t pixel, int64_t count, Range groups) {
        const Weight& w = c.weight;
        for (int64_t i = 0; i < count; ++i, from += w.outputs)
            for (int64_t group = groups.begin; group < groups.end; ++group)
                for (int64_t o = 0; o < w.rows;) {
                    const int64_t width = w.rows - o >= 2 * LANES ? 2 * LANES : LANES;
                    float* to = dy.data + (group * w.rows + o) * pixels_of_dy + (pixel + i) * width;
                    for (int64_t end = o + width; o < end; o += LANES, to += LANES)
                        store(to, load<Vec>(from + group * w.rows + o));
                }
    }

    void list_pairs(int64_t images, Share rows, Range read) {
        Pair* to = pairs.data;
        const int64_t height = read.end - read.begin, columns = c.weight.columns;
        for (int64_t tap = 0; tap < taps; ++tap) {
            starts.data[tap] = to - pairs.data;
            const int64_t down_by = tap / c.across.kernel * c.down.dilation - c.down.padding,
                          across_by = tap % c.across.kernel * c.across.dilation - c.across.padding;
            for (int64_t image = 0; image < images; ++image)
                for (int64_t row = rows.begin; row < rows.end; ++row) {
                    const int64_t h = row * c.down.stride + down_by;
                    if (h < 0 || h >= c.down.size) continue;
                    const int64_t first_x = (image * height + h - read.begin) * c.across.size,
                                  first_dy = (image * (rows.end - rows.begin) + row - rows.begin) * c.across.out;
                    for (int64_t column = 0; column < c.across.out; ++column) {
                        const int64_t v = column * c.across.stride + across_by;
                        if (v < 0 || v >= c.across.size) continue;
                        *to++ = {static_cast<int32_t>((first_x + v) * columns),
                                 static_cast<int32_t>((first_dy + column) * LANES)};
                    }
                }
        }
        starts.data[taps] = to - pairs.data;
    }
};

// Adds the sum over some pairs to all columns of a unit at N vectors of outputs, at most MOST columns at a time.
template <int N, int MOST>
void add_to_slice(const Weight& w, const float* x, const float* dy, const Pair* pair, const Pair* end, float* dw) {
    const int64_t parts = (w.columns + MOST - 1) / MOST;
    for (int64_t part = 0; part < parts; ++part) {
        const Share share(w.columns, part, parts);
        Counted<MOST>::run(share.end - share.begin, [&](auto number) {
            add_pairs<N, decltype(number)::value>(x + share.begin, dy, pair, end, dw + share.begin * w.rows, w.rows);
        });
    }
}

// Adds what some images contribute to the values of a unit whose outputs begin at `first`.
void sum_unit(const Copies& s, int64_t unit, int64_t first, float* dw) {
    const Weight& w = s.c.weight;
    const int64_t tap = w.col[unit] / s.c.channels;
    const float* x = s.run(w.col[unit] % s.c.channels);
    const Pair* pairs = s.pairs.data + s.starts.data[tap];
    const int64_t count = s.starts.data[tap + 1] - s.starts.data[tap], blocks = (count + PAIRS - 1) / PAIRS;
    for (int64_t block = 0; block < blocks; ++block) {
        const Share some(count, block, blocks);
        const Pair *pair = pairs + some.begin, *end = pairs + some.end;
        int64_t o = 0;
        for (; o + 2 * LANES <= w.rows; o += 2 * LANES)
            add_to_slice<2, COLUMNS_2>(w, x, s.slice(first + o), pair, end, dw + o);
        for (; o < w.rows; o += LANES) add_to_slice<1, COLUMNS_1>(w, x, s.slice(first + o), pair, end, dw + o);
    }
}

}  // namespace CUTWORK_ISA::conv
