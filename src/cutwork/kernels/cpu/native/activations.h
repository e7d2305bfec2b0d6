// The activations that products take along, and their derivatives, one vector at a time.

#pragma once

#include "kernels.h"
#include "vectors.h"

namespace CUTWORK_ISA {

inline Vec all(float value) { return Vec{} + value; }

// e^x to a few units in the last place, for results that are normal numbers; nan stays nan.
inline Vec exponential(Vec x) {
    x = x < all(-87.0f) ? all(-87.0f) : x;
    x = x > all(88.0f) ? all(88.0f) : x;
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
    const Vec shifted = x * 1.44269504f + 12582912.0f;
    const Vec n = shifted - 12582912.0f;
    const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r) * r + r + 1.0f;
    VectorOf<LANES>::Ints bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4B400000 + 127) << 23;
    Vec power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

// The share of a normal distribution below x, by formula 7.1.26 of Abramowitz and Stegun; `bell` is e^(-x^2/2).
inline Vec normal_share(Vec x, Vec bell) {
    const Vec z = (x < all(0.0f) ? -x : x) * 0.70710678f;
    const Vec t = 1.0f / (1.0f + z * 0.3275911f);
    Vec p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Vec tail = 0.5f * p * t * bell;
    return x < all(0.0f) ? tail : 1.0f - tail;
}

// What the tanh of the approximate GELU is taken of, times two.
inline Vec bent(Vec x) { return x * (1.59576912f + 0.0713548163f * x * x); }

__attribute__((noinline)) inline Vec activated(Activation kind, Vec x) {
    switch (kind) {
        case RELU: return x < all(0.0f) ? all(0.0f) : x;
        case GELU: return x * normal_share(x, exponential(-0.5f * x * x));
        case GELU_TANH: return x * sigmoid(bent(x));
        case SILU: return x * sigmoid(x);
        default: return x;
    }
}

__attribute__((noinline)) inline Vec derivative(Activation kind, Vec x) {
    switch (kind) {
        case RELU: return x > all(0.0f) ? all(1.0f) : all(0.0f);
        case GELU: {
            const Vec bell = exponential(-0.5f * x * x);
            return normal_share(x, bell) + x * bell * 0.398942280f;
        }
        case GELU_TANH: {
            const Vec s = sigmoid(bent(x));
            return s + x * s * (1.0f - s) * (1.59576912f + 0.214064449f * x * x);
        }
        case SILU: {
            const Vec s = sigmoid(x);
            return s + x * s * (1.0f - s);
        }
        default: return all(1.0f);
    }
}

}  // namespace CUTWORK_ISA
