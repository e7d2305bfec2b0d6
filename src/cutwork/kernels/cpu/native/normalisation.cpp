// Batch norm in training, with the sum and the activation that follow it, compiled once for each instruction set. Each
// pass reads every number once, row by row; sums of channels stay in the first cache.

#include "activations.h"
#include "kernels.h"
#include "vectors.h"

namespace CUTWORK_ISA {
namespace normalisation {

// Sums in float32 of so many rows at most; the rest is summed in float64.
constexpr int64_t BLOCK = 64;
// Rows are summed in so many parts, however many threads there are.
constexpr int64_t PARTS = 32;
// So many numbers, below which waking other threads takes as long as the work.
constexpr int64_t WORTH_SHARING = 1 << 15;

inline Vec load_part(const float* from, int64_t count) {
    if (count >= LANES) return load<Vec>(from);
    Vec v{};
    std::memcpy(&v, from, sizeof(float) * count);
    return v;
}

inline void store_part(float* to, Vec v, int64_t count) {
    if (count >= LANES) return store(to, v);
    std::memcpy(to, &v, sizeof(float) * count);
}

// Calls with an activation that the compiler knows, where it is one of few operations.
template <class Body>
inline void with_activation(Activation kind, Body body) {
    if (kind == NONE) body(Number<NONE>());
    else if (kind == RELU) body(Number<RELU>());
    else body(Number<-1>());
}

template <int KNOWN>
inline Vec applied(Activation kind, Vec z) {
    if constexpr (KNOWN == NONE) return z;
    else if constexpr (KNOWN == RELU) return z < all(0.0f) ? all(0.0f) : z;
    else return activated(kind, z);
}

// The gradient of what is activated. Behind a sum its sign is that of the result, which is read instead.
template <int KNOWN>
inline Vec gradient_of(Activation kind, const Norm& n, const float* dy, const float* y, int64_t c, int64_t count, Vec x) {
    const Vec g = load_part(dy + c, count);
    if constexpr (KNOWN == NONE) return g;
    const Vec z = y ? load_part(y + c, count) : x * load_part(n.scale + c, count) + load_part(n.shift + c, count);
    if constexpr (KNOWN == RELU) return z > all(0.0f) ? g : all(0.0f);
    else return g * derivative(kind, z);
}

// Two sums over all rows for each channel; `add(row, c, count, first, second)` adds to them what a row has.
template <class Add>
void sum_rows(const Norm& n, double* first, double* second, int threads, Add add) {
    const int64_t parts = least(PARTS, most(1, n.rows / BLOCK)), width = rounded_up(n.channels, LANES);
    const Memory<double> sums(parts * 2 * n.channels);
#pragma omp parallel num_threads(threads) if (n.rows * n.channels >= WORTH_SHARING)
    {
        const Scratch block(2 * width);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; ++part) {
            const Share mine(n.rows, part, parts);
            double* const wide = sums.data + part * 2 * n.channels;
            for (int64_t c = 0; c < 2 * n.channels; ++c) wide[c] = 0;
            for (int64_t begin = mine.begin; begin < mine.end; begin += BLOCK) {
                std::memset(block.data, 0, sizeof(float) * 2 * width);
                for (int64_t row = begin; row < least(begin + BLOCK, mine.end); ++row)
                    for (int64_t c = 0; c < n.channels; c += LANES) {
                        float *one = block.data + c, *other = one + width;
                        Vec a = load<Vec>(one), b = load<Vec>(other);
                        add(row, c, n.channels - c, a, b);
                        store(one, a);
                        store(other, b);
                    }
                for (int64_t c = 0; c < n.channels; ++c) {
                    wide[c] += block.data[c];
                    wide[n.channels + c] += block.data[width + c];
                }
            }
        }
    }
    for (int64_t c = 0; c < n.channels; ++c) {
        first[c] = second[c] = 0;
        for (int64_t part = 0; part < parts; ++part) {
            first[c] += sums.data[part * 2 * n.channels + c];
            second[c] += sums.data[(part * 2 + 1) * n.channels + c];
        }
    }
}

void moments(const float* x, float* mean, float* var, int64_t rows, int64_t channels, int threads) {
    const Norm n{nullptr, nullptr, rows, channels};
    const Memory<double> sums(2 * channels);
    double *first = sums.data, *second = first + channels;
    // Relative to the first row, since the variance would be lost in the squares of a mean that is far larger.
    sum_rows(n, first, second, threads, [&](int64_t row, int64_t c, int64_t count, Vec& a, Vec& b) {
        const Vec d = load_part(x + row * channels + c, count) - load_part(x + c, count);
        a += d;
        b += d * d;
    });
    for (int64_t c = 0; c < channels; ++c) {
        const double shifted = first[c] / rows, spread = second[c] / rows - shifted * shifted;
        mean[c] = static_cast<float>(x[c] + shifted);
        var[c] = static_cast<float>(spread > 0 ? spread : spread == spread ? 0 : spread);
    }
}

void forward(const Norm& n, const float* x, const float* residual, float* y, Activation after, int threads) {
    with_activation(after, [&](auto known) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n.rows * n.channels >= WORTH_SHARING)
        for (int64_t row = 0; row < n.rows; ++row)
            for (int64_t c = 0; c < n.channels; c += LANES) {
                const int64_t at = row * n.channels + c, count = n.channels - c;
                Vec z = load_part(x + at, count) * load_part(n.scale + c, count) + load_part(n.shift + c, count);
                if (residual) z += load_part(residual + at, count);
                store_part(y + at, applied<decltype(known)::value>(after, z), count);
            }
    });
}

void gradient_sums(const Norm& n, const float* dy, const float* x, const float* y, const float* mean, double* of_dz,
                   double* of_products, Activation after, int threads) {
    with_activation(after, [&](auto known) {
        sum_rows(n, of_dz, of_products, threads, [&](int64_t row, int64_t c, int64_t count, Vec& a, Vec& b) {
            const int64_t at = row * n.channels;
            const Vec value = load_part(x + at + c, count);
            const Vec g = gradient_of<decltype(known)::value>(after, n, dy + at, y ? y + at : nullptr, c, count, value);
            a += g;
            b += g * (value - load_part(mean + c, count));
        });
    });
}

void input_gradient(const Norm& n, const float* dy, const float* x, const float* y, const float* mean,
                    const float* slope, const float* offset, float* dx, float* dresidual, Activation after,
                    int threads) {
    with_activation(after, [&](auto known) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n.rows * n.channels >= WORTH_SHARING)
        for (int64_t row = 0; row < n.rows; ++row) {
            const int64_t at = row * n.channels;
            for (int64_t c = 0; c < n.channels; c += LANES) {
                const int64_t count = n.channels - c;
                const Vec value = load_part(x + at + c, count);
                const Vec g =
                    gradient_of<decltype(known)::value>(after, n, dy + at, y ? y + at : nullptr, c, count, value);
                const Vec centred = value - load_part(mean + c, count);
                store_part(dx + at + c,
                           g * load_part(n.scale + c, count) + centred * load_part(slope + c, count) +
                               load_part(offset + c, count),
                           count);
                if (dresidual) store_part(dresidual + at + c, g, count);
            }
        }
    });
}

}  // namespace normalisation

extern const NormKernels NORM = {normalisation::moments, normalisation::forward, normalisation::gradient_sums,
                                 normalisation::input_gradient};

}  // namespace CUTWORK_ISA
