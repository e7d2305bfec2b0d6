// Random numbers in memory of exactly the right size, and what the kernels' activations are.

#pragma once

#include "kernels.h"

#include <cmath>
#include <memory>
#include <random>

namespace {

std::mt19937 engine(0);

int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }

// A new piece of memory for each, so that a sanitizer knows where it ends.
template <class T>
struct Exact {
    explicit Exact(size_t count) : count(count), data(new T[count]) {}
    size_t count;
    std::unique_ptr<T[]> data;
    T &operator[](size_t i) const { return data[i]; }
};

Exact<float> random_floats(size_t count) {
    Exact<float> floats(count);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < count; ++i) floats[i] = normal(engine);
    return floats;
}

double activated(Activation kind, double x) {
    switch (kind) {
        case RELU: return x > 0 ? x : 0;
        case GELU: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
        case GELU_TANH: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        case SILU: return x / (1 + std::exp(-x));
        default: return x;
    }
}

double derivative(Activation kind, double x) {
    const double step = 1e-6;
    return kind == RELU ? x > 0 : (activated(kind, x + step) - activated(kind, x - step)) / (2 * step);
}

}  // namespace
