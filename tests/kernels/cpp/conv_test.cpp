// Runs the convolution kernels on many small problems in memory of exactly the right size, against sums in double
// precision. Arguments: the instruction sets to run.

#include "instruction_sets.h"
#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

namespace {

void expect(const char *what, const Conv &c, const Exact<float> &found, const std::vector<double> &wanted) {
    for (size_t i = 0; i < wanted.size(); ++i) {
        if (std::fabs(found[i] - wanted[i]) <= 2e-3 * (1 + std::fabs(wanted[i]))) continue;
        std::printf(
            "%s: %g instead of %g at %zu: %lld images of %lldx%lldx%lld, kernel %lldx%lld, stride %lld, padding "
            "%lld, dilation %lld, %lld outputs in %lld groups, tiles of %lldx%lld\n",
            what, found[i], wanted[i], i, (long long)c.images, (long long)c.channels, (long long)c.down.size,
            (long long)c.across.size, (long long)c.down.kernel, (long long)c.across.kernel, (long long)c.down.stride,
            (long long)c.down.padding, (long long)c.down.dilation, (long long)c.weight.outputs,
            (long long)c.channel_groups, (long long)c.weight.rows, (long long)c.weight.columns);
        std::exit(1);
    }
}

Axis random_axis(bool is_narrow) {
    if (is_narrow) return axis_of(between(3, 8), between(1, 3), between(1, 2), between(0, 2), between(1, 2));
    return axis_of(between(1, 20), between(1, 3), between(1, 3), between(0, 3), between(1, 2));
}

void run(const ConvKernels &kernels) {
    static const int64_t SIDES[] = {1, 2, 4, 5, 8, 16, 32, 48, 64};
    Conv c{};
    // Of some the transposed weight has whole tiles too, units are of many channels, and images are narrower than a
    // vector.
    const bool is_deep = between(0, 3) == 0;
    do c.down = random_axis(is_deep), c.across = random_axis(is_deep);
    while (c.down.out < 1 || c.across.out < 1);
    const int64_t rows = SIDES[between(0, is_deep ? 5 : 8)], columns = is_deep ? 16 : SIDES[between(0, 8)];
    c.images = between(1, is_deep ? 9 : 3), c.channel_groups = is_deep || between(0, 3) ? 1 : 2;
    // A group of rows lies in one group of channels.
    const bool is_whole = is_deep || c.channel_groups > 1;
    const int64_t outputs_a_group = is_whole ? rows * between(1, 2) : between(1, 70),
                  channels_a_group = is_deep ? columns * between(1, 2) : between(1, 20);
    const int64_t outputs = outputs_a_group * c.channel_groups, taps = c.down.kernel * c.across.kernel;
    c.channels = channels_a_group * c.channel_groups;
    const int64_t inputs = taps * channels_a_group, groups = (outputs + rows - 1) / rows, sparse = between(0, 2);
    std::vector<int32_t> ptrs{0}, cols;
    for (int64_t g = 0; g < groups; ++g) {
        for (int64_t i = 0; i < inputs; i += columns)
            if (!sparse || !between(0, sparse)) cols.push_back(static_cast<int32_t>(i));
        ptrs.push_back(static_cast<int32_t>(cols.size()));
    }
    Exact<int32_t> ptr(ptrs.size()), col(cols.size()), order(outputs);
    std::copy(ptrs.begin(), ptrs.end(), ptr.data.get());
    std::copy(cols.begin(), cols.end(), col.data.get());
    for (int64_t o = 0; o < outputs; ++o) order[o] = static_cast<int32_t>(o);
    const bool shuffled = c.channel_groups == 1 && between(0, 2) == 0;
    if (shuffled) std::shuffle(order.data.get(), order.data.get() + outputs, engine);
    std::vector<double> dense(outputs * inputs, 0);
    Exact<float> values(cols.size() * columns * rows);
    auto each = [&](auto visit) {
        for (int64_t g = 0; g < groups; ++g)
            for (int64_t k = ptrs[g]; k < ptrs[g + 1]; ++k)
                for (int64_t j = 0; j < columns; ++j)
                    for (int64_t b = 0; b < rows; ++b) {
                        const bool inside = cols[k] + j < inputs && g * rows + b < outputs;
                        visit((k * columns + j) * rows + b, inside,
                              inside ? order[g * rows + b] * inputs + cols[k] + j : 0);
                    }
    };
    each([&](int64_t at, bool inside, int64_t place) {
        values[at] = inside ? random_floats(1)[0] : 0;
        if (inside) dense[place] = values[at];
    });
    c.weight = {values.data.get(),
                ptr.data.get(),
                col.data.get(),
                shuffled ? order.data.get() : nullptr,
                outputs,
                inputs,
                groups,
                rows,
                columns};
    const int64_t pixels_in = c.images * c.down.size * c.across.size, pixels = c.images * c.down.out * c.across.out;
    const Exact<float> x = random_floats(pixels_in * c.channels), dy = random_floats(pixels * outputs);
    const Exact<float> bias = random_floats(outputs);
    const bool has_bias = between(0, 1);
    const Activation after = static_cast<Activation>(between(0, 4));
    const int threads = static_cast<int>(between(1, 4));

    std::vector<double> y(pixels * outputs, 0), dx(pixels_in * c.channels, 0), dweight(outputs * inputs, 0);
    for (int64_t n = 0; n < c.images; ++n)
        for (int64_t r = 0; r < c.down.out; ++r)
            for (int64_t q = 0; q < c.across.out; ++q)
                for (int64_t o = 0; o < outputs; ++o) {
                    const int64_t at = ((n * c.down.out + r) * c.across.out + q) * outputs + o;
                    const int64_t channel_group = o / (outputs / c.channel_groups);
                    double sum = has_bias ? bias[o] : 0;
                    for (int64_t tap = 0; tap < taps; ++tap) {
                        const int64_t row =
                            r * c.down.stride - c.down.padding + tap / c.across.kernel * c.down.dilation;
                        const int64_t column =
                            q * c.across.stride - c.across.padding + tap % c.across.kernel * c.across.dilation;
                        if (row < 0 || row >= c.down.size || column < 0 || column >= c.across.size) continue;
                        for (int64_t i = 0; i < channels_a_group; ++i) {
                            const int64_t from = ((n * c.down.size + row) * c.across.size + column) * c.channels +
                                                 channel_group * channels_a_group + i;
                            const int64_t weight = o * inputs + tap * channels_a_group + i;
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
    const std::map<std::string, const ConvKernels *> sets = {
#ifdef __x86_64__
        {"avx2", &avx2::CONV},
        {"avx512", &avx512::CONV},
#endif
        {"generic", &generic::CONV}};
    for (int i = 1; i < count; ++i) {
        for (int round = 0; round < 300; ++round) run(*sets.at(names[i]));
        std::printf("%s: 300 problems\n", names[i]);
    }
    return 0;
}
