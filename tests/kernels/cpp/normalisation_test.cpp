// Runs the batch norms on many small problems in memory of exactly the right size, against sums in double precision.
// Arguments: the instruction sets to run.

#include "instruction_sets.h"
#include "memory.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

namespace {

template <class T>
void expect(const char *what, const T &found, double wanted, int64_t rows, int64_t channels) {
    if (std::fabs(found - wanted) <= 2e-3 * (1 + std::fabs(wanted))) return;
    std::printf("%s: %g instead of %g, of %lldx%lld\n", what, static_cast<double>(found), wanted, (long long)rows,
                (long long)channels);
    std::exit(1);
}

void run(const NormKernels &kernels) {
    const int64_t rows = between(1, 300), channels = between(1, 70), size = rows * channels;
    const bool has_residual = between(0, 1);
    const Activation after = static_cast<Activation>(between(0, has_residual ? 1 : 4));
    const int threads = static_cast<int>(between(1, 4));
    const Exact<float> x = random_floats(size), dy = random_floats(size), residual = random_floats(size);
    const Exact<float> scale = random_floats(channels), shift = random_floats(channels);
    const Exact<float> slope = random_floats(channels), offset = random_floats(channels);
    const Norm norm{scale.data.get(), shift.data.get(), rows, channels};
    Exact<float> mean(channels), var(channels), y(size), dx(size), dresidual(size);
    Exact<double> of_dz(channels), of_products(channels);
    kernels.moments(x.data.get(), mean.data.get(), var.data.get(), rows, channels, threads);
    kernels.forward(norm, x.data.get(), has_residual ? residual.data.get() : nullptr, y.data.get(), after, threads);
    const float *result = has_residual ? y.data.get() : nullptr;
    kernels.gradient_sums(norm, dy.data.get(), x.data.get(), result, mean.data.get(), of_dz.data.get(),
                          of_products.data.get(), after, threads);
    kernels.input_gradient(norm, dy.data.get(), x.data.get(), result, mean.data.get(), slope.data.get(),
                           offset.data.get(), dx.data.get(), has_residual ? dresidual.data.get() : nullptr, after,
                           threads);
    for (int64_t c = 0; c < channels; ++c) {
        double sum = 0, squares = 0, dzs = 0, products = 0;
        for (int64_t row = 0; row < rows; ++row) sum += x[row * channels + c];
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t at = row * channels + c;
            const double centred = x[at] - sum / rows;
            squares += centred * centred;
            const double z = static_cast<double>(x[at]) * scale[c] + shift[c] + (has_residual ? residual[at] : 0);
            expect("forward", y[at], activated(after, z), rows, channels);
            // At the kink of a ReLU rounding decides.
            if (after == RELU && std::fabs(z) < 1e-5) return;
            const double dz = dy[at] * derivative(after, z);
            dzs += dz;
            products += dz * centred;
            expect("input gradient", dx[at], dz * scale[c] + centred * slope[c] + offset[c], rows, channels);
            if (has_residual) expect("residual gradient", dresidual[at], dz, rows, channels);
        }
        expect("mean", mean[c], sum / rows, rows, channels);
        expect("variance", var[c], squares / rows, rows, channels);
        expect("sum of gradients", of_dz[c], dzs, rows, channels);
        expect("sum of products", of_products[c], products, rows, channels);
    }
}

}  // namespace

int main(int count, char **names) {
    const std::map<std::string, const NormKernels *> sets = {
#ifdef __x86_64__
        {"avx2", &avx2::NORM},
        {"avx512", &avx512::NORM},
#endif
        {"generic", &generic::NORM}};
    for (int i = 1; i < count; ++i) {
        for (int round = 0; round < 300; ++round) run(*sets.at(names[i]));
        std::printf("%s: 300 problems\n", names[i]);
    }
    return 0;
}
