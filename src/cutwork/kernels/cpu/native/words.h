// Vectors of 32-bit words that hold two bfloat16 or four int8 numbers each, as the instructions that multiply and add
// narrow numbers take them, and the same products for CPUs that have no such instruction.

#pragma once

#include "vectors.h"

namespace CUTWORK_ISA {

typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));  // the bits of bfloat16
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

// The first and the second bfloat16 number of each word.
inline Vec first_of(Words v) { return (Vec)(v << 16); }
inline Vec second_of(Words v) { return (Vec)(v & 0xffff0000u); }

// acc + both products of the bfloat16 numbers in the words of a and b.
inline Vec dot(Vec acc, Words a, Words b) {
#ifdef __AVX512BF16__
    return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
    acc += first_of(a) * first_of(b);
    return acc + second_of(a) * second_of(b);
#endif
}

#ifndef __AVX512VNNI__
// The sums of both products of the int16 numbers in the words of a and b.
inline Ints multiply_add(Words a, Words b) {
#if defined(__AVX512BW__)
    return (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    const Ints low = ((Ints)(a << 16) >> 16) * ((Ints)(b << 16) >> 16);
    return low + ((Ints)a >> 16) * ((Ints)b >> 16);
#endif
}
#endif

// acc + the four products of the uint8 numbers in the words of a with the int8 numbers in those of b.
inline Ints dot(Ints acc, Words a, Words b) {
#ifdef __AVX512VNNI__
    return (Ints)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#else
    // Not `maddubs`, which saturates at 16 bits: 255 * 127 twice does not fit.
    typedef int16_t Shorts __attribute__((vector_size(LANES * 4)));
    const Words even = (Words)((Shorts)(b << 8) >> 8), odd = (Words)((Shorts)b >> 8);
    return acc + multiply_add(a & 0x00ff00ffu, even) + multiply_add((a >> 8) & 0x00ff00ffu, odd);
#endif
}

inline Words splat(uint32_t word) { return Words{} + word; }

// ---- some lanes of a vector ---------------------------------------------------------------------------------------

// The first `lanes` from memory, zero beyond.
template <class V, class T>
inline V load_part(const T* from, int64_t lanes) {
    V v = {};
    std::memcpy(&v, from, sizeof(T) * lanes);
    return v;
}

template <class T, class V>
inline void store_part(T* to, V v, int64_t lanes) {
    std::memcpy(to, &v, sizeof(T) * lanes);
}

#ifdef __AVX512BW__
template <>
inline Words load_part<Words, uint32_t>(const uint32_t* from, int64_t lanes) {
    return (Words)_mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << lanes) - 1), from);
}
template <>
inline Halves load_part<Halves, uint16_t>(const uint16_t* from, int64_t lanes) {
    return (Halves)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << lanes) - 1), from);
}
template <>
inline Vec load_part<Vec, float>(const float* from, int64_t lanes) {
    return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << lanes) - 1), from);
}
inline void store_part(float* to, Vec v, int64_t lanes) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << lanes) - 1), (__m512)v);
}
inline void store_part(uint16_t* to, Halves v, int64_t lanes) {
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << lanes) - 1), (__m256i)v);
}
#endif

// ---- bfloat16 and float32 -----------------------------------------------------------------------------------------

inline Vec widened(Halves v) { return first_of(__builtin_convertvector(v, Words)); }

// Rounds to nearest, halves to even.
inline Halves narrowed(Vec v) {
#ifdef __AVX512BF16__
    return (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
    const Words bits = (Words)v, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words is_number = (Words)(v == v);
    return __builtin_convertvector((rounded & is_number) | (0x7fc0u & ~is_number), Halves);
#endif
}

inline Words paired(Halves first, Halves second) {
    return __builtin_convertvector(first, Words) | __builtin_convertvector(second, Words) << 16;
}

// ---- two vectors of bfloat16 in one -------------------------------------------------------------------------------

// The numbers of two vectors of words fit into one vector if only the first or only the second of each word are kept.
// Two such vectors make words again: `joined` those of the first vector, `joined_next` those of the next. In what order
// the numbers lie meanwhile is for nobody else to know: it is the one that takes the fewest instructions here.
#ifdef __AVX512BW__
inline Words firsts(Words a, Words b) {
    return (Words)_mm512_packus_epi32((__m512i)(a & 0xffffu), (__m512i)(b & 0xffffu));
}
inline Words seconds(Words a, Words b) { return (Words)_mm512_packus_epi32((__m512i)(a >> 16), (__m512i)(b >> 16)); }
inline Words joined(Words a, Words b) { return (Words)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b); }
inline Words joined_next(Words a, Words b) { return (Words)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b); }
#else
inline Words firsts(Words a, Words b) { return (a & 0xffffu) | b << 16; }
inline Words seconds(Words a, Words b) { return a >> 16 | (b & 0xffff0000u); }
inline Words joined(Words a, Words b) { return firsts(a, b); }
inline Words joined_next(Words a, Words b) { return seconds(a, b); }
#endif

// Both vectors rounded, in that order.
inline Words narrowed(Vec a, Vec b) {
#ifdef __AVX512BF16__
    const __m512i order = _mm512_setr_epi64(0x0003000200010000, 0x0013001200110010, 0x0007000600050004,
                                            0x0017001600150014, 0x000b000a00090008, 0x001b001a00190018,
                                            0x000f000e000d000c, 0x001f001e001d001c);
    return (Words)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
#else
    return firsts(__builtin_convertvector(narrowed(a), Words), __builtin_convertvector(narrowed(b), Words));
#endif
}

// ---- panels -------------------------------------------------------------------------------------------------------

inline void transpose(Words (&rows)[LANES]) {
    Vec moved[LANES];
    for (int i = 0; i < LANES; ++i) moved[i] = (Vec)rows[i];
    transpose(moved);
    for (int i = 0; i < LANES; ++i) rows[i] = (Words)moved[i];
}

// A matrix as bytes: rows lie `stride` apart, and what is outside of `count` rows and `bytes` bytes reads as zero.
struct Rows {
    const char* at;
    int64_t stride, bytes, count;
};

// LANES words of LANES rows: those of one place in their rows side by side.
inline void load_turned(const Rows& rows, int64_t row, int64_t word, Words (&block)[LANES]) {
    const int64_t inside = clamped(rows.bytes - 4 * word, 4 * LANES);
    const char* from = rows.at + row * rows.stride + 4 * word;
    if (inside == 4 * LANES && row + LANES <= rows.count) {
        for (int i = 0; i < LANES; ++i) block[i] = load<Words>(from + i * rows.stride);
    } else {
        for (int64_t i = 0; i < LANES; ++i) {
            block[i] = Words{};
            if (row + i < rows.count && inside) block[i] = load_part<Words>(from + i * rows.stride, inside);
        }
    }
    transpose(block);
}

// P rows as panel[word][P], up to a number of words that is a multiple of LANES.
template <int64_t P>
inline void pack_words(const Rows& rows, int64_t words, uint32_t* panel) {
    for (int64_t word = 0; word < words; word += LANES) {
        for (int64_t row = 0; row < P; row += LANES) {
            Words block[LANES];
            load_turned(rows, row, word, block);
            for (int w = 0; w < LANES; ++w) store(panel + (word + w) * P + row, block[w]);
        }
    }
}

}  // namespace CUTWORK_ISA
