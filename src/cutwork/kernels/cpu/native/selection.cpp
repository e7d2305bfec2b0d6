// Which entries of a matrix of scores are kept, compiled once for each instruction set. Many groups or tiles are decided
// side by side, one in each lane, by comparing every choice, so that nothing branches.

#include "kernels.h"
#include "vectors.h"

namespace CUTWORK_ISA {
namespace selection {

typedef VectorOf<LANES>::Ints Ints;

constexpr int TILE = 4, ENTRIES = TILE * TILE;
// So many scores, below which waking other threads takes as long as the work.
constexpr int64_t WORTH_SHARING = 1 << 15;

inline Vec all(float value) { return Vec{} + value; }

inline Vec chosen(Ints where, Vec a, Vec b) { return (Vec)(((Ints)a & where) | ((Ints)b & ~where)); }

inline Ints chosen(Ints where, Ints a, Ints b) { return (a & where) | (b & ~where); }

inline bool any(Ints where) {
    int32_t found = 0;
    for (int i = 0; i < LANES; ++i) found |= where[i];
    return found != 0;
}

// Numbers in the order of the scores; both zeros are one.
inline uint32_t rank_of(float score) {
    const float sole = score + 0.0f;
    uint32_t bits;
    std::memcpy(&bits, &sole, sizeof bits);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}

// The `count` largest of all, of equal ones the first. The rank of the last one kept is found some bits at a time, by
// counting how many scores have which bits next.
void largest(const float* scores, uint8_t* mask, int64_t size, int64_t count, int threads) {
    constexpr int PARTS[][2] = {{21, 11}, {10, 11}, {0, 10}};  // of the bits of a rank: where they begin, how many
    constexpr int64_t BINS = 1 << 11;
    const Memory<int64_t> bins(threads * BINS);
    uint64_t last = 0;
    int64_t left = count;
#pragma omp parallel num_threads(threads) if (size >= WORTH_SHARING)
    {
        const Team team;
        const Share mine(size, team.me, team.size);
        int64_t* own = bins.data + team.me * BINS;
        for (const auto& [begin, bits] : PARTS) {
            const uint64_t known = last;
            std::memset(own, 0, BINS * sizeof *own);
            for (int64_t i = mine.begin; i < mine.end; ++i) {
                const uint64_t rank = rank_of(scores[i]);
                if (rank >> (begin + bits) == known) ++own[rank >> begin & ((1 << bits) - 1)];
            }
#pragma omp barrier
#pragma omp single
            for (int64_t bin = 1 << bits; bin-- > 0;) {
                int64_t here = 0;
                for (int64_t thread = 0; thread < team.size; ++thread) here += bins.data[thread * BINS + bin];
                if (here >= left) {
                    last = last << bits | static_cast<uint64_t>(bin);
                    break;
                }
                left -= here;
            }
        }
        // Each thread knows how many equal ones it has, and those before it.
        const int64_t bin = last & ((1 << 10) - 1), equal = bins.data[team.me * BINS + bin];
        int64_t room = left;
        for (int64_t thread = 0; thread < team.me; ++thread) room -= bins.data[thread * BINS + bin];
        const auto lowest = static_cast<uint32_t>(room < equal ? last + 1 : last);
        for (int64_t i = mine.begin; i < mine.end; ++i) mask[i] = rank_of(scores[i]) >= lowest;
        if (room >= equal) room = 0;
        for (int64_t i = mine.begin; room > 0 && i < mine.end; ++i)
            if (rank_of(scores[i]) == last) mask[i] = 1, --room;
    }
}

// Sorts keys in ascending order by their upper halves, those with equal ones as they come; `spare` is memory for as many.
void sort(uint64_t* keys, uint64_t* spare, int64_t count) {
    constexpr int DIGIT = 8;
    for (int shift = 32; shift < 64; shift += DIGIT) {
        int64_t ends[1 << DIGIT] = {}, end = 0;
        for (int64_t i = 0; i < count; ++i) ++ends[keys[i] >> shift & 0xff];
        for (int64_t& place : ends) {
            const int64_t here = place;
            place = end, end += here;
        }
        for (int64_t i = 0; i < count; ++i) spare[ends[keys[i] >> shift & 0xff]++] = keys[i];
        uint64_t* const sorted = spare;
        spare = keys, keys = sorted;
    }
}

// Ranks by their highest bits.
constexpr int BIN_BITS = 11;
constexpr int64_t BINS = 1 << BIN_BITS;

// Of all entries their bins, of those that are not allowed a bin of their own.
void find_bins(const float* scores, const uint8_t* allowed, int64_t count, uint16_t* found) {
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t bin = rank_of(scores[i]) >> (32 - BIN_BITS);
        found[i] = static_cast<uint16_t>(allowed[i] ? bin : BINS);
    }
}

// The lowest bin that must be looked at for the best `count` runs, which take the best entries of their rows: so many
// runs are better than any that begins below it, whatever rounding does to their means.
int64_t lowest_bin(const int64_t* bins, int64_t rows, int64_t columns, int64_t count) {
    // Means of very many rounded numbers may be further off than a bin is wide.
    if (columns >= 1024) return 0;
    // Each row may have a run that only begins above the bin.
    int64_t needed = count * columns + rows * (columns - 1);
    for (int64_t bin = BINS; bin-- > 0;)
        if ((needed -= bins[bin]) <= 0) return most(bin - 1, 0);
    return 0;
}

// One row for `runs`: sorts as much of it as has to be looked at.
struct SortedRow {
    Memory<uint64_t> keys, spare;
    int64_t count = 0;
    explicit SortedRow(int64_t width) : keys(width), spare(width) {}

