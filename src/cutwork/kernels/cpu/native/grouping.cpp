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

#ifndef __AVX512VPOPCNTDQ__
// How many bits two rows have in common. Without an instruction that counts them in vectors they are added up in pairs,
// then fours, then bytes: two of which hold eight words' counts at a time.
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
#else
// The sum of all lanes, as unsigned numbers: the highest bit may be set.
inline uint64_t sum_of(__m512i v) {
    typedef uint64_t Four __attribute__((vector_size(32)));
    typedef uint64_t Two __attribute__((vector_size(16)));
    const Four four = (Four)_mm512_castsi512_si256(v) + (Four)_mm512_extracti64x4_epi64(v, 1);
    const Two two = (Two)_mm256_castsi256_si128((__m256i)four) + (Two)_mm256_extracti128_si256((__m256i)four, 1);
    return two[0] + two[1];
}
#endif

// How many bits each row of some has in common with each of some others, for at most TILE of both.
template <class T>
void compare_tile(const uint64_t* a, int64_t count, const uint64_t* b, int64_t other_count, int64_t words,
                  T (&overlaps)[TILE][TILE]) {
#ifdef __AVX512VPOPCNTDQ__
    // As many of both as there are registers for.
    constexpr int64_t SIDE = 4;
    for (int64_t r = 0; r < count; r += SIDE) {
        for (int64_t s = 0; s < other_count; s += SIDE) {
            // Rows beyond the last are that one again.
            const uint64_t *ones[SIDE], *others[SIDE];
            for (int64_t i = 0; i < SIDE; ++i) ones[i] = a + least(r + i, count - 1) * words;
            for (int64_t i = 0; i < SIDE; ++i) others[i] = b + least(s + i, other_count - 1) * words;
            __m512i sums[SIDE][SIDE] = {};
            for (int64_t w = 0; w < words; w += WORDS) {
                const auto there = static_cast<__mmask8>((1 << least(words - w, WORDS)) - 1);
                __m512i other[SIDE];
                for (int i = 0; i < SIDE; ++i) other[i] = _mm512_maskz_loadu_epi64(there, others[i] + w);
                for (int i = 0; i < SIDE; ++i) {
                    const __m512i one = _mm512_maskz_loadu_epi64(there, ones[i] + w);
                    for (int j = 0; j < SIDE; ++j) sums[i][j] += _mm512_popcnt_epi64(one & other[j]);
                }
            }
            // No sum is larger than T, so several are added up in one word.
            constexpr int FIELDS = sizeof(uint64_t) / sizeof(T), BITS = 8 * sizeof(T);
            for (int i = 0; i < SIDE; ++i)
                for (int j = 0; j < SIDE; j += FIELDS) {
                    __m512i fields = sums[i][j];
                    for (int f = 1; f < FIELDS; ++f) fields |= _mm512_slli_epi64(sums[i][j + f], f * BITS);
                    store(&overlaps[r + i][s + j], sum_of(fields));
                }
        }
    }
#else
    for (int64_t r = 0; r < count; ++r)
        for (int64_t s = 0; s < other_count; ++s)
            overlaps[r][s] = static_cast<T>(overlap(a + r * words, b + s * words, words));
#endif
}

// The overlaps of all pairs of rows, pairs[rows, rows].
template <class T>
void compare(const uint64_t* bits, int64_t rows, int64_t words, T* pairs, int threads) {
    if (rows * words < WORTH_SHARING) threads = 1;
    const int64_t tiles = (rows + TILE - 1) / TILE;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t tile = 0; tile < tiles; ++tile)
        // The longest first, so that no thread is left with one at the end.
        for (int64_t from = (tiles - 1 - tile) * TILE, other = 0; other <= from; other += TILE) {
            const int64_t count = least(TILE, rows - from), other_count = least(TILE, rows - other);
            T overlaps[TILE][TILE];
            compare_tile(bits + from * words, count, bits + other * words, other_count, words, overlaps);
            for (int64_t r = 0; r < count; ++r)
                for (int64_t s = 0; s < other_count; ++s) pairs[(from + r) * rows + other + s] = overlaps[r][s];
            for (int64_t s = 0; s < other_count; ++s)
                for (int64_t r = 0; r < count; ++r) pairs[(other + s) * rows + from + r] = overlaps[r][s];
        }
}

// Adds to the linkage of rows how near a member of their group is, and returns which of those that are left is nearest
// now. Others have the scale zero.
template <class T>
int64_t add_member(const T* overlaps, int64_t scale, const int32_t* scales, int64_t rows, int64_t* linkage) {
    constexpr int64_t BLOCK = 64;
    int64_t highest = 0, best = -1;
    for (int64_t begin = 0; begin < rows; begin += BLOCK) {
        const int64_t end = least(rows, begin + BLOCK);
        int64_t high = 0;
        for (int64_t r = begin; r < end; ++r) {
            linkage[r] += scale * overlaps[r];
            high = most(high, linkage[r] * scales[r]);
        }
        if (high > highest) {
            highest = high;
            for (best = begin; linkage[best] * scales[best] != high;) ++best;
        }
    }
    return best;
}

