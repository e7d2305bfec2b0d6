// Runs the linear float32 kernels on many small problems in memory of exactly the right size, against sums in double
// precision. Built with sanitizers, it finds every access outside that memory. Arguments: the instruction sets to run.

#include "instruction_sets.h"
#include "memory.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

namespace {

struct Problem {
    int64_t outputs, inputs, rows, columns, groups, tokens;
    std::vector<int32_t> ptr, col, order;
    bool shuffled;

    Problem() {
        static const int64_t SIDES[] = {1, 2, 3, 4, 5, 8, 13, 16, 24, 32, 48, 64, 80};
        rows = SIDES[between(0, 12)], columns = SIDES[between(0, 12)];
        outputs = between(1, 150), inputs = between(1, 150), tokens = between(0, 3) ? between(0, 120) : between(0, 8);
        groups = (outputs + rows - 1) / rows;
        const int64_t sparse = between(0, 3);
        ptr.push_back(0);
        for (int64_t g = 0; g < groups; ++g) {
            for (int64_t c = 0; c < inputs; c += columns)
                if (sparse == 0 || between(0, sparse) == 0) col.push_back(static_cast<int32_t>(c));
            ptr.push_back(static_cast<int32_t>(col.size()));
        }
        shuffled = between(0, 2) == 0;
        for (int32_t o = 0; o < outputs; ++o) order.push_back(o);
        if (shuffled) std::shuffle(order.begin(), order.end(), engine);
    }
};

void expect(const char *what, const Problem &p, const Exact<float> &found, const std::vector<double> &wanted) {
    for (size_t i = 0; i < wanted.size(); ++i) {
        if (std::fabs(found[i] - wanted[i]) <= 2e-3 * (1 + std::fabs(wanted[i]))) continue;
        std::printf("%s: %g instead of %g at %zu: %lld tokens, %lldx%lld in tiles of %lldx%lld\n", what, found[i],
                    wanted[i], i, (long long)p.tokens, (long long)p.outputs, (long long)p.inputs, (long long)p.rows,
                    (long long)p.columns);
        std::exit(1);
    }
}

void run(const LinearKernels &kernels) {
    const Problem p;
    Exact<int32_t> ptr(p.ptr.size()), col(p.col.size()), order(p.order.size());
    std::copy(p.ptr.begin(), p.ptr.end(), ptr.data.get());
    std::copy(p.col.begin(), p.col.end(), col.data.get());
    std::copy(p.order.begin(), p.order.end(), order.data.get());
    std::vector<double> dense(p.outputs * p.inputs, 0);
    Exact<float> values(p.col.size() * p.columns * p.rows);
    for (int64_t g = 0; g < p.groups; ++g)
        for (int64_t k = p.ptr[g]; k < p.ptr[g + 1]; ++k)
            for (int64_t j = 0; j < p.columns; ++j)
                for (int64_t b = 0; b < p.rows; ++b) {
                    const bool inside = p.col[k] + j < p.inputs && g * p.rows + b < p.outputs;
                    const float value = inside ? random_floats(1)[0] : 0;
                    values[(k * p.columns + j) * p.rows + b] = value;
                    if (inside) dense[p.order[g * p.rows + b] * p.inputs + p.col[k] + j] = value;
                }
    const Exact<float> x = random_floats(p.tokens * p.inputs), dy = random_floats(p.tokens * p.outputs);
    const Exact<float> bias = random_floats(p.outputs), residual = random_floats(p.tokens * p.outputs);
    const bool has_bias = between(0, 1), has_residual = between(0, 1);
    const Activation before = static_cast<Activation>(between(0, 4)), after = static_cast<Activation>(between(0, 4));
    const int threads = static_cast<int>(between(1, 4));

    std::vector<double> y(p.tokens * p.outputs), dx(p.tokens * p.inputs), dw(values.count, 0);
    for (int64_t t = 0; t < p.tokens; ++t) {
        for (int64_t o = 0; o < p.outputs; ++o) {
            double sum = has_bias ? bias[o] : 0;
            for (int64_t i = 0; i < p.inputs; ++i)
                sum += activated(before, x[t * p.inputs + i]) * dense[o * p.inputs + i];
            y[t * p.outputs + o] = activated(after, sum) + (has_residual ? residual[t * p.outputs + o] : 0);
        }
        for (int64_t i = 0; i < p.inputs; ++i) {
            double sum = 0;
            for (int64_t o = 0; o < p.outputs; ++o) sum += dy[t * p.outputs + o] * dense[o * p.inputs + i];
            dx[t * p.inputs + i] = sum * derivative(before, x[t * p.inputs + i]);
        }
    }
    for (int64_t g = 0; g < p.groups; ++g)
        for (int64_t k = p.ptr[g]; k < p.ptr[g + 1]; ++k)
            for (int64_t j = 0; j < p.columns; ++j)
                for (int64_t b = 0; b < p.rows; ++b)
                    for (int64_t t = 0; t < p.tokens; ++t)
                        if (p.col[k] + j < p.inputs && g * p.rows + b < p.outputs)
                            dw[(k * p.columns + j) * p.rows + b] += dy[t * p.outputs + p.order[g * p.rows + b]] *
                                                             activated(before, x[t * p.inputs + p.col[k] + j]);

    Exact<float> found_y(y.size()), found_dx(dx.size()), found_dw(dw.size());
    for (const Exact<float> *memory : {&found_y, &found_dx, &found_dw})
        for (size_t i = 0; i < memory->count; ++i) (*memory)[i] = NAN;
    Weight w{values.data.get(), ptr.data.get(), col.data.get(), p.shuffled ? order.data.get() : nullptr,
             p.outputs,         p.inputs,       p.groups,       p.rows,
             p.columns};
    kernels.forward(w, x.data.get(), has_bias ? bias.data.get() : nullptr,
                    has_residual ? residual.data.get() : nullptr, found_y.data.get(), p.tokens, before, after, threads);
    expect("forward", p, found_y, y);
    kernels.input_gradient(w, dy.data.get(), x.data.get(), found_dx.data.get(), p.tokens, before, threads);
    expect("input gradient", p, found_dx, dx);
    w.values = nullptr;
    kernels.weight_gradient(w, x.data.get(), dy.data.get(), found_dw.data.get(), p.tokens, before, threads);
    expect("weight gradient", p, found_dw, dw);
}

}  // namespace

int main(int count, char **names) {
    const std::map<std::string, const LinearKernels *> sets = {
#ifdef __x86_64__
        {"avx2", &avx2::LINEAR},
        {"avx512", &avx512::LINEAR},
#endif
        {"generic", &generic::LINEAR}};
    for (int i = 1; i < count; ++i) {
        for (int round = 0; round < 300; ++round) run(*sets.at(names[i]));
        std::printf("%s: 300 problems\n", names[i]);
    }
    return 0;
}
