// Groups the rows of many small matrices of bits, in memory of exactly the right size, and compares with a plain loop.
// Built with sanitizers, it finds every access outside that memory. Arguments: the instruction sets to run.

#include "instruction_sets.h"
#include "memory.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

namespace {

int64_t overlap(const uint64_t *a, const uint64_t *b, int64_t words) {
    int64_t count = 0;
    for (int64_t w = 0; w < words; ++w)
        for (uint64_t both = a[w] & b[w]; both; both &= both - 1) ++count;
    return count;
}

std::vector<int64_t> grouped(const Exact<uint64_t> &bits, const Exact<int64_t> &scale, int64_t rows, int64_t words,
                             int64_t size) {
    std::vector<int64_t> order, linkage;
    std::vector<bool> taken(rows, false);
    for (int64_t place = 0; place < rows; ++place) {
        if (place % size == 0) linkage.assign(rows, 0);
        int64_t member = -1;
        for (int64_t r = 0; r < rows; ++r)
            if (!taken[r] && (member < 0 || linkage[r] * scale[r] > linkage[member] * scale[member])) member = r;
        taken[member] = true;
        order.push_back(member);
        for (int64_t r = 0; r < rows; ++r)
            linkage[r] += scale[member] * overlap(&bits[member * words], &bits[r * words], words);
    }
    return order;
}

void run(const GroupingKernels &kernels) {
    const int64_t rows = between(1, 60), size = between(1, 70);
    // More words than counts in bytes have room for, and more than 16 bits have, now and then.
    const int64_t words = between(0, 9) ? between(1, 40) : between(0, 4) ? between(200, 300) : between(1020, 1030);
    Exact<uint64_t> bits(rows * words);
    Exact<int64_t> scale(rows), order(rows);
    const int64_t sparse = between(0, 3);
    for (size_t i = 0; i < bits.count; ++i) {
        bits[i] = ~0ull;
        for (int64_t j = 0; j < sparse; ++j) bits[i] &= static_cast<uint64_t>(between(0, INT64_MAX)) * 2;
    }
    for (int64_t r = 0; r < rows; ++r) scale[r] = between(1, 1 << 20);
    kernels.group(bits.data.get(), scale.data.get(), rows, words, size, order.data.get(), 3);
    const std::vector<int64_t> wanted = grouped(bits, scale, rows, words, size);
    for (int64_t place = 0; place < rows; ++place) {
        if (order[place] == wanted[place]) continue;
        std::printf("row %lld instead of %lld at %lld: %lld rows of %lld words in groups of %lld\n",
                    (long long)order[place], (long long)wanted[place], (long long)place, (long long)rows,
                    (long long)words, (long long)size);
        std::exit(1);
    }
}

// What groups of a random index keep, against plain loops.
void run_means(const GroupingKernels &kernels) {
    const int64_t outputs = between(1, 40), inputs = between(1, 50), rows = between(1, 9), size = between(1, 12);
    const int64_t groups = (outputs + rows - 1) / rows, bytes = (inputs + 7) / 8;
    Exact<int32_t> ptr(groups + 1), order(outputs), members(outputs);
    std::vector<int32_t> kept;
    ptr[0] = 0;
    for (int64_t group = 0; group < groups; ++group) {
        for (int32_t column = 0; column < inputs; ++column)
            if (between(0, 2) == 0) kept.push_back(column);
        ptr[group + 1] = static_cast<int32_t>(kept.size());
    }
    Exact<int32_t> col(kept.size());
    for (size_t unit = 0; unit < kept.size(); ++unit) col[unit] = kept[unit];
    // Two orders that are easy to make: turned by some places, and backwards.
    const int64_t turn = between(0, outputs - 1);
    for (int64_t place = 0; place < outputs; ++place) {
        order[place] = static_cast<int32_t>((place + turn) % outputs);
        members[place] = static_cast<int32_t>(outputs - 1 - place);
    }
    const Exact<float> scores = random_floats(kept.size() * rows);
    const Weight weight{scores.data.get(), ptr.data.get(), col.data.get(), order.data.get(), outputs, inputs, groups,
                        rows, 1};
    Exact<uint8_t> chosen(scores.count), bits(outputs * bytes);
    for (size_t i = 0; i < chosen.count; ++i) chosen[i] = scores[i] > 0;
    for (size_t i = 0; i < bits.count; ++i) bits[i] = 0;
    Exact<float> matrix(outputs * inputs);
    const int64_t new_groups = (outputs + size - 1) / size;
    Exact<float> means(new_groups * inputs), means_of_kept(new_groups * inputs);
    for (size_t i = 0; i < matrix.count; ++i) matrix[i] = -2;
    for (int64_t place = 0; place < outputs; ++place)
        for (int64_t unit = ptr[place / rows]; unit < ptr[place / rows + 1]; ++unit)
            matrix[order[place] * inputs + col[unit]] = scores[unit * rows + place % rows];
    kernels.mark(weight, chosen.data.get(), bits.data.get(), bytes, 3);
    kernels.means(matrix.data.get(), members.data.get(), means.data.get(), outputs, inputs, size, 3);
    kernels.means_of_kept(weight, -2, members.data.get(), means_of_kept.data.get(), size, 3);
    for (int64_t i = 0; i < outputs * inputs; ++i) {
        const int64_t output = i / inputs, column = i % inputs, cell = (outputs - 1 - output) / size * inputs + column;
        const bool is_marked = bits[output * bytes + column / 8] >> (7 - column % 8) & 1;
        const bool is_kept = means_of_kept[cell] > -1e30f;
        if (is_marked == (matrix[i] > 0) && (!is_kept || means_of_kept[cell] == means[cell]) &&
            (is_kept || matrix[i] == -2))
            continue;
        std::printf("output %lld, input %lld\n", (long long)output, (long long)column);
        std::exit(1);
    }
}

}  // namespace

int main(int count, char **names) {
    const std::map<std::string, const GroupingKernels *> sets = {
#ifdef __x86_64__
        {"avx2", &avx2::GROUPING},
        {"avx512", &avx512::GROUPING},
        {"avx512vpopcntdq", &avx512vpopcntdq::GROUPING},
#endif
        {"generic", &generic::GROUPING}};
    for (int i = 1; i < count; ++i) {
        for (int round = 0; round < 300; ++round) {
            run(*sets.at(names[i]));
            run_means(*sets.at(names[i]));
        }
        std::printf("%s: 300 problems\n", names[i]);
    }
    return 0;
}
