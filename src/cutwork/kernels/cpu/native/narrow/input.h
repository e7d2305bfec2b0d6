// The input as words: panels of it, the steps of a group gathered, and rows quantized to int8.

#pragma once

#include "weight.h"

namespace CUTWORK_ISA::narrow {

// How many words a panel of the input has; the last holds nothing but zeros.
inline int64_t words_of(int64_t inputs, int64_t columns, int64_t k) {
    return rounded_up((inputs + columns) / k + 2, LANES);
}

// Of K numbers in each word the one at place `from`, at place `to`; zero elsewhere.
template <int64_t K>
inline Words picked(Words v, int64_t to, uint32_t from) {
    constexpr uint32_t bits = 32 / K, number = ~0u >> (32 - bits);
    const uint32_t shift = static_cast<uint32_t>(to) * bits;
#ifdef __AVX512BW__
    // One shuffle of bytes: 4 * lane + byte, or the highest bit for zero.
    constexpr uint32_t ones = 0x01010101u & number, bytes = 0x03020100u & number;
    const Words lane = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
    const Words index = (lane * (4 * ones) + bytes + splat(from * (bits / 8) * ones)) << static_cast<int>(shift) |
                        splat(0x80808080u & ~(number << shift));
    return (Words)_mm512_shuffle_epi8((__m512i)v, (__m512i)index);
#else
    return ((v >> static_cast<int>(from * bits)) & number) << static_cast<int>(shift);
#endif
}

// The steps of a group as own[step][P], from panel[word][P] of the whole input, whose last word is zero.
template <class F, int64_t P>
inline void gather(const Weight& w, int64_t group, const uint32_t* panel, int64_t words, uint32_t* own) {
    constexpr int64_t K = F::K;
    for (Inputs inputs(w, group); inputs.more(); own += P) {
        const uint32_t* from[K];
        uint32_t place[K];
        for (int64_t i = 0; i < K; ++i) {
            const int64_t input = inputs.more() ? inputs.next() : (words - 1) * K;
            from[i] = panel + input / K * P;
            place[i] = static_cast<uint32_t>(input % K);
        }
        for (int64_t t = 0; t < P; t += LANES) {
            Words step = picked<K>(load<Words>(from[0] + t), 0, place[0]);
            for (int64_t i = 1; i < K; ++i) step |= picked<K>(load<Words>(from[i] + t), i, place[i]);
            store(own + t, step);
        }
    }
}

// The nearest whole numbers.
inline Ints rounded(Vec v) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtps_epi32((__m512)v);
#elif defined(__AVX__)
    return (Ints)_mm256_cvtps_epi32((__m256)v);
#elif defined(__SSE2__)
    return (Ints)_mm_cvtps_epi32((__m128)v);
#else
    Ints ints;
    for (int i = 0; i < LANES; ++i) ints[i] = static_cast<int32_t>(__builtin_rintf(v[i]));
    return ints;
#endif
}

// A row as numbers from 0 to 255 that stand for scale * (number - zero). The scale of a row that is not finite is nan.
template <class T>
inline void quantize(const T* row, int64_t width, char* to, float& scale, int32_t& zero) {
    Vec low = {}, high = {}, odd = {};
    const auto look = [&](Vec v) {
        low = v < low ? v : low;
        high = v > high ? v : high;
        odd += v - v;
    };
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) look(numbers(row + i));
    if (i < width) look(numbers(row + i, width - i));
    float least_number = 0, greatest = 0, nan = 0;
    for (int lane = 0; lane < LANES; ++lane) {
        least_number = low[lane] < least_number ? low[lane] : least_number;
        greatest = high[lane] > greatest ? high[lane] : greatest;
        nan += odd[lane];
    }
    const float span = greatest - least_number, inverse = span > 1e-30f ? 255 / span : 0;
    scale = (span > 1e-30f ? span / 255 : 0) + nan;
    zero = nan == 0 ? rounded(Vec{} - least_number * inverse)[0] : 0;
    const auto write = [&](int64_t at, Vec v) {
        Ints number = rounded(v * inverse) + zero;
        number = number < 0 ? Ints{} : number;
        number = number > 255 ? Ints{} + 255 : number;
        store(to + at, __builtin_convertvector(number, Bytes));
    };
    for (i = 0; i + LANES <= width; i += LANES) write(i, numbers(row + i));
    if (i < width) write(i, numbers(row + i, width - i));
}

// How much one step of the int8 numbers of each token of a panel is, and the number that stands for zero.
template <int64_t P>
struct TokenScales {
    float scales[P];
    int32_t zeros[P];
};

inline Rows rows_of(const uint16_t* rows, int64_t width, int64_t count) {
    return {reinterpret_cast<const char*>(rows), 2 * width, 2 * width, count};
}

// The rows of a panel as the words of F need them.
template <int64_t P>
inline Rows rows_of(Bf16, const uint16_t* x, int64_t width, int64_t count, char*, int64_t, TokenScales<P>&) {
    return rows_of(x, width, count);
}

template <int64_t P, class T>
inline Rows rows_of(Int8, const T* x, int64_t width, int64_t count, char* staged, int64_t stride, TokenScales<P>& of) {
    for (int64_t t = 0; t < count; ++t) quantize(x + t * width, width, staged + t * stride, of.scales[t], of.zeros[t]);
    return {staged, stride, width, count};
}

}  // namespace CUTWORK_ISA::narrow
