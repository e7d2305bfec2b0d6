// What the registers of each instruction set hold, side by side. All that differs between the sets stands here; the
// rest of the code is the same for all.
//
// The build compiles the kernels once for each set, with its instructions allowed and CUTWORK_ISA, its name, which
// becomes a namespace. An editor that opens a file alone sees the generic set: SSE2 on x86, NEON on ARM.

#pragma once

#ifndef CUTWORK_ISA
#define CUTWORK_ISA generic
#endif

// Floats in a register.
#if defined(__AVX512BW__)
#define CUTWORK_LANES 16
#elif defined(__AVX2__)
#define CUTWORK_LANES 8
#else
#define CUTWORK_LANES 4
#endif

namespace CUTWORK_ISA {

constexpr int LANES = CUTWORK_LANES;

constexpr int by_set(int generic, int avx2, int avx512) {
    return LANES == 4 ? generic : LANES == 8 ? avx2 : avx512;
}

// Sums stay in registers, beside what is multiplied. Of these generic and avx2 count on 16, and avx512 on 32. Without
// an instruction that multiplies and adds at once, as in generic, each product takes a register too.

namespace linear {

//                                  generic  avx2  avx512
// Tokens beside 1, 2 and 4 vectors of outputs; all divide PANEL_TOKENS. The more vectors, the fewer numbers are read for
// each multiplication, and on some CPUs loads are the limit.
constexpr int TOKENS_1     = by_set(      8,   12,     16);  // 8, 12, 16 sums and one vector of values
constexpr int TOKENS_2     = by_set(      4,    6,     12);  // 8, 12, 24 sums and two
constexpr int TOKENS_4     = by_set(      0,    3,      6);  // 12, 24 sums and four, of which avx2 holds one
// Columns of a gradient of values beside 1, 2 and 4 vectors of outputs.
constexpr int COLUMNS_1    = by_set(      8,   12,     16);  // 8, 12, 16 sums
constexpr int COLUMNS_2    = by_set(      4,    6,      8);  // 8, 12, 16 sums
constexpr int COLUMNS_4    = by_set(      0,    3,      0);  // 12 sums

}  // namespace linear

namespace conv {

//                                  generic  avx2  avx512
// Pixels beside 1 and 2 vectors of outputs.
constexpr int PIXELS_1     = by_set(      8,   12,     16);  // 8, 12, 16 sums and one vector of values
constexpr int PIXELS_2     = by_set(      4,    6,     14);  // 8, 12, 28 sums and two
constexpr int PIXELS_PART  = by_set(      8,    8,      8);  // beside vectors narrower than a register
// Outputs beside vectors of pixels; they divide LANES.
constexpr int OUTPUTS      = by_set(      4,    4,      8);  // 12, 12, 24 sums and three vectors of pixels
constexpr int VECTORS      = by_set(      3,    3,      3);
// Columns of a gradient of values beside 1 and 2 vectors of outputs.
constexpr int COLUMNS_1    = by_set(      8,   12,     16);  // 8, 12, 16 sums
constexpr int COLUMNS_2    = by_set(      4,    6,     12);  // 8, 12, 24 sums
constexpr int COLUMNS_PART = by_set(      4,    4,      4);  // beside vectors narrower than a register
// Whether units of many channels read pixels where they lie, which was measured with avx2 only.
constexpr bool READS_IN_PLACE = by_set(   0,    1,      0);

}  // namespace conv

namespace narrow {

//                                  generic  avx2  avx512
// Outputs, or tokens, that are summed side by side for two vectors of the others.
constexpr int SUMS_OF_2    = by_set(      4,    4,      8);  // 8, 8, 16 sums and two vectors
// Columns of a gradient of values beside a vector of outputs.
constexpr int COLUMNS_1    = by_set(      6,    6,     12);  // 6, 6, 12 sums

}  // namespace narrow

}  // namespace CUTWORK_ISA
