// What this CPU and its operating system can run.

#include "cpu_features.h"

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define CUTWORK_X86 1
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#ifdef CUTWORK_X86

namespace {

enum Register { EAX, EBX, ECX, EDX };

struct Leaf {
    uint32_t values[4] = {0, 0, 0, 0};
};

Leaf cpuid(uint32_t leaf, uint32_t subleaf) {
    Leaf result;
#ifdef _MSC_VER
    int values[4];
    __cpuidex(values, 0, 0);
    if (static_cast<uint32_t>(values[0]) < leaf) return result;
    __cpuidex(values, static_cast<int>(leaf), static_cast<int>(subleaf));
    for (int i = 0; i < 4; ++i) result.values[i] = static_cast<uint32_t>(values[i]);
#else
    // Leaves the result at zero when the CPU does not have the leaf.
    __get_cpuid_count(leaf, subleaf, &result.values[EAX], &result.values[EBX], &result.values[ECX],
                      &result.values[EDX]);
#endif
    return result;
}

bool has_bit(uint32_t leaf, uint32_t subleaf, Register which, int bit) {
    return (cpuid(leaf, subleaf).values[which] >> bit) & 1u;
}

// The register files that the operating system saves on a context switch (XCR0).
uint64_t saved_state() {
    const int osxsave = 27;
    if (!has_bit(1, 0, ECX, osxsave)) return 0;
#ifdef _MSC_VER
    return _xgetbv(0);
#else
    // The intrinsic would need -mxsave for the whole file.
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

constexpr uint64_t YMM = 0x6;      // SSE and AVX registers
constexpr uint64_t ZMM = 0xe6;     // those, mask registers and both halves of the 512-bit ones
constexpr uint64_t TILE = 0x60000; // AMX configuration and data

struct Feature {
    const char *name;
    uint32_t leaf, subleaf;
    Register which;
    int bit;
    uint64_t state;
};

// Names are those of /proc/cpuinfo.
constexpr Feature FEATURES[] = {
    {"avx", 1, 0, ECX, 28, YMM},
    {"f16c", 1, 0, ECX, 29, YMM},
    {"fma", 1, 0, ECX, 12, YMM},
    {"avx2", 7, 0, EBX, 5, YMM},
    {"avx_vnni", 7, 1, EAX, 4, YMM},
    {"avx512f", 7, 0, EBX, 16, ZMM},
    {"avx512dq", 7, 0, EBX, 17, ZMM},
    {"avx512bw", 7, 0, EBX, 30, ZMM},
    {"avx512vl", 7, 0, EBX, 31, ZMM},
    {"avx512_vnni", 7, 0, ECX, 11, ZMM},
    {"avx512_vpopcntdq", 7, 0, ECX, 14, ZMM},
    {"avx512_bf16", 7, 1, EAX, 5, ZMM},
    {"avx512_fp16", 7, 0, EDX, 23, ZMM},
    {"amx_tile", 7, 0, EDX, 24, TILE},
    {"amx_int8", 7, 0, EDX, 25, TILE},
    {"amx_bf16", 7, 0, EDX, 22, TILE},
};

}  // namespace

std::vector<std::string> features() {
    std::vector<std::string> names;
    const uint64_t saved = saved_state();
    for (const Feature &feature : FEATURES) {
        const bool saved_by_os = (saved & feature.state) == feature.state;
        if (saved_by_os && has_bit(feature.leaf, feature.subleaf, feature.which, feature.bit))
            names.emplace_back(feature.name);
    }
    return names;
}

#elif defined(__aarch64__) || defined(_M_ARM64)

std::vector<std::string> features() {
    std::vector<std::string> names = {"neon"}; // part of every 64-bit ARM CPU
#if defined(__linux__)
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    // Bit numbers are the kernel's interface (asm/hwcap.h) and never change.
    if (first >> 20 & 1) names.emplace_back("dotprod");
    if (first >> 22 & 1) names.emplace_back("sve");
    if (second >> 1 & 1) names.emplace_back("sve2");
    if (second >> 13 & 1) names.emplace_back("i8mm");
    if (second >> 14 & 1) names.emplace_back("bf16");
#endif
    return names;
}

#else

std::vector<std::string> features() { return {}; }

#endif
