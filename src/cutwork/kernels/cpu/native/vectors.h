// Vectors, memory and transposition, written once in the vector types of GCC and Clang. Vectors are as wide as a
// register: GCC makes poor code of wider ones.
//
// Nothing of the C++ library is used in kernels: the linker keeps one copy of its templates for all files, and that
// could be one that this CPU cannot run.

#pragma once

#include "registers.h"

#include <cstdint>
#include <cstring>
#include <new>

#ifdef __SSE__
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

namespace CUTWORK_ISA {

template <int COUNT>
struct VectorOf {
    typedef float Floats __attribute__((vector_size(COUNT * sizeof(float))));
    typedef int32_t Ints __attribute__((vector_size(COUNT * sizeof(int32_t))));
};
typedef VectorOf<LANES>::Floats Vec;
typedef VectorOf<16>::Floats Vec16;
typedef VectorOf<8>::Floats Vec8;
typedef VectorOf<4>::Floats Vec4;

template <class V, class T>
inline V load(const T* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class T, class V>
inline void store(T* to, V v) {
    std::memcpy(to, &v, sizeof v);
}

// A store past the caches, for results that are not read again soon; the address is a multiple of the vector.
template <class T, class V>
inline void stream(T* to, V v) {
    store(to, v);
}
#if defined(__AVX512F__)
inline void stream(float* to, VectorOf<16>::Floats v) { _mm512_stream_ps(to, (__m512)v); }
#elif defined(__AVX__)
inline void stream(float* to, VectorOf<8>::Floats v) { _mm256_stream_ps(to, (__m256)v); }
#elif defined(__SSE__)
inline void stream(float* to, VectorOf<4>::Floats v) { _mm_stream_ps(to, (__m128)v); }
#endif

// Memory, aligned to a cache line; much of it to a large page, of which the system is asked for some: to get 32 MiB in
// small ones takes as long as to fill them three times.
template <class T>
struct Memory {
    explicit Memory(int64_t count)
        : line(std::align_val_t(count * sizeof(T) < 4 * LARGE_PAGE ? 64 : LARGE_PAGE)),
          data(new (line) T[static_cast<size_t>(count)]) {
#ifdef MADV_HUGEPAGE
        if (line == std::align_val_t(LARGE_PAGE)) madvise(data, count * sizeof(T), MADV_HUGEPAGE);
#endif
    }
    ~Memory() { ::operator delete[](data, line); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    static constexpr size_t LARGE_PAGE = 1 << 21;
    const std::align_val_t line;
    T* const data;
};
typedef Memory<float> Scratch;

// Which thread of how many runs this.
struct Team {
#ifdef _OPENMP
    int64_t size = omp_get_num_threads(), me = omp_get_thread_num();
#else
    int64_t size = 1, me = 0;
#endif
};

// What part `index` of `parts` gets of `count` things.
struct Share {
    int64_t begin, end;
    Share(int64_t count, int64_t index, int64_t parts)
        : begin(count * index / parts), end(count * (index + 1) / parts) {}
};

// A number that the compiler knows.
template <int N>
struct Number {
    static constexpr int value = N;
};

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

inline int64_t clamped(int64_t count, int64_t highest) { return count < 0 ? 0 : least(count, highest); }

inline int64_t rounded_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

constexpr int from_low(int lane, int bit) { return lane & bit ? LANES + lane - bit : lane; }
constexpr int from_high(int lane, int bit) { return lane & bit ? LANES + lane : lane + bit; }

#define CUTWORK_4(f, bit, i) f(i, bit), f(i + 1, bit), f(i + 2, bit), f(i + 3, bit)
#if CUTWORK_LANES == 4
#define CUTWORK_INDICES(f, bit) CUTWORK_4(f, bit, 0)
#elif CUTWORK_LANES == 8
#define CUTWORK_INDICES(f, bit) CUTWORK_4(f, bit, 0), CUTWORK_4(f, bit, 4)
#else
#define CUTWORK_INDICES(f, bit)                                                                                        \
    CUTWORK_4(f, bit, 0), CUTWORK_4(f, bit, 4), CUTWORK_4(f, bit, 8), CUTWORK_4(f, bit, 12)
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define CUTWORK_SHUFFLE(a, b, f, bit) __builtin_shufflevector(a, b, CUTWORK_INDICES(f, bit))
#else
#define CUTWORK_SHUFFLE(a, b, f, bit) __builtin_shuffle(a, b, VectorOf<LANES>::Ints{CUTWORK_INDICES(f, bit)})
#endif

// One step of a transposition: exchanges the lanes that differ in bit D between rows that differ in bit D.
template <int D>
inline void exchange(Vec (&rows)[LANES]) {
    for (int i = 0; i < LANES; ++i) {
        if (i & D) continue;
        const Vec a = rows[i], b = rows[i + D];
        rows[i] = CUTWORK_SHUFFLE(a, b, from_low, D);
        rows[i + D] = CUTWORK_SHUFFLE(a, b, from_high, D);
    }
}

inline void transpose(Vec (&rows)[LANES]) {
    if constexpr (LANES > 8) exchange<8>(rows);
    if constexpr (LANES > 4) exchange<4>(rows);
    exchange<2>(rows);
    exchange<1>(rows);
}

}  // namespace CUTWORK_ISA
