// Runs the choices of what is kept on many small problems in memory of exactly the right size, and counts what they
// keep. Arguments: the instruction sets to run.

#include "instruction_sets.h"
#include "memory.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace {

void expect(const char *what, int64_t found, int64_t least, int64_t most) {
    if (found >= least && found <= most) return;
    std::printf("%s: %lld kept\n", what, static_cast<long long>(found));
    std::exit(1);
}

int64_t count(const Exact<uint8_t> &mask, size_t first, size_t step, size_t size) {
    int64_t kept = 0;
    for (size_t i = 0; i < size; ++i) kept += mask[first + i * step];
    return kept;
}

void run(const SelectionKernels &kernels) {
    const int64_t outputs = 4 * between(0, 10), tiles = between(1, 40), inputs = 4 * tiles, n = between(1, 3);
    const int threads = static_cast<int>(between(1, 4));
    const Exact<float> scores = random_floats(outputs * inputs);
    Exact<uint8_t> best(scores.count), greedy(scores.count), grouped(scores.count), largest(scores.count);
    for (const Exact<uint8_t> *mask : {&best, &greedy, &grouped, &largest})
        for (size_t i = 0; i < mask->count; ++i) (*mask)[i] = 100;
    kernels.best_tiles(scores.data.get(), best.data.get(), outputs, inputs, n, threads);
    kernels.greedy_tiles(scores.data.get(), greedy.data.get(), outputs, inputs, n, threads);
    kernels.groups(scores.data.get(), grouped.data.get(), outputs, n, inputs, threads);
    if (outputs) {
        const int64_t wanted = between(1, outputs * inputs);
        kernels.largest(scores.data.get(), largest.data.get(), outputs * inputs, wanted, threads);
        expect("the largest", count(largest, 0, 1, scores.count), wanted, wanted);
    }
    if (outputs) {
        const int64_t columns = between(1, 9), in_a_row = (inputs + columns - 1) / columns;
        const int64_t wanted = between(1, outputs * in_a_row);
        Exact<uint8_t> allowed(scores.count), runs(scores.count);
        for (size_t i = 0; i < scores.count; ++i) allowed[i] = between(0, 2) > 0;
        kernels.runs(scores.data.get(), allowed.data.get(), runs.data.get(), outputs, inputs, columns, wanted, threads);
        expect("the best runs", count(runs, 0, 1, scores.count), 0, wanted * columns);
        for (size_t i = 0; i < scores.count; ++i) expect("what is not allowed", runs[i], 0, allowed[i]);
    }
    for (int64_t row = 0; row < outputs; ++row) {
        expect("a group", count(grouped, row * inputs, 1, inputs), n, n);
        for (int64_t tile = 0; tile < tiles; ++tile) {
            expect("a row of a best tile", count(best, row * inputs + tile * 4, 1, 4), n, n);
            expect("a row of a greedy tile", count(greedy, row * inputs + tile * 4, 1, 4), 0, n);
        }
    }
    for (int64_t row = 0; row < outputs; row += 4)
        for (int64_t column = 0; column < inputs; ++column) {
            expect("a column of a best tile", count(best, row * inputs + column, inputs, 4), n, n);
            expect("a column of a greedy tile", count(greedy, row * inputs + column, inputs, 4), 0, n);
        }
}

}  // namespace

int main(int count, char **names) {
    const std::map<std::string, const SelectionKernels *> sets = {
#ifdef __x86_64__
        {"avx2", &avx2::SELECTION},
        {"avx512", &avx512::SELECTION},
#endif
        {"generic", &generic::SELECTION}};
    for (int i = 1; i < count; ++i) {
        for (int round = 0; round < 300; ++round) run(*sets.at(names[i]));
        std::printf("%s: 300 problems\n", names[i]);
    }
    return 0;
}
