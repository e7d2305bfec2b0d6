// Groups of rows whose bits agree, compiled once for each instruction set.

#include "kernels.h"
#include "vectors.h"

namespace CUTWORK_ISA::grouping {

// Rows compared with as many others while both lie in the first cache.
constexpr int64_t TILE = 16;
// Words, below which waking other threads takes as long as the work.
constexpr int64_t WORTH_SHARING = 1 << 16;

typedef uint64_t Words __attribute__((vector_size(LANES * sizeof(float))));
constexpr int64_t WORDS = LANES / 2;

// How many bits two rows have in common. No set has an instruction that counts them in vectors, so they are added up
// in pairs, then fours, then bytes: two of which hold eight words' counts at a time.
inline int64_t overlap(const uint64_t* a, const uint64_t* b, int64_t words) {
    constexpr uint64_t PAIRS = ~0ull / 3, FOURS = ~0ull / 5, BYTES = ~0ull / 17, LOW = ~0ull / 257;
    int64_t count = 0, w = 0;
    while (words - w >= WORDS) {
        Words bytes = {};
        for (const int64_t end = least(words - WORDS, w + 30 * WORDS); w <= end; w += WORDS) {
            Words both = load<Words>(a + w) & load<Words>(b + w);
            both -= both >> 1 & PAIRS;
            both = (both & FOURS) + (both >> 2 & FOURS);
            bytes += (both + (both >> 4)) & BYTES;
        }
        const Words sums = (bytes & LOW) + (bytes >> 8 & LOW);
        for (int i = 0; i < WORDS; ++i) count += sums[i] * (~0ull / 65535) >> 48;
    }
    for (; w < words; ++w) count += __builtin_popcountll(a[w] & b[w]);
    return count;
}

// The overlaps of all pairs of rows, pairs[rows, rows].
template <class T>
void compare(const uint64_t* bits, int64_t rows, int64_t words, T* pairs, int threads) {
    if (rows * words < WORTH_SHARING) threads = 1;
    const int64_t tiles = (rows + TILE - 1) / TILE;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t tile = 0; tile < tiles; ++tile)
        // The longest first, so that no thread is left with one at the end.
        for (int64_t from = (tiles - 1 - tile) * TILE, other = 0; other <= from; other += TILE)
            for (int64_t r = from; r < least(rows, from + TILE); ++r)
                for (int64_t s = other; s < least(rows, other + TILE); ++s)
                    pairs[r * rows + s] = pairs[s * rows + r] =
                        static_cast<T>(overlap(bits + r * words, bits + s * words, words));
}

template <class T>
void group_by(const uint64_t* bits, const int64_t* scale, int64_t rows, int64_t words, int64_t size, int64_t* order,
              int threads) {
    Memory<T> pairs(rows * rows);
    compare(bits, rows, words, pairs.data, threads);
    Memory<int64_t> linkage(rows);
    Memory<bool> is_free(rows);
    for (int64_t r = 0; r < rows; ++r) is_free.data[r] = true;
    int64_t first_free = 0, best = 0;
    for (int64_t place = 0; place < rows; ++place) {
        const bool begins = place % size == 0;
        if (begins)
            for (int64_t r = 0; r < rows; ++r) linkage.data[r] = 0;
        while (!is_free.data[first_free]) ++first_free;
        const int64_t member = order[place] = begins ? first_free : best;
        is_free.data[member] = false;
        int64_t highest = -1;
        for (int64_t r = first_free; r < rows; ++r) {
            if (!is_free.data[r]) continue;
            linkage.data[r] += scale[member] * pairs.data[member * rows + r];
            if (linkage.data[r] * scale[r] > highest) highest = linkage.data[r] * scale[r], best = r;
        }
    }
}

void group(const uint64_t* bits, const int64_t* scale, int64_t rows, int64_t words, int64_t size, int64_t* order,
           int threads) {
    if (words * 64 <= UINT16_MAX) group_by<uint16_t>(bits, scale, rows, words, size, order, threads);
    else group_by<uint32_t>(bits, scale, rows, words, size, order, threads);
}

}  // namespace CUTWORK_ISA::grouping

namespace CUTWORK_ISA {

extern const GroupingKernels GROUPING = {grouping::group};

}  // namespace CUTWORK_ISA