    // Takes all entries down to a bin, and what a run that begins there needs besides.
    void take(const float* scores, const uint16_t* bin_of, int64_t width, int64_t columns, int64_t lowest) {
        int64_t bins[BINS + 1] = {}, taken = 0;
        for (int64_t i = 0; i < width; ++i) ++bins[bin_of[i]];
        int64_t bin = BINS;
        while (bin > lowest) taken += bins[--bin];
        const int64_t needed = least(width - bins[BINS], rounded_up(taken, columns));
        while (taken < needed) taken += bins[--bin];
        int64_t next = 0;
        for (int64_t i = 0; i < width; ++i)
            if (bin_of[i] >= bin && bin_of[i] < BINS)
                keys.data[next++] = static_cast<uint64_t>(~rank_of(scores[i])) << 32 | static_cast<uint64_t>(i);
        sort(keys.data, spare.data, next);
        count = needed;
    }
    int64_t column(int64_t i) const { return static_cast<int64_t>(keys.data[i] & UINT32_MAX); }
};

// The `count` best runs of some rows: a run takes the best allowed entries that its row has left.
void runs(const float* scores, const uint8_t* allowed, uint8_t* mask, int64_t rows, int64_t width, int64_t columns,
          int64_t count, int threads) {
    const int64_t runs_of_row = (width + columns - 1) / columns;
    const Memory<int64_t> bins(threads * (BINS + 1));
    const Memory<uint16_t> bin_of(rows * width);
    const Memory<int32_t> order(rows * width);
    const Memory<int64_t> counts(rows);
    const Memory<float> means(rows * runs_of_row);
    const Memory<uint8_t> chosen(rows * runs_of_row);
    int64_t lowest = 0;
#pragma omp parallel num_threads(threads) if (rows * width >= WORTH_SHARING)
    {
        const Team team;
        const Share mine(rows, team.me, team.size);
        int64_t* own = bins.data + team.me * (BINS + 1);
        std::memset(own, 0, (BINS + 1) * sizeof *own);
        for (int64_t r = mine.begin; r < mine.end; ++r) {
            uint16_t* found = bin_of.data + r * width;
            find_bins(scores + r * width, allowed + r * width, width, found);
            for (int64_t i = 0; i < width; ++i) ++own[found[i]];
        }
#pragma omp barrier
#pragma omp single
        {
            for (int64_t thread = 1; thread < team.size; ++thread)
                for (int64_t bin = 0; bin < BINS; ++bin) bins.data[bin] += bins.data[thread * (BINS + 1) + bin];
            lowest = lowest_bin(bins.data, rows, columns, count);
        }
        SortedRow row(width);
        for (int64_t r = mine.begin; r < mine.end; ++r) {
            const float* from = scores + r * width;
            row.take(from, bin_of.data + r * width, width, columns, lowest);
            counts.data[r] = row.count;
            float before = __builtin_inff();
            for (int64_t run = 0; run < runs_of_row; ++run) {
                const int64_t begin = run * columns, end = least(begin + columns, row.count);
                float sum = 0;
                for (int64_t i = begin; i < end; ++i) {
                    const int64_t column = order.data[r * width + i] = static_cast<int32_t>(row.column(i));
                    sum = i == begin ? from[column] : sum + from[column];
                }
                const float mean = begin < end ? sum / static_cast<float>(end - begin) : -__builtin_inff();
                means.data[r * runs_of_row + run] = before = mean < before ? mean : before;
            }
        }
    }
    if (count < rows * runs_of_row) largest(means.data, chosen.data, rows * runs_of_row, count, threads);
    else std::memset(chosen.data, 1, rows * runs_of_row);
    std::memset(mask, 0, rows * width);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t run = 0; run < runs_of_row; ++run)
            if (chosen.data[r * runs_of_row + run])
                for (int64_t i = run * columns; i < least((run + 1) * columns, counts.data[r]); ++i)
                    mask[r * width + order.data[r * width + i]] = 1;
}

