// How an image is computed: its panel, bands and folds, and where each column of values reads it.
//
// Each thread turns an image, or a band of its rows, into a panel[channel][row][column] with a margin where the kernel
// hangs over. An input of any tap then stands at a fixed distance from the pixel that the tap is for, so that a column
// of values needs nothing but this distance. With a stride, rows and columns are sorted into phases first: neighbours
// among the outputs then read neighbours. Narrow images are folded, some of them lane by lane into one wider one, so
// that a row fills a vector.

#pragma once

#include "../panels.h"

namespace CUTWORK_ISA::conv {

// What a panel may take of a cache of 1 MiB beside the next image and the values.
constexpr int64_t BAND_FLOATS = 128 << 10;
// Images are folded as long as so many folds are left to share out.
constexpr int64_t LEAST_FOLDS = 4;
// Where images alone do not share out evenly, they are cut into bands of at least so many rows of outputs, ...
constexpr int64_t LEAST_BAND_ROWS = 4;
// ... and so many bands for each thread.
constexpr int64_t BANDS_A_THREAD = 2;

// How one axis is sorted into phases: padded place p is number p / stride of phase p % stride.
struct Phases {
    explicit Phases(const Axis& axis) : slots(axis.stride), reach((axis.kernel - 1) * axis.dilation / axis.stride) {
        for (int64_t p = 0; p < axis.stride; ++p) slots.data[p] = -1;
        for (int64_t k = 0; k < axis.kernel; ++k) slots.data[k * axis.dilation % axis.stride] = 0;
        for (int64_t p = 0; p < axis.stride; ++p)
            if (slots.data[p] == 0) slots.data[p] = static_cast<int32_t>(count++);
    }
    Memory<int32_t> slots;  // where each phase stands in the panel; -1 where no tap reads it
    int64_t reach;          // how far the last tap is from the first, in places of a phase
    int64_t count = 0;
};

// Calls something with the number that `size` is, from 1 to MOST.
template <int MOST>
struct Counted {
    template <class F>
    static inline void run(int64_t size, F call) {
        if (size == MOST) call(Number<MOST>{});
        else Counted<MOST - 1>::run(size, call);
    }
};
template <>
struct Counted<0> {
    template <class F>
    static inline void run(int64_t, F) {}
};

struct Range {
    int64_t begin, end;
    bool operator==(const Range& other) const { return begin == other.begin && end == other.end; }
};

// The taps of an output that fall on padded places [low, high).
inline Range taps_between(const Axis& axis, int64_t out, int64_t low, int64_t high) {
    Range taps{0, axis.kernel};
    while (taps.begin < taps.end && out * axis.stride + taps.begin * axis.dilation < low) ++taps.begin;
    while (taps.begin < taps.end && out * axis.stride + (taps.end - 1) * axis.dilation >= high) --taps.end;
    return taps;
}

// The taps of an output that fall on the image and not on its margin.
inline Range taps_inside(const Axis& axis, int64_t out) {
    return taps_between(axis, out, axis.padding, axis.padding + axis.size);
}

// The taps of an output that fall on the image and on padded places [low, high).
inline Range taps_inside_of(const Axis& axis, int64_t out, int64_t low, int64_t high) {
    return taps_between(axis, out, most(low, axis.padding), least(high, axis.padding + axis.size));
}

// The least range that holds two.
inline Range both(Range a, Range b) {
    if (a.begin >= a.end) return b;
    return b.begin >= b.end ? a : Range{least(a.begin, b.begin), most(a.end, b.end)};
}

// The numbers in a phase that fall on the image.
inline Range inside(const Axis& axis, int64_t phase, int64_t count) {
    const int64_t first = axis.padding - phase, last = axis.size - 1 + axis.padding - phase;
    return {first <= 0 ? 0 : (first + axis.stride - 1) / axis.stride,
            last < 0 ? 0 : least(count, last / axis.stride + 1)};
}

// How many floats of a panel one row of outputs needs.
inline int64_t floats_of_row(const Conv& c) {
    const Phases down(c.down), across(c.across);
    return down.count * across.count * (c.across.out + across.reach) * (c.channels + 1);
}

// How many images to fold: as many as make a row fill two vectors, and fit, and leave enough folds to share out. Two
// vectors, so that the first and the last row, which have fewer taps, need no company.
inline int64_t best_fold(const Conv& c) {
    const int64_t image = (c.down.out + Phases(c.down).reach) * floats_of_row(c);
    int64_t fold = 1;
    if (c.across.out > LANES / 2) return fold;
    while (fold * c.across.out <= LANES && 2 * fold * LEAST_FOLDS <= c.images && 2 * fold * image <= BAND_FLOATS)
        fold *= 2;
    return fold;
}

// How many floats of dy one row of outputs needs beside the panel. Folded images count for none: they are small, and
// the next are fetched only where they stay whole.
inline int64_t floats_of_dy(const Conv& c) {
    return best_fold(c) == 1 ? c.across.out * c.weight.groups * c.weight.rows : 0;
}

// How many rows of outputs a band may have, if each takes some floats beside those of the panel.
inline int64_t rows_that_fit(const Conv& c, int64_t halo, int64_t beside) {
    const int64_t row = floats_of_row(c) * best_fold(c);
    return least(c.down.out, most(1, (BAND_FLOATS - halo * row) / (row + beside)));
}

// Into how many bands an image is cut so that a panel fits and all threads have something to do.
inline int64_t bands_for(const Conv& c, int64_t halo, int64_t threads, int64_t beside = 0) {
    const int64_t fitting = rows_that_fit(c, halo, beside), bands = (c.down.out + fitting - 1) / fitting;
    const int64_t folds = c.images / best_fold(c);
    if (!folds || folds % threads == 0) return bands;
    return most(bands, least((c.down.out + LEAST_BAND_ROWS - 1) / LEAST_BAND_ROWS,
                             (BANDS_A_THREAD * threads + folds - 1) / folds));
}

// Where everything stands in a panel, and where each column of values reads it.
struct Plan {
    const Conv& c;
    const Phases down, across;
    int64_t fold, folds;
    int64_t bands;   // of how many rows of outputs each image is made
    int64_t before;  // rows of outputs before those of a band whose inputs the panel also holds
    int64_t height, width;  // numbers of each phase
    int64_t row_stride, channel_stride, floats;
    Memory<int32_t> offsets;  // [units * columns]: from a pixel to the input of a column of values
    Memory<int64_t> bounds;   // [groups, kernel rows + 1]: the first column of values that is for each kernel row
    Memory<int32_t> taps;     // [taps]

