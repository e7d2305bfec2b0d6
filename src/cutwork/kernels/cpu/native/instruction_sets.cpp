// Which kernels this CPU can run.

#include "instruction_sets.h"

#include "cpu_features.h"

#include <algorithm>

namespace {

const std::vector<InstructionSet> COMPILED = {
#ifdef __x86_64__
    {"avx512bf16",
     {"avx512f", "avx512bw", "avx512vl", "avx512dq", "fma", "avx512_vnni", "avx512_bf16"},
     nullptr,
     nullptr,
     &avx512bf16::NARROW,
     nullptr,
     nullptr,
     nullptr},
    {"avx512vnni",
     {"avx512f", "avx512bw", "avx512vl", "avx512dq", "fma", "avx512_vnni"},
     nullptr,
     nullptr,
     &avx512vnni::NARROW,
     nullptr,
     nullptr,
     nullptr},
    {"avx512vpopcntdq",
     {"avx512f", "avx512bw", "avx512vl", "avx512dq", "fma", "avx512_vpopcntdq"},
     nullptr,
     nullptr,
     nullptr,
     &avx512vpopcntdq::GROUPING,
     nullptr,
     nullptr},
    {"avx512",
     {"avx512f", "avx512bw", "avx512vl", "avx512dq", "fma"},
     &avx512::LINEAR,
     &avx512::CONV,
     &avx512::NARROW,
     &avx512::GROUPING,
     &avx512::SELECTION,
     &avx512::NORM},
    {"avx2",
     {"avx2", "fma"},
     &avx2::LINEAR,
     &avx2::CONV,
     &avx2::NARROW,
     &avx2::GROUPING,
     &avx2::SELECTION,
     &avx2::NORM},
#endif
    {"generic",
     {},
     &generic::LINEAR,
     &generic::CONV,
     &generic::NARROW,
     &generic::GROUPING,
     &generic::SELECTION,
     &generic::NORM},
};

std::vector<InstructionSet> find() {
    const std::vector<std::string> there = features();
    std::vector<InstructionSet> found;
    for (const InstructionSet &set : COMPILED)
        if (std::all_of(set.needed.begin(), set.needed.end(), [&](const std::string &feature) {
                return std::find(there.begin(), there.end(), feature) != there.end();
            }))
            found.push_back(set);
    return found;
}

}  // namespace

const std::vector<InstructionSet> &instruction_sets() {
    static const std::vector<InstructionSet> found = find();
    return found;
}