// Of every `m` neighbours the `n` largest: those that fewer than n others beat. Of equal ones the first wins.
void groups(const float* scores, uint8_t* mask, int64_t count, int64_t n, int64_t m, int threads) {
#pragma omp parallel num_threads(threads) if (count * m >= WORTH_SHARING)
    {
        const Team team;
        const Share mine(count, team.me, team.size);
        const Memory<float> turned(m * LANES);
        const Memory<int32_t> beaten(m * LANES);
        for (int64_t first = mine.begin; first < mine.end; first += LANES) {
            const int64_t inside = least(LANES, mine.end - first);
            for (int64_t i = 0; i < m; ++i)
                for (int64_t lane = 0; lane < LANES; ++lane)
                    turned.data[i * LANES + lane] = lane < inside ? scores[(first + lane) * m + i] : 0;
            for (int64_t i = 0; i < m; ++i) {
                const Vec one = load<Vec>(turned.data + i * LANES);
                Ints by{};
                for (int64_t j = 0; j < i; ++j) by -= load<Vec>(turned.data + j * LANES) >= one;
                for (int64_t j = i + 1; j < m; ++j) by -= load<Vec>(turned.data + j * LANES) > one;
                store(beaten.data + i * LANES, by);
            }
            for (int64_t lane = 0; lane < inside; ++lane)
                for (int64_t i = 0; i < m; ++i) mask[(first + lane) * m + i] = beaten.data[i * LANES + lane] < n;
        }
    }
}

// LANES tiles that lie side by side: their entries in row-major order. Where fewer are there the rest is zero.
struct Tiles {
    Vec entries[ENTRIES];
    Tiles(const float* scores, int64_t width, int64_t inside) {
        for (int row = 0; row < TILE; ++row) {
            float lanes[TILE][LANES] = {};
            for (int64_t tile = 0; tile < inside; ++tile)
                for (int column = 0; column < TILE; ++column)
                    lanes[column][tile] = scores[row * width + tile * TILE + column];
            for (int column = 0; column < TILE; ++column) entries[row * TILE + column] = load<Vec>(lanes[column]);
        }
    }
};

// Decides all tiles of a matrix: choose(tiles) returns in each lane a bit for each entry of a tile, the first the lowest.
template <class F>
inline void each_tile(const float* scores, uint8_t* mask, int64_t outputs, int64_t inputs, int threads, F choose) {
#pragma omp parallel num_threads(threads) if (outputs * inputs >= WORTH_SHARING)
    {
        const Team team;
        const Share mine(outputs / TILE, team.me, team.size);
        for (int64_t o = mine.begin * TILE; o < mine.end * TILE; o += TILE)
            for (int64_t i = 0; i < inputs; i += TILE * LANES) {
                const int64_t at = o * inputs + i, inside = least(LANES, (inputs - i) / TILE);
                const Ints kept = choose(Tiles(scores + at, inputs, inside));
                for (int row = 0; row < TILE; ++row)
                    for (int64_t tile = 0; tile < inside; ++tile)
                        for (int column = 0; column < TILE; ++column)
                            mask[at + row * inputs + tile * TILE + column] = kept[tile] >> (row * TILE + column) & 1;
            }
    }
}