    Plan(const Conv& conv, int64_t wanted_bands, int64_t halo)
        : c(conv), down(c.down), across(c.across), fold(best_fold(c)), folds((c.images + fold - 1) / fold),
          bands(wanted_bands), before(halo),
          height((c.down.out + bands - 1) / bands + before + down.reach), width(c.across.out + across.reach),
          row_stride(across.count * width * fold),
          // An odd number of cache lines: rows of channels that lie a power of two apart share few places of a cache.
          channel_stride(rounded_up(down.count * height * row_stride, 2 * LINE) - LINE),
          offsets(c.weight.ptr[c.weight.groups] * c.weight.columns), bounds(c.weight.groups * (c.down.kernel + 1)),
          taps(c.down.kernel * c.across.kernel) {
        if (channel_stride < down.count * height * row_stride) channel_stride += 2 * LINE;
        // One channel of zeros where runs hang over, and what tiles may read behind the last.
        floats = (c.channels + 1) * channel_stride + row_stride + 2 * LINE;
        for (int64_t y = 0; y < c.down.kernel; ++y)
            for (int64_t x = 0; x < c.across.kernel; ++x) {
                const int64_t row = place(down, c.down, y, height), column = place(across, c.across, x, width);
                taps.data[y * c.across.kernel + x] = static_cast<int32_t>(row * row_stride + column * fold);
            }
    }

    int64_t lanes() const { return c.across.out * fold; }
    int64_t tiles_of_row() const { return (lanes() + LANES - 1) / LANES; }
    // Into how many slices of at most 2 vectors the outputs of a group fall.
    int64_t slices() const { return (c.weight.rows + 2 * LANES - 1) / (2 * LANES); }

    // Work comes in bands of folds of images.
    int64_t items() const { return folds * bands; }
    int64_t image(int64_t item) const { return item / bands * fold; }
    int64_t images(int64_t item) const { return least(fold, c.images - image(item)); }
    Share band(int64_t item) const { return Share(c.down.out, item % bands, bands); }

    // The rows of x that a band of outputs reads.
    Range rows_read(Share band) const {
        const Axis& r = c.down;
        const int64_t first = band.begin * r.stride - r.padding, last = (band.end - 1) * r.stride - r.padding;
        return {clamped(first, r.size), clamped(last + (r.kernel - 1) * r.dilation + 1, r.size)};
    }
    // Fetches what the next item reads of x, or of dy, if it lies together.
    Fetch fetch_x(int64_t item, const float* x, int64_t steps) const {
        return fetch(item, x, c.down.size, c.across.size * c.channels, rows_read(band(item + 1)), steps);
    }
    Fetch fetch_dy(int64_t item, const float* dy, int64_t steps) const {
        const Share next = band(item + 1);
        return fetch(item, dy, c.down.out, c.across.out * c.weight.outputs, {next.begin, next.end}, steps);
    }

    void locate(int64_t group) const {
        const Weight& w = c.weight;
        const int64_t channels = c.channels / c.channel_groups,
                      first = group * w.rows * c.channel_groups / w.outputs * channels;
        const int64_t row_columns = c.across.kernel * channels, end = w.ptr[group + 1];
        int64_t* bound = bounds.data + group * (c.down.kernel + 1);
        int64_t kernel_row = 0;
        int32_t* to = offsets.data + w.ptr[group] * w.columns;
        for (int64_t k = w.ptr[group]; k < end; ++k) {
            int64_t tap = w.col[k] / channels, channel = w.col[k] % channels;
            for (int64_t j = 0; j < w.columns; ++j, ++channel) {
                if (channel == channels) channel = 0, ++tap;
                const int64_t column = w.col[k] + j;
                while (kernel_row < c.down.kernel && column < w.inputs && column >= kernel_row * row_columns)
                    bound[kernel_row++] = k * w.columns + j;
                *to++ = static_cast<int32_t>(column < w.inputs ? taps.data[tap] + (first + channel) * channel_stride
                                                               : c.channels * channel_stride);
            }
        }
        while (kernel_row <= c.down.kernel) bound[kernel_row++] = end * w.columns;
    }

