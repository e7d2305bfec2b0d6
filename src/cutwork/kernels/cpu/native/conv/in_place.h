// Convolutions of units of many channels, which read pixels where they lie: a unit is of one tap, and reads whole cache
// lines of a pixel. So nothing is copied first, and pixels that are computed together may lie anywhere. They are those
// that read the same taps: no product is with a margin, and gradients have no gaps where a stride jumped.

#pragma once

#include "plan.h"

namespace CUTWORK_ISA::conv {

// What a thread reads again and again while it goes through the weight: half of a cache of 512 KiB; ...
constexpr int64_t ITEM_BYTES = 256 << 10;
// ... but at least what so many results need, of which there are several kinds, each in tiles of its own.
constexpr int64_t ITEM_PIXELS = 256;

// Where results along one axis read. Those of one kind read the same taps, at the same distances from their base.
struct Sources {
    static constexpr int32_t NOWHERE = INT32_MIN;
    int64_t size, taps, kinds = 0;
    Memory<int32_t> base, kind;  // [size]
    Memory<int32_t> distances;   // [kinds, taps]; NOWHERE where a tap falls on the margin, or between two places

    // `read_by(place, tap)` is the place that is read, if it is one of `inside`; measured from `base_of(place)`.
    template <class ReadBy, class BaseOf>
    Sources(int64_t places, int64_t kernel, int64_t inside, ReadBy read_by, BaseOf base_of)
        : size(places), taps(kernel), base(places), kind(places), distances((places + 1) * kernel) {
        for (int64_t place = 0; place < size; ++place) {
            base.data[place] = static_cast<int32_t>(base_of(place));
            int32_t* mine = distances.data + kinds * taps;
            for (int64_t tap = 0; tap < taps; ++tap) {
                const int64_t at = read_by(place, tap);
                mine[tap] = at < 0 || at >= inside ? NOWHERE : static_cast<int32_t>(at - base.data[place]);
            }
            int64_t same = kinds - 1;
            while (same >= 0 && std::memcmp(distances.data + same * taps, mine, sizeof(int32_t) * taps)) --same;
            kind.data[place] = static_cast<int32_t>(same >= 0 ? same : kinds++);
        }
    }
};

inline Sources sources_of(const Axis& a) {
    return Sources(
        a.out, a.kernel, a.size,
        [&](int64_t place, int64_t tap) { return place * a.stride - a.padding + tap * a.dilation; },
        [&](int64_t place) { return place * a.stride; });
}

struct Product {
    const Weight& w;
    const Sources &down, &across;
    int64_t images, height, width, channels;  // of what is read
    const float* bias;                        // may be null
    Activation after;
};

// In how many items the work comes: bands of rows of results of one image, or several whole images.
struct Items {
    int64_t total, height, folds, bands;

    Items(int64_t images, int64_t image_floats, int64_t rows, int64_t columns, int64_t threads)
        : total(images), height(rows) {
        const int64_t bytes = most(1, image_floats * sizeof(float)), pixels = rows * columns;
        const int64_t fold = most(ITEM_BYTES / bytes, (ITEM_PIXELS + pixels - 1) / pixels);
        folds = least(images, rounded_up((images + fold - 1) / fold, threads));
        bands = fold > 1 ? 1 : least(rows, (bytes + ITEM_BYTES - 1) / ITEM_BYTES);
    }
    int64_t count() const { return folds * bands; }
    int64_t most_images() const { return (total + folds - 1) / most(1, folds); }
    int64_t most_rows() const { return (height + bands - 1) / bands; }
    Share images(int64_t item) const { return Share(total, item / bands, folds); }
    Share rows(int64_t item) const { return Share(height, item % bands, bands); }
};

// From the beginning of what is read and written.
struct Pixel {
    int64_t from, to;
};

// The pixels of an item, kind by kind.
struct PixelLists {
    const Product& p;
    const int64_t kinds;
    Memory<Pixel> pixels;
    Memory<int64_t> starts;  // [kinds + 1]