template <class T>
void group_by(const uint64_t* bits, const int64_t* scale, int64_t rows, int64_t words, int64_t size, int64_t* order,
              int threads) {
    Memory<T> pairs(rows * rows);
    compare(bits, rows, words, pairs.data, threads);
    Memory<int64_t> linkage(rows);
    Memory<int32_t> scales(rows);
    for (int64_t r = 0; r < rows; ++r) scales.data[r] = static_cast<int32_t>(scale[r]);
    int64_t first = 0, nearest = -1;
    for (int64_t place = 0; place < rows; ++place) {
        if (place % size == 0) {
            for (int64_t r = 0; r < rows; ++r) linkage.data[r] = 0;
            nearest = -1;
        }
        while (!scales.data[first]) ++first;
        // Where none has anything in common with the group, the first.
        const int64_t member = order[place] = nearest < 0 ? first : nearest;
        scales.data[member] = 0;
        nearest = add_member(pairs.data + member * rows, scale[member], scales.data, rows, linkage.data);
    }
}

void group(const uint64_t* bits, const int64_t* scale, int64_t rows, int64_t words, int64_t size, int64_t* order,
           int threads) {
    if (words * 64 <= UINT16_MAX) group_by<uint16_t>(bits, scale, rows, words, size, order, threads);
    else group_by<uint32_t>(bits, scale, rows, words, size, order, threads);
}

int64_t output_at(const Weight& w, int64_t place) { return w.order ? w.order[place] : place; }

void mark(const Weight& w, const uint8_t* chosen, uint8_t* bits, int64_t bytes, int threads) {
    if (w.ptr[w.groups] * w.rows < WORTH_SHARING) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t group = 0; group < w.groups; ++group) {
        const int64_t place = group * w.rows, rows = least(w.rows, w.outputs - place);
        for (int64_t unit = w.ptr[group]; unit < w.ptr[group + 1]; ++unit) {
            const int64_t column = w.col[unit];
            for (int64_t r = 0; r < rows; ++r)
                if (chosen[unit * w.rows + r]) bits[output_at(w, place + r) * bytes + column / 8] |= 0x80 >> column % 8;
        }
    }
}

// Adds rows up, and divides by how many they are: row(i) returns the i-th, valid until the next is asked for.
template <class F>
inline void mean_of_rows(int64_t count, int64_t width, float* mean, F row) {
    for (int64_t i = 0; i < count; ++i) {
        const float* from = row(i);
        if (i) for (int64_t c = 0; c < width; ++c) mean[c] += from[c];
        else std::memcpy(mean, from, width * sizeof *mean);
    }
    for (int64_t c = 0; c < width; ++c) mean[c] /= static_cast<float>(count);
}

void means(const float* scores, const int32_t* order, float* means, int64_t rows, int64_t width, int64_t size,
           int threads) {
    if (rows * width < WORTH_SHARING) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t group = 0; group < (rows + size - 1) / size; ++group) {
        const int32_t* members = order + group * size;
        mean_of_rows(least(size, rows - group * size), width, means + group * width,
                     [=](int64_t i) { return scores + members[i] * width; });
    }
}

void means_of_kept(const Weight& w, float least_score, const int32_t* order, float* means, int64_t size, int threads) {
    const auto* scores = static_cast<const float*>(w.values);
    const int64_t width = w.inputs;
    Memory<int32_t> places(w.outputs);
    for (int64_t place = 0; place < w.outputs; ++place) places.data[output_at(w, place)] = static_cast<int32_t>(place);
    if (w.outputs * width < WORTH_SHARING) threads = 1;
#pragma omp parallel num_threads(threads)
    {
        Scratch row(width);
        Memory<bool> is_kept(width);
#pragma omp for schedule(static)
        for (int64_t group = 0; group < (w.outputs + size - 1) / size; ++group) {
            const int32_t* members = order + group * size;
            float* mean = means + group * width;
            std::memset(is_kept.data, 0, width);
            mean_of_rows(least(size, w.outputs - group * size), width, mean, [&](int64_t i) {
                const int64_t place = places.data[members[i]], old = place / w.rows;
                for (int64_t c = 0; c < width; ++c) row.data[c] = least_score;
                for (int64_t unit = w.ptr[old]; unit < w.ptr[old + 1]; ++unit) {
                    row.data[w.col[unit]] = scores[unit * w.rows + place % w.rows];
                    is_kept.data[w.col[unit]] = true;
                }
                return row.data;
            });
            for (int64_t c = 0; c < width; ++c)
                if (!is_kept.data[c]) mean[c] = -__builtin_inff();
        }
    }
}

}  // namespace CUTWORK_ISA::grouping

namespace CUTWORK_ISA {

extern const GroupingKernels GROUPING = {grouping::group, grouping::mark, grouping::means, grouping::means_of_kept};

}  // namespace CUTWORK_ISA
