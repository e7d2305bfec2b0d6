// What becomes of sums: int8 numbers are turned back, and the bias is added.

#pragma once

#include "input.h"

namespace CUTWORK_ISA::narrow {

// The sums of one token, in whose lanes places lie.
template <int64_t P>
inline Vec for_outputs(const Places& places, const TokenScales<P>&, int64_t, int64_t place, Vec sum) {
    return sum + load<Vec>(places.bias.data + place);
}

template <int64_t P>
inline Vec for_outputs(const Places& places, const TokenScales<P>& of, int64_t token, int64_t place, Ints sum) {
    const Ints exact = sum - of.zeros[token] * load<Ints>(places.sums.data + place);
    const Vec scale = of.scales[token] * load<Vec>(places.scales.data + place);
    return __builtin_convertvector(exact, Vec) * scale + load<Vec>(places.bias.data + place);
}

// The sums of one place, in whose lanes tokens lie.
template <int64_t P>
inline Vec for_tokens(const Places& places, const TokenScales<P>&, int64_t, int64_t place, Vec sum) {
    return sum + places.bias.data[place];
}

template <int64_t P>
inline Vec for_tokens(const Places& places, const TokenScales<P>& of, int64_t token, int64_t place, Ints sum) {
    const Ints exact = sum - load<Ints>(of.zeros + token) * places.sums.data[place];
    const Vec scale = load<Vec>(of.scales + token) * places.scales.data[place];
    return __builtin_convertvector(exact, Vec) * scale + places.bias.data[place];
}

}  // namespace CUTWORK_ISA::narrow
