// The gradient of the input as a convolution with the transposed weight, whose taps stand the other way round.
//
// It holds outputs in the lanes, where input_gradient.h holds pixels: so it also fills vectors where images are narrow
// and too deep to be folded, and reads pixels in place where units are of many channels. The price is a copy of the
// values.

#pragma once

#include "forward.h"

namespace CUTWORK_ISA::conv {

// Fewer pixels of outputs do not pay for the copy, in place and from panels.
constexpr int64_t PAYING_IN_PLACE = 32, PAYING_PIXELS = 128;

inline int64_t reach_of(const Axis& axis) { return axis.dilation * (axis.kernel - 1); }

// Whether vectors of pixels would be half empty, and the tiles of the weight are tiles of the transposed one too.
inline bool is_better_transposed(const Conv& c) {
    const Weight& w = c.weight;
    if (w.order || c.channel_groups > 1 || c.down.stride > 1 || c.across.stride > 1) return false;
    if (w.outputs % w.rows || c.channels % w.columns || w.columns % LANES) return false;
    if (reach_of(c.down) < c.down.padding || reach_of(c.across) < c.across.padding) return false;
    if (c.images * c.down.out * c.across.out < PAYING_PIXELS) return false;
    if (best_fold(c) * c.across.out > LANES / 2) return false;
    for (int64_t k = 0; k < w.ptr[w.groups]; ++k)
        if (w.col[k] % w.columns) return false;
    return true;
}

// Where the gradient of an input reads that of the outputs. With a stride, only some taps reach each place.
inline Sources sources_of_gradient(const Axis& a) {
    return Sources(
        a.size, a.kernel, a.out,
        [&](int64_t place, int64_t tap) {
            const int64_t at = place + a.padding - reach_of(a) + tap * a.dilation;
            return at < 0 || at % a.stride ? -1 : at / a.stride;
        },
        [&](int64_t place) { return place / a.stride; });
}

class Transposed {
  public:
    Transposed(const Conv& c, int threads)
        : groups(c.channels / c.weight.columns),
          units(c.weight.ptr[c.weight.groups]),
          values(units * c.weight.columns * c.weight.rows),
          ptr(groups + 1),
          col(units),
          source(units) {
        arrange(c);
        const Weight& w = c.weight;
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t k = 0; k < units; ++k) {
            const float* from = values_at<float>(w, 0) + source.data[k] * w.columns * w.rows;
            float* to = values.data + k * w.columns * w.rows;
            for (int64_t row = 0; row < w.rows; row += LANES)
                for (int64_t column = 0; column < w.columns; column += LANES) {
                    Vec block[LANES];
                    load_turned(from + column * w.rows + row, w.rows, w.columns - column, w.rows - row, block);
                    for (int64_t i = 0; i < least(LANES, w.rows - row); ++i)
                        store(to + (row + i) * w.columns + column, block[i]);
                }
        }
    }

    // It lives as long as this object does.
    Conv conv(const Conv& c) const {
        const Weight& w = c.weight;
        const Weight weight{values.data,
                            ptr.data,
                            col.data,
                            nullptr,
                            c.channels,
                            c.down.kernel * c.across.kernel * w.outputs,
                            groups,
                            w.columns,
                            w.rows};
        return {weight, turned(c.down), turned(c.across), c.images, w.outputs, 1};
    }

  private:
    static Axis turned(const Axis& axis) {
        return {axis.out, axis.size, axis.kernel, 1, reach_of(axis) - axis.padding, axis.dilation};
    }

    // Says which unit each came from. Those of a group stand tap by tap, the last tap first, since that is the first of
    // the transposed weight.
    void arrange(const Conv& c) {
        const Weight& w = c.weight;
        const int64_t taps = c.down.kernel * c.across.kernel;
        Memory<int32_t> next(groups), left(w.groups);
        std::memset(ptr.data, 0, sizeof(int32_t) * (groups + 1));
        for (int64_t k = 0; k < units; ++k) ++ptr.data[w.col[k] % c.channels / w.columns + 1];
        for (int64_t g = 0; g < groups; ++g) next.data[g] = ptr.data[g], ptr.data[g + 1] += ptr.data[g];
        for (int64_t g = 0; g < w.groups; ++g) left.data[g] = w.ptr[g + 1];
        for (int64_t tap = taps; tap-- > 0;)
            for (int64_t g = 0; g < w.groups; ++g)
                for (int32_t& k = left.data[g]; k > w.ptr[g] && w.col[k - 1] >= tap * c.channels; --k) {
                    int32_t& to = next.data[w.col[k - 1] % c.channels / w.columns];
                    col.data[to] = static_cast<int32_t>((taps - 1 - tap) * w.outputs + g * w.rows);
                    source.data[to++] = k - 1;
                }
    }

    const int64_t groups, units;
    const Scratch values;
    const Memory<int32_t> ptr, col, source;
};

}  // namespace CUTWORK_ISA::conv