// The 4x4 tiles with n entries in each row and column, the first in row-major order first: of each its entries as bits,
// and for its upper and its lower half at which place the sum of two rows stands.
struct LegalTiles {
    static constexpr int MOST = 90, WAYS = 6;
    int count = 0, ways = 0;
    int way[WAYS] = {};  // to keep n entries of a row, as bits
    int upper[MOST] = {}, lower[MOST] = {}, kept[MOST] = {};

    constexpr explicit LegalTiles(int n) {
        // With the first column as the highest bit the first way is the largest number.
        for (int number = ENTRIES - 1; number >= 0; --number) {
            int bits = 0, size = 0;
            for (int column = 0; column < TILE; ++column)
                if (number >> (TILE - 1 - column) & 1) bits |= 1 << column, ++size;
            if (size == n) way[ways++] = bits;
        }
        for (int a = 0; a < ways; ++a)
            for (int b = 0; b < ways; ++b)
                for (int c = 0; c < ways; ++c)
                    for (int d = 0; d < ways; ++d) {
                        bool is_legal = true;
                        for (int column = 0; column < TILE; ++column)
                            is_legal &= (way[a] >> column & 1) + (way[b] >> column & 1) + (way[c] >> column & 1) +
                                            (way[d] >> column & 1) == n;
                        if (!is_legal) continue;
                        upper[count] = a * ways + b, lower[count] = c * ways + d;
                        kept[count++] = way[a] | way[b] << TILE | way[c] << 2 * TILE | way[d] << 3 * TILE;
                    }
    }
};
constexpr LegalTiles LEGAL[] = {LegalTiles(1), LegalTiles(2), LegalTiles(3)};

// Sums over the two rows of each half, by the ways of both. A row is summed from left to right.
struct Halves {
    Vec upper[LegalTiles::WAYS * LegalTiles::WAYS], lower[LegalTiles::WAYS * LegalTiles::WAYS];
    Halves(const Vec (&entries)[ENTRIES], const LegalTiles& legal) {
        Vec rows[TILE][LegalTiles::WAYS];
        for (int row = 0; row < TILE; ++row)
            for (int i = 0; i < legal.ways; ++i) {
                bool is_first = true;
                for (int column = 0; column < TILE; ++column) {
                    if (!(legal.way[i] >> column & 1)) continue;
                    const Vec entry = entries[row * TILE + column];
                    rows[row][i] = is_first ? entry : rows[row][i] + entry;
                    is_first = false;
                }
            }
        for (int i = 0; i < legal.ways; ++i)
            for (int j = 0; j < legal.ways; ++j) {
                upper[i * legal.ways + j] = rows[0][i] + rows[1][j];
                lower[i * legal.ways + j] = rows[2][i] + rows[3][j];
            }
    }
    Vec sum(const LegalTiles& legal, int tile) const { return upper[legal.upper[tile]] + lower[legal.lower[tile]]; }
};

// Of the legal tiles that with most entries scored inf, of these that with fewest scored -inf, of these the first with
// the largest sum of the others. Scores are bounded, so that no sum overflows.
Ints best_tile(Tiles tiles, const LegalTiles& legal) {
    constexpr float INF = __builtin_inff(), MOST = 3.4028234663852886e38f / ENTRIES;
    Vec infinite[ENTRIES];
    Ints some{};
    for (int i = 0; i < ENTRIES; ++i) {
        Vec& entry = tiles.entries[i];
        const Ints is_first = entry == all(INF), is_last = entry == all(-INF);
        some |= is_first | is_last;
        infinite[i] = chosen(is_first, all(ENTRIES), chosen(is_last, all(-1), Vec{}));
        entry = chosen(is_first | is_last, Vec{}, entry);
        entry = chosen(entry > all(MOST), all(MOST), chosen(entry < all(-MOST), all(-MOST), entry));
    }
    const Halves sums(tiles.entries, legal);
    Vec best = sums.sum(legal, 0);
    Ints kept = Ints{} + legal.kept[0];
    if (!any(some)) {
        for (int i = 1; i < legal.count; ++i) {
            const Vec sum = sums.sum(legal, i);
            const Ints is_better = sum > best;
            best = chosen(is_better, sum, best);
            kept = chosen(is_better, Ints{} + legal.kept[i], kept);
        }
        return kept;
    }
    const Halves counts(infinite, legal);
    Vec most = counts.sum(legal, 0);
    for (int i = 1; i < legal.count; ++i) {
        const Vec sum = sums.sum(legal, i), number = counts.sum(legal, i);
        const Ints is_better = (number > most) | ((number == most) & (sum > best));
        best = chosen(is_better, sum, best);
        most = chosen(is_better, number, most);
        kept = chosen(is_better, Ints{} + legal.kept[i], kept);
    }
    return kept;
}

