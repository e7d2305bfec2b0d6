// The instruction sets that the kernels were compiled for, and which of them this CPU can run.

#pragma once

#include "kernels.h"

#include <string>
#include <vector>

struct InstructionSet {
    const char *name;
    std::vector<std::string> needed;  // of the names in `features`
    // Null in a set that adds nothing to them: those of the next set are as good.
    const LinearKernels *linear;
    const ConvKernels *conv;
    const NarrowKernels *narrow;
    const GroupingKernels *grouping;
    const SelectionKernels *selection;
    const NormKernels *norm;
};

// Those that this CPU can run, the one with the most instructions first.
const std::vector<InstructionSet> &instruction_sets();

namespace generic {
extern const LinearKernels LINEAR;
extern const ConvKernels CONV;
extern const NarrowKernels NARROW;
extern const GroupingKernels GROUPING;
extern const SelectionKernels SELECTION;
extern const NormKernels NORM;
}  // namespace generic

namespace avx2 {
extern const LinearKernels LINEAR;
extern const ConvKernels CONV;
extern const NarrowKernels NARROW;
extern const GroupingKernels GROUPING;
extern const SelectionKernels SELECTION;
extern const NormKernels NORM;
}  // namespace avx2

namespace avx512 {
extern const LinearKernels LINEAR;
extern const ConvKernels CONV;
extern const NarrowKernels NARROW;
extern const GroupingKernels GROUPING;
extern const SelectionKernels SELECTION;
extern const NormKernels NORM;
}  // namespace avx512

namespace avx512vpopcntdq {
extern const GroupingKernels GROUPING;
}

namespace avx512vnni {
extern const NarrowKernels NARROW;
}

namespace avx512bf16 {
extern const NarrowKernels NARROW;
}
