// The kernels as Python functions. Memory comes as addresses: the caller has checked every shape and index.

#include "instruction_sets.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/vector.h>

#include <array>

namespace nb = nanobind;

namespace {

// What Python passes for an argument of a kernel: for memory its address, for an activation its number.
template <class T>
struct Passed {
    using Type = T;
    static T taken(T argument) { return argument; }
};
template <class T>
struct Passed<T *> {
    using Type = uintptr_t;
    static T *taken(uintptr_t address) { return reinterpret_cast<T *>(address); }
};
template <>
struct Passed<Activation> {
    using Type = int;
    static Activation taken(int number) { return static_cast<Activation>(number); }
};

template <class Kernels, class... Arguments>
void define(nb::class_<Kernels> &bound, const char *name, void (*Kernels::*kernel)(Arguments...)) {
    bound.def(
        name,
        [kernel](const Kernels &kernels, typename Passed<Arguments>::Type... arguments) {
            (kernels.*kernel)(Passed<Arguments>::taken(arguments)...);
        },
        nb::call_guard<nb::gil_scoped_release>());
}

using Sizes = std::array<int64_t, 5>;

Axis axis(const Sizes &sizes) { return axis_of(sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]); }

}  // namespace

void bind_kernels(nb::module_ &module) {
    nb::class_<Weight>(module, "Weight", "Where a compressed weight lies; keeps nothing alive.")
        .def("__init__",
             [](Weight *self, uintptr_t values, uintptr_t ptr, uintptr_t col, uintptr_t order, int64_t outputs,
                int64_t inputs, int64_t groups, int64_t rows, int64_t columns) {
                 new (self) Weight{reinterpret_cast<const void *>(values),
                                   reinterpret_cast<const int32_t *>(ptr),
                                   reinterpret_cast<const int32_t *>(col),
                                   reinterpret_cast<const int32_t *>(order),
                                   outputs,
                                   inputs,
                                   groups,
                                   rows,
                                   columns};
             })
        .def("int8_steps", [](const Weight &weight) { return num_steps(weight, INT8_STEP); },
             "Return how many steps its values have in int8.");
    nb::class_<Conv>(module, "Conv",
                     "A convolution with a compressed weight: its axes down and across, each as size, kernel, stride, "
                     "padding and dilation. Keeps nothing alive.")
        .def("__init__", [](Conv *self, const Weight &weight, const Sizes &down, const Sizes &across, int64_t images,
                            int64_t channels, int64_t channel_groups) {
            new (self) Conv{weight, axis(down), axis(across), images, channels, channel_groups};
        });

    nb::class_<LinearKernels> linear(module, "LinearKernels", "The linear kernels for float32.");
    define(linear, "forward", &LinearKernels::forward);
    define(linear, "input_gradient", &LinearKernels::input_gradient);
    define(linear, "weight_gradient", &LinearKernels::weight_gradient);

    nb::class_<ConvKernels> conv(module, "ConvKernels", "The convolutions for float32.");
    define(conv, "forward", &ConvKernels::forward);
    define(conv, "input_gradient", &ConvKernels::input_gradient);
    define(conv, "weight_gradient", &ConvKernels::weight_gradient);

    nb::class_<NarrowKernels> narrow(module, "NarrowKernels", "The linear kernels for bfloat16, and for int8.");
    define(narrow, "forward", &NarrowKernels::forward);
    define(narrow, "input_gradient", &NarrowKernels::input_gradient);
    define(narrow, "weight_gradient", &NarrowKernels::weight_gradient);
    define(narrow, "int8_forward", &NarrowKernels::int8_forward);
    define(narrow, "int8_forward_bf16", &NarrowKernels::int8_forward_bf16);

    nb::class_<GroupingKernels> grouping(module, "GroupingKernels", "Groups of rows whose bits agree.");
    define(grouping, "group", &GroupingKernels::group);
    define(grouping, "mark", &GroupingKernels::mark);
    define(grouping, "means", &GroupingKernels::means);
    define(grouping, "means_of_kept", &GroupingKernels::means_of_kept);

    nb::class_<SelectionKernels> selection(module, "SelectionKernels", "What is kept, by scores in float32.");
    define(selection, "largest", &SelectionKernels::largest);
    define(selection, "runs", &SelectionKernels::runs);
    define(selection, "groups", &SelectionKernels::groups);
    define(selection, "best_tiles", &SelectionKernels::best_tiles);
    define(selection, "greedy_tiles", &SelectionKernels::greedy_tiles);

    nb::class_<Norm>(module, "Norm", "A batch norm as scales and shifts of channels; keeps nothing alive.")
        .def("__init__", [](Norm *self, uintptr_t scale, uintptr_t shift, int64_t rows, int64_t channels) {
            new (self) Norm{reinterpret_cast<const float *>(scale), reinterpret_cast<const float *>(shift), rows,
                            channels};
        });
    nb::class_<NormKernels> norm(module, "NormKernels", "Batch norms in training for float32.");
    define(norm, "moments", &NormKernels::moments);
    define(norm, "forward", &NormKernels::forward);
    define(norm, "gradient_sums", &NormKernels::gradient_sums);
    define(norm, "input_gradient", &NormKernels::input_gradient);

    nb::class_<InstructionSet>(module, "InstructionSet",
                               "An instruction set and its kernels; None where it adds nothing to them.")
        .def_ro("name", &InstructionSet::name)
        .def_ro("linear", &InstructionSet::linear)
        .def_ro("conv", &InstructionSet::conv)
        .def_ro("narrow", &InstructionSet::narrow)
        .def_ro("grouping", &InstructionSet::grouping)
        .def_ro("selection", &InstructionSet::selection)
        .def_ro("norm", &InstructionSet::norm);
    module.def("instruction_sets", &instruction_sets,
               "Return the instruction sets that this CPU can run, the one with the most instructions first.");
}