    Range values(int64_t group, Range taps) const {
        const int64_t* bound = bounds.data + group * (c.down.kernel + 1);
        return {bound[taps.begin], bound[taps.end]};
    }

  private:
    Fetch fetch(int64_t item, const float* from, int64_t height, int64_t row_floats, Range rows, int64_t steps) const {
        if (!from || item + 1 >= items() || (bands > 1 && fold > 1)) return Fetch(nullptr, 0, steps);
        const int64_t count = bands > 1 ? rows.end - rows.begin : images(item + 1) * height;
        return Fetch(from + (image(item + 1) * height + rows.begin) * row_floats, count * row_floats, steps);
    }

    static int64_t place(const Phases& phases, const Axis& axis, int64_t tap, int64_t numbers) {
        const int64_t at = tap * axis.dilation;
        return phases.slots.data[at % axis.stride] * numbers + at / axis.stride;
    }
};

// Where LANES lanes of a row of folded images[count][.., width, channels] lie, and how many of them really.
struct Lanes {
    const float* at[LANES];
    bool all = true;

    // Lane l of `end` is column l / fold * step + shift of image l % fold.
    Lanes(const float* row, int64_t image, int64_t images, int64_t fold, int64_t first, int64_t end, int64_t step,
          int64_t shift) {
        for (int64_t t = 0; t < LANES; ++t) {
            const int64_t lane = first + t;
            const bool is_there = lane < end && lane % fold < images;
            at[t] = is_there ? row + lane % fold * image + lane / fold * step + shift : nullptr;
            all &= is_there;
        }
    }

    // LANES channels of each, turned: what is not there is zero.
    void load_turned(int64_t channel, int64_t channels, Vec (&block)[LANES]) const {
        if (all && channels - channel >= LANES) {
            for (int t = 0; t < LANES; ++t) block[t] = load<Vec>(at[t] + channel);
        } else {
            for (int64_t t = 0; t < LANES; ++t) {
                float some[LANES] = {};
                if (at[t]) std::memcpy(some, at[t] + channel, sizeof(float) * least(LANES, channels - channel));
                block[t] = load<Vec>(some);
            }
        }
        transpose(block);
    }
};

// The part of images x[images][height, width, channels] that outputs from row `first` on read, as a panel. The margins
// at the sides stay zero, as they were made; those above and below are never read.
void pack_images(const Plan& p, const float* x, int64_t images, int64_t first, float* panel) {
    const Conv& c = p.c;
    const int64_t row_floats = c.across.size * c.channels, image = c.down.size * row_floats;
    for (int64_t phase = 0; phase < c.down.stride; ++phase) {
        const int64_t slot = p.down.slots.data[phase];
        if (slot < 0) continue;
        for (int64_t i = 0; i < p.height; ++i) {
            const int64_t row = (first + i) * c.down.stride + phase - c.down.padding;
            if (row < 0 || row >= c.down.size) continue;
            for (int64_t side = 0; side < c.across.stride; ++side) {
                const int64_t place = p.across.slots.data[side];
                if (place < 0) continue;
                const Range numbers = inside(c.across, side, p.width);
                const int64_t begin = numbers.begin * p.fold, end = numbers.end * p.fold;
                const int64_t at = (slot * p.height + i) * p.row_stride + place * p.width * p.fold;
                for (int64_t lane = begin; lane < end; lane += LANES) {
                    // Rather once more than a part: parts are slow.
                    const int64_t from = end - begin >= LANES ? least(lane, end - LANES) : lane;
                    const Lanes lanes(x + row * row_floats, image, images, p.fold, from, end,
                                      c.across.stride * c.channels, (side - c.across.padding) * c.channels);
                    const int64_t room = p.channel_stride - at - from;
                    float* to = panel + at + from;
                    for (int64_t c0 = 0; c0 < c.channels; c0 += LANES, to += LANES * p.channel_stride) {
                        Vec block[LANES];
                        lanes.load_turned(c0, c.channels, block);
                        if (c.channels - c0 >= LANES && room >= LANES) {
                            for (int k = 0; k < LANES; ++k) store(to + k * p.channel_stride, block[k]);
                        } else {
                            // What is behind the lanes is the margin, or the next channel's.
                            for (int64_t k = 0; k < least(LANES, c.channels - c0); ++k)
                                std::memcpy(to + k * p.channel_stride, &block[k],
                                            sizeof(float) * (room >= LANES ? LANES : least(LANES, end - from)));
                        }
                    }
                }
            }
        }
    }
}

}  // namespace CUTWORK_ISA::conv