    PixelLists(const Product& product, int64_t room)
        : p(product), kinds(p.down.kinds * p.across.kinds), pixels(room), starts(kinds + 1) {}

    const Pixel* of(int64_t kind) const { return pixels.data + starts.data[kind]; }
    int64_t count(int64_t kind) const { return starts.data[kind + 1] - starts.data[kind]; }

    void list(Share images, Share rows) {
        Pixel* to = pixels.data;
        for (int64_t kind = 0; kind < kinds; ++kind) {
            starts.data[kind] = to - pixels.data;
            for (int64_t image = images.begin; image < images.end; ++image)
                for (int64_t row = rows.begin; row < rows.end; ++row)
                    if (p.down.kind.data[row] == kind / p.across.kinds) to = list_row(image, row, kind, to);
        }
        starts.data[kinds] = to - pixels.data;
    }

  private:
    Pixel* list_row(int64_t image, int64_t row, int64_t kind, Pixel* to) const {
        const int64_t read = (image * p.height + p.down.base.data[row]) * p.width,
                      written = (image * p.down.size + row) * p.across.size;
        for (int64_t column = 0; column < p.across.size; ++column)
            if (p.across.kind.data[column] == kind % p.across.kinds)
                *to++ = {(read + p.across.base.data[column]) * p.channels, (written + column) * p.w.outputs};
        return to;
    }
};

struct Unit {
    const float* values;
    int64_t offset;  // from a pixel to the first channel that is read
};

// Those units of a group that pixels of a kind read; how many.
inline int64_t list_units(const Product& p, int64_t group, int64_t kind, Unit* units) {
    const Weight& w = p.w;
    const int32_t *down = p.down.distances.data + kind / p.across.kinds * p.down.taps,
                  *across = p.across.distances.data + kind % p.across.kinds * p.across.taps;
    Unit* to = units;
    for (int64_t k = w.ptr[group]; k < w.ptr[group + 1]; ++k) {
        const int64_t tap = w.col[k] / p.channels, channel = w.col[k] % p.channels;
        const int64_t row = down[tap / p.across.taps], column = across[tap % p.across.taps];
        if (row == Sources::NOWHERE || column == Sources::NOWHERE) continue;
        *to++ = {values_at<float>(w, k), (row * p.width + column) * p.channels + channel};
    }
    return to - units;
}

// Fetches about what an item reads; more of the rows between two bands was read already.
inline Fetch fetch_item(const Product& p, const Items& items, int64_t item, const float* x, int64_t steps) {
    if (item >= items.count()) return Fetch(nullptr, 0, steps);
    const Share images = items.images(item), rows = items.rows(item);
    const int64_t row = p.width * p.channels;
    const bool is_whole = items.bands == 1;
    const int64_t first = is_whole ? 0 : clamped(p.down.base.data[rows.begin], p.height),
                  end = is_whole ? p.height : clamped(p.down.base.data[rows.end - 1] + 1, p.height);
    return Fetch(x + (images.begin * p.height + first) * row,
                 ((images.end - images.begin - 1) * p.height + end - first) * row, steps);
}

// N vectors of outputs of S pixels. A function of its own, so that its addresses find registers.
template <int N, int S>
__attribute__((noinline)) void multiply_pixels(const Product& p, const float* x, const Unit* unit, const Unit* end,
                                               int64_t offset, const float* bias, const Pixel* pixels, float* y,
                                               bool past_caches) {
    const int64_t columns = p.w.columns, rows = p.w.rows;
    const float* from[S];
    Vec acc[S][N];
    for (int s = 0; s < S; ++s) {
        from[s] = x + pixels[s].from;
        for (int n = 0; n < N; ++n) acc[s][n] = bias ? load<Vec>(bias + n * LANES) : Vec{};
    }
    for (; unit < end; ++unit) {
        const float* values = unit->values + offset;
        for (int64_t i = unit->offset, last = i + columns; i < last; ++i, values += rows) {
            Vec v[N];
            for (int n = 0; n < N; ++n) v[n] = load<Vec>(values + n * LANES);
            for (int s = 0; s < S; ++s)
                for (int n = 0; n < N; ++n) acc[s][n] += from[s][i] * v[n];
        }
    }
    for (int s = 0; s < S; ++s)
        for (int n = 0; n < N; ++n) {
            const Vec v = p.after == NONE ? acc[s][n] : activated(p.after, acc[s][n]);
            put(y + pixels[s].to + n * LANES, v, LANES, past_caches);
        }
}

// All pixels of an item times a group: in equal parts of at most MOST pixels, N vectors of outputs from `offset` on.
template <int N, int MOST>
void multiply_slice(const Product& p, const float* x, const PixelLists& pixels, int64_t kind, int64_t group,
                    int64_t offset, const Unit* units, int64_t num_units, float* y, bool past_caches, Fetch& fetch) {
    const int64_t count = pixels.count(kind), parts = (count + MOST - 1) / MOST, o = group * p.w.rows + offset;
    for (int64_t part = 0; part < parts; ++part) {
        const Share share(count, part, parts);
        fetch.go(share.end - share.begin);
        Counted<MOST>::run(share.end - share.begin, [&](auto number) {
            multiply_pixels<N, decltype(number)::value>(p, x, units, units + num_units, offset,
                                                        p.bias ? p.bias + o : nullptr, pixels.of(kind) + share.begin,
                                                        y + o, past_caches);
        });
    }
}

void multiply_in_place(const Product& p, const float* x, float* y, int threads) {
    const Weight& w = p.w;
    const int64_t slices = (w.rows + 2 * LANES - 1) / (2 * LANES);
    int64_t most_units = 0;
    for (int64_t g = 0; g < w.groups; ++g) most_units = most(most_units, w.ptr[g + 1] - w.ptr[g]);
    const bool past_caches = streams(y, p.images * p.down.size * p.across.size, w.outputs);
    const Items items(p.images, p.height * p.width * p.channels, p.down.size, p.across.size, threads);
    const int64_t parts = least(w.groups, most(1, threads / most(1, items.count())));
#pragma omp parallel num_threads(threads)
    {
        PixelLists pixels(p, items.most_images() * items.most_rows() * p.across.size);
        const Memory<Unit> units(most_units);
#pragma omp for schedule(static)
        for (int64_t job = 0; job < items.count() * parts; ++job) {
            const int64_t item = job / parts, part = job % parts, end = first_group(w, part + 1, parts);
            pixels.list(items.images(item), items.rows(item));
            Fetch fetch = fetch_item(p, items, item + 1, x, w.groups * slices * pixels.starts.data[pixels.kinds]);
            for (int64_t group = first_group(w, part, parts); group < end; ++group)
                for (int64_t kind = 0; kind < pixels.kinds; ++kind) {
                    if (!pixels.count(kind)) continue;
                    const int64_t count = list_units(p, group, kind, units.data);
                    int64_t o = 0;
                    for (; o + 2 * LANES <= w.rows; o += 2 * LANES)
                        multiply_slice<2, PIXELS_2>(p, x, pixels, kind, group, o, units.data, count, y, past_caches,
                                                    fetch);
                    for (; o < w.rows; o += LANES)
                        multiply_slice<1, PIXELS_1>(p, x, pixels, kind, group, o, units.data, count, y, past_caches,
                                                    fetch);
                }
        }
        finish_streaming();
    }
}

// Whether units read whole lines of one tap's channels, and groups write whole vectors.
inline bool is_read_in_place(const Conv& c) {
    const Weight& w = c.weight;
    if (!READS_IN_PLACE || w.order || c.channel_groups > 1) return false;
    if (w.columns % LINE || c.channels % w.columns || w.rows % LANES || w.outputs % w.rows) return false;
    for (int64_t k = 0; k < w.ptr[w.groups]; ++k)
        if (w.col[k] % w.columns) return false;
    return true;
}

}  // namespace CUTWORK_ISA::conv
