// The gradient of the input: adds into a panel instead of reading it.

#pragma once

#include "transposed.h"

namespace CUTWORK_ISA::conv {

// Fewer images than this are cut into bands for so many threads, however many there are.
constexpr int64_t SHARERS = 4;

// LANES lanes of a row of outputs.
struct Pixels {
    int64_t at;  // in the panel
    Range taps;
};

struct Spread {
    const Plan& p;
    const Pixels* tiles;
    const float* dy;  // [tiles][places][LANES]
    float* panel;
    Fetch& fetch;
};

// Adds to the panel what B outputs of one group contribute at T tiles from `tile` on.
template <int T, int B>
void spread_slice(const Spread& s, int64_t group, int64_t offset, int64_t tile) {
    const Weight& w = s.p.c.weight;
    Range taps{0, 0};
    float* panels[T];
    Vec dy[B][T];
    for (int t = 0; t < T; ++t) {
        const Pixels& pixels = s.tiles[tile + t];
        taps = both(taps, pixels.taps);
        panels[t] = s.panel + pixels.at;
        for (int b = 0; b < B; ++b)
            dy[b][t] = load<Vec>(s.dy + (((tile + t) * w.groups + group) * w.rows + offset + b) * LANES);
    }
    if (taps.begin >= taps.end) return;
    const Range values = s.p.values(group, taps);
    s.fetch.go(B * T);
    const float* from = values_at<float>(w, 0) + values.begin * w.rows + offset;
    const int32_t *at = s.p.offsets.data + values.begin, *end = s.p.offsets.data + values.end;
    const int64_t step = w.rows;
    for (; at < end; ++at, from += step) {
        const int64_t place = *at;
        Vec acc[T];
        for (int t = 0; t < T; ++t) acc[t] = load<Vec>(panels[t] + place);
        // Else dy would be read from memory, not from registers.
#pragma GCC unroll 16
        for (int b = 0; b < B; ++b)
            for (int t = 0; t < T; ++t) acc[t] += from[b] * dy[b][t];
        // In the order of memory: what a tile holds behind its pixels is what stood there before those of the next.
        for (int t = 0; t < T; ++t) store(panels[t] + place, acc[t]);
    }
}

// All outputs of a group at T tiles; B at a time, as many as the registers hold.
template <int T, int B>
void spread_tiles(const Spread& s, int64_t group, int64_t tile) {
    const int64_t rows = s.p.c.weight.rows;
    int64_t o = 0;
    for (; o + B <= rows; o += B) spread_slice<T, B>(s, group, o, tile);
    for (; o + 4 <= rows; o += 4) spread_slice<T, 4>(s, group, o, tile);
    for (; o < rows; ++o) spread_slice<T, 1>(s, group, o, tile);
}

// All outputs of a group at some tiles, about equally many at a time: one read of a value serves all of them.
void spread_group(const Spread& s, int64_t group, int64_t count) {
    for (int64_t begin = 0; begin < count;) {
        int64_t end = begin + 1;
        while (end < count && s.tiles[begin].taps == s.tiles[end].taps) ++end;
        const int64_t parts = (end - begin + VECTORS - 1) / VECTORS;
        for (int64_t part = 0; part < parts; ++part) {
            const Share share(end - begin, part, parts);
            const int64_t tile = begin + share.begin, size = share.end - share.begin;
            Counted<VECTORS>::run(size, [&](auto number) {
                constexpr int T = decltype(number)::value;
                spread_tiles<T, T == 1 ? 2 * OUTPUTS : OUTPUTS>(s, group, tile);
            });
        }
        begin = end;
    }
}

// One tile of gradients, turned: to[place][LANES].
void pack_pixels(const Lanes& lanes, int64_t outputs, const int32_t* place, float* to) {
    for (int64_t o = 0; o < outputs; o += LANES) {
        Vec block[LANES];
        lanes.load_turned(o, outputs, block);
        for (int64_t b = 0; b < least(LANES, outputs - o); ++b)
            store(to + (place ? place[o + b] : o + b) * LANES, block[b]);
    }
}

// The rows [low, high) of padded places of images dx[images][height, width, channels] out of a panel.
void unpack_images(const Plan& p, const float* panel, int64_t first, int64_t low, int64_t high, int64_t images,
                   float* dx, bool past_caches) {
    const Conv& c = p.c;
    const int64_t channels = c.channels, row_floats = c.across.size * channels, image = c.down.size * row_floats;
    for (int64_t h = most(low, c.down.padding); h < least(high, c.down.padding + c.down.size); ++h) {
        float* row = dx + (h - c.down.padding) * row_floats;
        const int64_t slot = p.down.slots.data[h % c.down.stride], i = h / c.down.stride - first;
        if (slot < 0 || i >= p.height) {
            for (int64_t k = 0; k < images; ++k) std::memset(row + k * image, 0, sizeof(float) * row_floats);
            continue;
        }
        for (int64_t side = 0; side < c.across.stride; ++side) {
            const int64_t place = p.across.slots.data[side];
            const Range all = inside(c.across, side, INT64_MAX);
            const Range there = place < 0 ? Range{all.begin, all.begin} : inside(c.across, side, p.width);
            auto pixel = [&](int64_t k, int64_t q) {
                return row + k * image + (q * c.across.stride + side - c.across.padding) * channels;
            };
            for (int64_t k = 0; k < images; ++k)
                for (int64_t q = most(all.begin, there.end); q < all.end; ++q)
                    std::memset(pixel(k, q), 0, sizeof(float) * channels);
            const float* from = panel + (slot * p.height + i) * p.row_stride + place * p.width * p.fold;
            const int64_t end = there.end * p.fold;
            for (int64_t lane = there.begin * p.fold; lane < end; lane += LANES) {
                float* to[LANES];
                bool is_whole = past_caches;
                for (int64_t t = 0; t < LANES; ++t) {
                    const bool is_there = lane + t < end && (lane + t) % p.fold < images;
                    to[t] = is_there ? pixel((lane + t) % p.fold, (lane + t) / p.fold) : nullptr;
                    is_whole &= is_there;
                }
                for (int64_t c0 = 0; c0 < channels; c0 += LANES) {
                    Vec block[LANES];
                    for (int64_t k = 0; k < LANES; ++k)
                        block[k] = load<Vec>(from + lane + least(c0 + k, channels - 1) * p.channel_stride);
                    transpose(block);
                    if (is_whole) {
                        for (int t = 0; t < LANES; ++t) stream(to[t] + c0, block[t]);
                        continue;
                    }
                    for (int64_t t = 0; t < LANES; ++t)
                        if (to[t]) put(to[t] + c0, block[t], least(LANES, channels - c0), past_caches);
                }
            }
        }
    }
}

void input_gradient(const Conv& c, const float* dy, float* dx, int threads) {
    const Weight& w = c.weight;
    const int64_t image = c.down.size * c.across.size * c.channels, pixels = c.down.out * c.across.out;
    if (!is_worth_sharing(w, c.images * pixels)) threads = 1;
    if (is_read_in_place(c) && c.images * pixels >= PAYING_IN_PLACE) {
        const Transposed transposed(c, threads);
        const Conv turned = transposed.conv(c);
        const Sources down = sources_of_gradient(c.down), across = sources_of_gradient(c.across);
        const Product product{
            turned.weight, down, across, c.images, c.down.out, c.across.out, w.outputs, nullptr, NONE};
        return multiply_in_place(product, dy, dx, threads);
    }
    if (is_better_transposed(c)) {
        const Transposed transposed(c, threads);
        return forward(transposed.conv(c), dy, nullptr, dx, NONE, threads);
    }
    const int64_t halo = Phases(c.down).reach, places = w.groups * w.rows;
    // The order of the sums depends on the bands, so they must not depend on the number of threads.
    const Plan plan(c, bands_for(c, 2 * halo, c.images < SHARERS ? SHARERS : 1, floats_of_dy(c)), halo);
    const int64_t most_rows = (c.down.out + plan.bands - 1) / plan.bands + halo;
    const int64_t lanes = plan.lanes(), most_tiles = most_rows * plan.tiles_of_row();
    const bool past_caches = streams(dx, c.images * c.down.size * c.across.size, c.channels);
    Memory<int32_t> place(w.order ? w.outputs : 0);
    if (w.order) invert(w, place.data);
#pragma omp parallel num_threads(threads)
    {
        Scratch panel(plan.floats), dy_panel(places * most_tiles * LANES);
        Memory<Pixels> tiles(most_tiles);
        std::memset(dy_panel.data, 0, sizeof(float) * places * most_tiles * LANES);
#pragma omp for
        for (int64_t group = 0; group < w.groups; ++group) plan.locate(group);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < plan.items(); ++item) {
            const int64_t index = plan.image(item), images = plan.images(item);
            const Share band = plan.band(item);
            const bool is_first = band.begin == 0, is_last = band.end == c.down.out;
            const int64_t low = is_first ? 0 : band.begin * c.down.stride;
            const int64_t high = is_last ? INT64_MAX : band.end * c.down.stride;
            const float* from = dy + index * pixels * w.outputs;
            const int64_t first = band.begin - halo;
            std::memset(panel.data, 0, sizeof(float) * plan.floats);
            int64_t count = 0;
            for (int64_t row = most(0, first); row < band.end; ++row)
                for (int64_t lane = 0; lane < lanes; lane += LANES) {
                    const Lanes tile(from + row * c.across.out * w.outputs, pixels * w.outputs, images, plan.fold,
                                     lane, lanes, w.outputs, 0);
                    float* to = dy_panel.data + count * places * LANES;
                    pack_pixels(tile, w.outputs, w.order ? place.data : nullptr, to);
                    tiles.data[count++] = {(row - first) * plan.row_stride + lane,
                                           taps_inside_of(c.down, row, low, high)};
                }
            Fetch fetch = plan.fetch_dy(item, dy, places * count);
            const Spread spread{plan, tiles.data, dy_panel.data, panel.data, fetch};
            for (int64_t group = 0; group < w.groups; ++group) spread_group(spread, group, count);
            unpack_images(plan, panel.data, first, low, high, images, dx + index * image, past_caches);
        }
        finish_streaming();
    }
}

}  // namespace CUTWORK_ISA::conv
