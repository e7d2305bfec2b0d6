// The narrow kernels as Python functions. Memory comes as addresses: the caller has checked every shape and index.

#include "narrow_bindings.h"

#include "narrow.h"

#include <cstring>

namespace nb = nanobind;

namespace {

#if defined(__x86_64__)
const NarrowKernels *const KERNELS[] = {&GENERIC_NARROW, &AVX2_NARROW, &AVX512_NARROW, &AVX512_VNNI_NARROW,
                                        &AVX512_BF16_NARROW};
#else
const NarrowKernels *const KERNELS[] = {&GENERIC_NARROW};
#endif

template <class T>
T *at(uintptr_t address) {
    return reinterpret_cast<T *>(address);
}

// The kernels of one instruction set.
class Narrow {
  public:
    explicit Narrow(const char *isa) : kernels(nullptr) {
        for (const NarrowKernels *candidate : KERNELS)
            if (!std::strcmp(candidate->isa, isa)) kernels = candidate;
        if (!kernels) throw nb::value_error("this build has no kernels for that instruction set");
    }

    void forward(const NarrowWeight &weight, uintptr_t x, uintptr_t bias, uintptr_t residual, uintptr_t y,
                 int64_t tokens, int before, int after, int threads) const {
        kernels->bf16_forward(weight, at<const uint16_t>(x), at<const float>(bias), at<const uint16_t>(residual),
                              at<uint16_t>(y), tokens, static_cast<Activation>(before),
                              static_cast<Activation>(after), threads);
    }

    void input_gradient(const NarrowWeight &weight, uintptr_t dy, uintptr_t dx, int64_t tokens, int threads) const {
        kernels->bf16_input_gradient(weight, at<const uint16_t>(dy), at<uint16_t>(dx), tokens, threads);
    }

    void weight_gradient(const NarrowWeight &weight, uintptr_t x, uintptr_t dy, uintptr_t dvalues, int64_t tokens,
                         int threads) const {
        kernels->bf16_weight_gradient(weight, at<const uint16_t>(x), at<const uint16_t>(dy), at<uint16_t>(dvalues),
                                      tokens, threads);
    }

    void int8_forward(const NarrowWeight &weight, uintptr_t scales, uintptr_t x, uintptr_t bias, uintptr_t y,
                      int64_t tokens, int after, int threads) const {
        kernels->int8_forward(weight, at<const float>(scales), at<const float>(x), at<const float>(bias),
                              at<float>(y), tokens, static_cast<Activation>(after), threads);
    }

    void int8_forward_bf16(const NarrowWeight &weight, uintptr_t scales, uintptr_t x, uintptr_t bias, uintptr_t y,
                           int64_t tokens, int after, int threads) const {
        kernels->int8_forward_bf16(weight, at<const float>(scales), at<const uint16_t>(x), at<const float>(bias),
                                   at<uint16_t>(y), tokens, static_cast<Activation>(after), threads);
    }

  private:
    const NarrowKernels *kernels;
};

}  // namespace

void bind_narrow(nb::module_ &module) {
    nb::class_<NarrowWeight>(module, "NarrowWeight", "Where a bfloat16 or int8 weight lies; keeps nothing alive.")
        .def("__init__", [](NarrowWeight *self, uintptr_t values, uintptr_t ptr, uintptr_t col, uintptr_t order,
                            int64_t outputs, int64_t inputs, int64_t groups, int64_t bo, int64_t bi) {
            new (self) NarrowWeight{at<const void>(values),
                                    at<const int32_t>(ptr),
                                    at<const int32_t>(col),
                                    at<const int32_t>(order),
                                    outputs,
                                    inputs,
                                    groups,
                                    bo,
                                    bi};
        })
        .def(
            "steps",
            [](const NarrowWeight &w, int64_t size) {
                int64_t steps = 0;
                for (int64_t group = 0; group < w.groups; ++group)
                    steps += ((w.ptr[group + 1] - w.ptr[group]) * w.bi + size - 1) / size;
                return steps;
            },
            "Return how many steps of so many kept inputs the groups have.");
    nb::class_<Narrow>(module, "Narrow", "The bfloat16 and int8 kernels of one instruction set.")
        .def(nb::init<const char *>())
        .def("forward", &Narrow::forward, nb::call_guard<nb::gil_scoped_release>())
        .def("input_gradient", &Narrow::input_gradient, nb::call_guard<nb::gil_scoped_release>())
        .def("weight_gradient", &Narrow::weight_gradient, nb::call_guard<nb::gil_scoped_release>())
        .def("int8_forward", &Narrow::int8_forward, nb::call_guard<nb::gil_scoped_release>())
        .def("int8_forward_bf16", &Narrow::int8_forward_bf16, nb::call_guard<nb::gil_scoped_release>());
}