void best_tiles(const float* scores, uint8_t* mask, int64_t outputs, int64_t inputs, int64_t n, int threads) {
    const LegalTiles& legal = LEGAL[n - 1];
    each_tile(scores, mask, outputs, inputs, threads, [&](const Tiles& tiles) { return best_tile(tiles, legal); });
}

// The comparisons that sort 16 numbers, as Bose and Nelson found them: halves are sorted, then merged.
struct SortingNetwork {
    static constexpr int COMPARISONS = 65;
    int count = 0, first[COMPARISONS] = {}, second[COMPARISONS] = {};

    constexpr SortingNetwork() { sort(0, ENTRIES); }
    constexpr void compare(int i, int j) { first[count] = i, second[count++] = j; }
    constexpr void sort(int i, int size) {
        if (size < 2) return;
        const int half = size / 2;
        sort(i, half);
        sort(i + half, size - half);
        merge(i, half, i + half, size - half);
    }
    constexpr void merge(int i, int sizes_i, int j, int sizes_j) {
        if (sizes_i == 1 && sizes_j == 1) {
            compare(i, j);
        } else if (sizes_i == 1 && sizes_j == 2) {
            compare(i, j + 1);
            compare(i, j);
        } else if (sizes_i == 2 && sizes_j == 1) {
            compare(i, j);
            compare(i + 1, j);
        } else {
            const int half_i = sizes_i / 2, half_j = (sizes_i % 2 ? sizes_j : sizes_j + 1) / 2;
            merge(i, half_i, j, half_j);
            merge(i + half_i, sizes_i - half_i, j + half_j, sizes_j - half_j);
            merge(i + half_i, sizes_i - half_i, j, half_j);
        }
    }
};
constexpr SortingNetwork NETWORK;

// Takes entries by descending score where their row and column have room for them.
Ints greedy_tile(Tiles tiles, int32_t n) {
    Ints places[ENTRIES];
    for (int i = 0; i < ENTRIES; ++i) places[i] = Ints{} + i;
    for (int i = 0; i < NETWORK.count; ++i) {
        Vec &low = tiles.entries[NETWORK.first[i]], &high = tiles.entries[NETWORK.second[i]];
        Ints &low_place = places[NETWORK.first[i]], &high_place = places[NETWORK.second[i]];
        const Ints stay = low < high;
        const Vec lower = chosen(stay, low, high);
        high = chosen(stay, high, low), low = lower;
        const Ints lower_place = chosen(stay, low_place, high_place);
        high_place = chosen(stay, high_place, low_place), low_place = lower_place;
    }
    // Two bits for each row and column.
    Ints kept{}, in_rows{}, in_columns{};
    for (int i = ENTRIES - 1; i >= 0; --i) {
        const Ints row = (places[i] >> 2) * 2, column = (places[i] & 3) * 2;
        const Ints fits = ((in_rows >> row & 3) < n) & ((in_columns >> column & 3) < n) &
                          (tiles.entries[i] > all(-__builtin_inff())) & 1;
        kept |= fits << places[i];
        in_rows += fits << row;
        in_columns += fits << column;
    }
    return kept;
}

void greedy_tiles(const float* scores, uint8_t* mask, int64_t outputs, int64_t inputs, int64_t n, int threads) {
    const auto most = static_cast<int32_t>(n);
    each_tile(scores, mask, outputs, inputs, threads, [=](const Tiles& tiles) { return greedy_tile(tiles, most); });
}

}  // namespace selection

extern const SelectionKernels SELECTION = {selection::largest, selection::runs, selection::groups,
                                            selection::best_tiles, selection::greedy_tiles};

}  // namespace CUTWORK_ISA
