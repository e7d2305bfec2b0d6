// Runs the bfloat16 and int8 kernels on many small problems in memory of exactly the right size, against sums in double
// precision. Arguments: the instruction sets to run.

#include "instruction_sets.h"
#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

uint16_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float number_of(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

Exact<uint16_t> random_words(size_t count) {
    Exact<uint16_t> words(count);
    const Exact<float> floats = random_floats(count);
    for (size_t i = 0; i < count; ++i) words[i] = bits_of(floats[i]);
    return words;
}

struct Shape {
    long long tokens, outputs, inputs, rows, columns;
};

// Results are rounded to bfloat16, or made of inputs and weights of 8 bits: `size` is that of the sum of absolute
// terms.
void expect(const char *what, const Shape &s, double found, double wanted, double size, double tolerance) {
    if (std::fabs(found - wanted) <= tolerance * (size + std::fabs(wanted)) + 1e-6) return;
    std::printf("%s: %g instead of %g: %lld tokens, %lldx%lld in tiles of %lldx%lld\n", what, found, wanted, s.tokens,
                s.outputs, s.inputs, s.rows, s.columns);
    std::exit(1);
}

void run(const NarrowKernels &kernels) {
    static const int64_t SIDES[] = {1, 2, 3, 4, 5, 8, 13, 16, 24, 32, 48, 64};
    const int64_t rows = SIDES[between(0, 11)], columns = SIDES[between(0, 11)], outputs = between(1, 100);
    const int64_t inputs = between(1, 100), tokens = between(0, 2) ? between(0, 80) : between(0, 8);
    const int64_t groups = (outputs + rows - 1) / rows, sparse = between(0, 3);
    const Shape shape{tokens, outputs, inputs, rows, columns};
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
    const bool shuffled = between(0, 2) == 0;
    if (shuffled) std::shuffle(order.data.get(), order.data.get() + outputs, engine);
    std::vector<double> dense(outputs * inputs, 0), dense8(outputs * inputs, 0);
    Exact<uint16_t> values(cols.size() * columns * rows);
    // The form of int8: four kept inputs of a group make a step.
    std::vector<int64_t> first_step{0};
    for (int64_t g = 0; g < groups; ++g)
        first_step.push_back(first_step.back() + ((ptrs[g + 1] - ptrs[g]) * columns + 3) / 4);
    Exact<int8_t> integers(first_step.back() * rows * 4);
    std::fill(integers.data.get(), integers.data.get() + integers.count, 0);
    Exact<float> scales(outputs);
    for (int64_t o = 0; o < outputs; ++o) scales[o] = 0.01f * static_cast<float>(between(1, 9));
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t k = ptrs[g]; k < ptrs[g + 1]; ++k)
            for (int64_t j = 0; j < columns; ++j)
                for (int64_t b = 0; b < rows; ++b) {
                    const bool inside = cols[k] + j < inputs && g * rows + b < outputs;
                    const uint16_t value = inside ? bits_of(random_floats(1)[0]) : 0;
                    const int64_t kept = (k - ptrs[g]) * columns + j, number = inside ? between(-127, 127) : 0;
                    values[(k * columns + j) * rows + b] = value;
                    integers[((first_step[g] + kept / 4) * rows + b) * 4 + kept % 4] = static_cast<int8_t>(number);
                    if (!inside) continue;
                    const int64_t o = order[g * rows + b], at = o * inputs + cols[k] + j;
                    dense[at] = number_of(value), dense8[at] = static_cast<double>(number) * scales[o];
                }
    const Exact<uint16_t> x = random_words(tokens * inputs), dy = random_words(tokens * outputs);
    const Exact<uint16_t> residual = random_words(tokens * outputs);
    const Exact<float> bias = random_floats(outputs);
    Exact<float> wide_x(x.count);
    for (size_t i = 0; i < x.count; ++i) wide_x[i] = number_of(x[i]);
    const bool has_bias = between(0, 1), has_residual = between(0, 1);
    const int threads = static_cast<int>(between(1, 4));
    const auto before = static_cast<Activation>(between(0, 4)), after = static_cast<Activation>(between(0, 4));
    const float *b = has_bias ? bias.data.get() : nullptr;
    Weight w{values.data.get(), ptr.data.get(), col.data.get(), shuffled ? order.data.get() : nullptr,
                   outputs,           inputs,         groups,         rows,
                   columns};

    Exact<uint16_t> y(tokens * outputs), dx(tokens * inputs), dvalues(values.count), y8_bf16(tokens * outputs);
    Exact<float> y8(tokens * outputs);
    for (const Exact<uint16_t> *memory : {&y, &dx, &dvalues, &y8_bf16})
        for (size_t i = 0; i < memory->count; ++i) (*memory)[i] = 0x7fc0;
    for (size_t i = 0; i < y8.count; ++i) y8[i] = NAN;
    kernels.forward(w, x.data.get(), b, has_residual ? residual.data.get() : nullptr, y.data.get(), tokens,
                         before, after, threads);
    kernels.input_gradient(w, dy.data.get(), dx.data.get(), tokens, threads);
    w.values = integers.data.get();
    kernels.int8_forward(w, scales.data.get(), wide_x.data.get(), b, y8.data.get(), tokens, after, threads);
    kernels.int8_forward_bf16(w, scales.data.get(), x.data.get(), b, y8_bf16.data.get(), tokens, after, threads);
    w.values = nullptr;
    kernels.weight_gradient(w, x.data.get(), dy.data.get(), dvalues.data.get(), tokens, threads);

    for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t o = 0; o < outputs; ++o) {
            const double first = has_bias ? bias[o] : 0;
            double sum = first, sum8 = first, size = std::fabs(first), size8 = size;
            for (int64_t i = 0; i < inputs; ++i) {
                const double input = wide_x[t * inputs + i], active = activated(before, input);
                sum += active * dense[o * inputs + i], size += std::fabs(active * dense[o * inputs + i]);
                // Each input may lie half a step off, and a step is a part of the row's whole width.
                sum8 += input * dense8[o * inputs + i], size8 += 4 * std::fabs(dense8[o * inputs + i]);
            }
            const int64_t at = t * outputs + o;
            const double wanted = activated(after, sum) + (has_residual ? number_of(residual[at]) : 0);
            expect("bfloat16 forward", shape, number_of(y[at]), wanted, size + 4, 1e-2);
            expect("int8 forward", shape, y8[at], activated(after, sum8), size8, 1e-2);
            expect("int8 forward of bfloat16", shape, number_of(y8_bf16[at]), activated(after, sum8), size8, 2e-2);
        }
        for (int64_t i = 0; i < inputs; ++i) {
            double sum = 0, size = 0;
            for (int64_t o = 0; o < outputs; ++o) {
                const double term = number_of(dy[t * outputs + o]) * dense[o * inputs + i];
                sum += term, size += std::fabs(term);
            }
            expect("bfloat16 input gradient", shape, number_of(dx[t * inputs + i]), sum, size, 1e-2);
        }
    }
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t k = ptrs[g]; k < ptrs[g + 1]; ++k)
            for (int64_t j = 0; j < columns; ++j)
                for (int64_t o = 0; o < rows; ++o) {
                    double sum = 0, size = 0;
                    for (int64_t t = 0; t < tokens && cols[k] + j < inputs && g * rows + o < outputs; ++t) {
                        const double term = number_of(dy[t * outputs + order[g * rows + o]]) *
                                            static_cast<double>(wide_x[t * inputs + cols[k] + j]);
                        sum += term, size += std::fabs(term);
                    }
                    expect("bfloat16 weight gradient", shape, number_of(dvalues[(k * columns + j) * rows + o]), sum,
                           size, 1e-2);
                }
}

}  // namespace

int main(int count, char **names) {
    const std::map<std::string, const NarrowKernels *> sets = {
#ifdef __x86_64__
        {"avx2", &avx2::NARROW},
        {"avx512", &avx512::NARROW},
        {"avx512vnni", &avx512vnni::NARROW},
        {"avx512bf16", &avx512bf16::NARROW},
#endif
        {"generic", &generic::NARROW}};
    for (int i = 1; i < count; ++i) {
        for (int round = 0; round < 300; ++round) run(*sets.at(names[i]));
        std::printf("%s: 300 problems\n", names[i]);
    }
    return 0;
}
