// Runs the convolution kernels on many small problems in memory of exactly the right size, against sums in double
// precision. Arguments: the instruction sets to run.

#include "conv.h"
#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

void expect(const char *what, const Conv &c, const Exact<float> &found, const std::vector<double> &wanted) {
    for (size_t i = 0; i < wanted.size(); ++i) {
        if (std::fabs(found[i] - wanted[i]) <= 2e-3 * (1 + std::fabs(wanted[i]))) continue;
        std::printf("%s: %g instead of %g at %zu: %lld images of %lldx%lldx%lld, kernel %lldx%lld, stride %lld, padding "
                    "%lld, dilation %lld, %lld outputs in %lld parts, tiles of %lldx%lld\n",
                    what, found[i], wanted[i], i, (long long)c.images, (long long)c.channels, (long long)c.rows.size,
                    (long long)c.columns.size, (long long)c.rows.kernel, (long long)c.columns.kernel,
                    (long long)c.rows.stride, (long long)c.rows.padding, (long long)c.rows.dilation,
                    (long long)c.weight.outputs, (long long)c.parts, (long long)c.weight.bo, (long long)c.weight.bi);
        std::exit(1);
    }
}

Axis random_axis() {
    Axis axis{between(1, 20), 0, between(1, 3), between(1, 3), between(0, 3), between(1, 2)};
    axis.out = (axis.size + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1);
    axis.out = axis.out < 0 ? 0 : axis.out / axis.stride + 1;
    return axis;
}

void run(const ConvKernels &kernels) {
    static const int64_t SIDES[] = {1, 2, 4, 5, 8, 16, 32, 48, 64};
    Conv c{};
    do c.rows = random_axis(), c.columns = random_axis();
    while (c.rows.out < 1 || c.columns.out < 1);
    const int64_t bo = SIDES[between(0, 8)], bi = SIDES[between(0, 8)];
    c.images = between(1, 3), c.parts = between(0, 3) ? 1 : 2;
    // A group of outputs lies in one part.
    const int64_t per_part = c.parts == 1 ? between(1, 70) : bo * between(1, 2), of_part = between(1, 20);
    const int64_t outputs = per_part * c.parts, taps = c.rows.kernel * c.columns.kernel;
    c.channels = of_part * c.parts;
    const int64_t inputs = taps * of_part, groups = (outputs + bo - 1) / bo, sparse = between(0, 2);
    std::vector<int32_t> ptrs{0}, cols;
    for (int64_t g = 0; g < groups; ++g) {
        for (int64_t i = 0; i < inputs; i += bi)
            if (!sparse || !between(0, sparse)) cols.push_back(static_cast<int32_t>(i));
        ptrs.push_back(static_cast<int32_t>(cols.size()));
    }
    Exact<int32_t> ptr(ptrs.size()), col(cols.size()), order(outputs);
    std::copy(ptrs.begin(), ptrs.end(), ptr.data.get());
    std::copy(cols.begin(), cols.end(), col.data.get());
    for (int64_t o = 0; o < outputs; ++o) order[o] = static_cast<int32_t>(o);
    const bool shuffled = c.parts == 1 && between(0, 2) == 0;
    if (shuffled) std::shuffle(order.data.get(), order.data.get() + outputs, engine);
    std::vector<double> dense(outputs * inputs, 0);
    Exact<float> values(cols.size() * bi * bo);
    auto each = [&](auto visit) {
        for (int64_t g = 0; g < groups; ++g)
            for (int64_t k = ptrs[g]; k < ptrs[g + 1]; ++k)
                for (int64_t j = 0; j < bi; ++j)
                    for (int64_t b = 0; b < bo; ++b) {
                        const bool inside = cols[k] + j < inputs && g * bo + b < outputs;
                        visit((k * bi + j) * bo + b, inside, inside ? order[g * bo + b] * inputs + cols[k] + j : 0);
                    }
    };
    each([&](int64_t at, bool inside, int64_t place) {
        values[at] = inside ? random_floats(1)[0] : 0;
        if (inside) dense[place] = values[at];
    });
    c.weight = {values.data.get(), ptr.data.get(), col.data.get(), shuffled ? order.data.get() : nullptr, outputs, inputs,
                groups, bo, bi};
    const int64_t pixels_in = c.images * c.rows.size * c.columns.size, pixels = c.images * c.rows.out * c.columns.out;
    const Exact<float> x = random_floats(pixels_in * c.channels), dy = random_floats(pixels * outputs);
    const Exact<float> bias = random_floats(outputs);
    const bool has_bias = between(0, 1);
    const Activation after = static_cast<Activation>(between(0, 4));
    const int threads = static_cast<int>(between(1, 4));

    std::vector<double> y(pixels * outputs, 0), dx(pixels_in * c.channels, 0), dweight(outputs * inputs, 0);
    for (int64_t n = 0; n < c.images; ++n)
        for (int64_t r = 0; r < c.rows.out; ++r)
            for (int64_t q = 0; q < c.columns.out; ++q)
                for (int64_t o = 0; o < outputs; ++o) {
                    const int64_t at = ((n * c.rows.out + r) * c.columns.out + q) * outputs + o;
                    const int64_t part = o / (outputs / c.parts);
                    double sum = has_bias ? bias[o] : 0;
                    for (int64_t tap = 0; tap < taps; ++tap) {
                        const int64_t row = r * c.rows.stride - c.rows.padding + tap / c.columns.kernel * c.rows.dilation;
                        const int64_t column =
                            q * c.columns.stride - c.columns.padding + tap % c.columns.kernel * c.columns.dilation;
                        if (row < 0 || row >= c.rows.size || column < 0 || column >= c.columns.size) continue;
                        for (int64_t i = 0; i < of_part; ++i) {
                            const int64_t from =
                                ((n * c.rows.size + row) * c.columns.size + column) * c.channels + part * of_part + i;
                            const int64_t weight = o * inputs + tap * of_part + i;
                            sum += x[from] * dense[weight];
                            dx[from] += dy[at] * dense[weight];
                            dweight[weight] += dy[at] * x[from];
                        }
                    }
                    y[at] = activated(after, sum);
                }
    std::vector<double> dvalues(values.count, 0);
    each([&](int64_t at, bool inside, int64_t place) {
        if (inside) dvalues[at] = dweight[place];
    });

    Exact<float> found_y(y.size()), found_dx(dx.size()), found_dvalues(dvalues.size());
    for (const Exact<float> *memory : {&found_y, &found_dx, &found_dvalues})
        for (size_t i = 0; i < memory->count; ++i) (*memory)[i] = NAN;
    kernels.forward(c, x.data.get(), has_bias ? bias.data.get() : nullptr, found_y.data.get(), after, threads);
    expect("forward", c, found_y, y);
    kernels.input_gradient(c, dy.data.get(), found_dx.data.get(), threads);
    expect("input gradient", c, found_dx, dx);
    kernels.weight_gradient(c, x.data.get(), dy.data.get(), found_dvalues.data.get(), threads);
    expect("weight gradient", c, found_dvalues, dvalues);
}

}  // namespace

int main(int count, char **names) {
    for (int i = 1; i < count; ++i)
        for (const ConvKernels *kernels : {
#ifdef __x86_64__
                 &AVX2_CONV, &AVX512_CONV,
#endif
                 &GENERIC_CONV})
            if (!std::strcmp(kernels->isa, names[i])) {
                for (int round = 0; round < 300; ++round) run(*kernels);
                std::printf("%s: 300 problems\n", kernels->isa);
            }
    return 0;
}
