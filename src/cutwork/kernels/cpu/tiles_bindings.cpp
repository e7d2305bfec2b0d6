// The tile kernels as Python functions. Memory comes as addresses: the caller has checked every shape and index.

#include "tiles_bindings.h"

#include "tiles.h"

#include <cstring>

namespace nb = nanobind;

namespace {

#if defined(__x86_64__)
const Kernels *const KERNELS[] = {&GENERIC_KERNELS, &AVX2_KERNELS, &AVX512_KERNELS};
#else
const Kernels *const KERNELS[] = {&GENERIC_KERNELS};
#endif

template <class T>
T *at(uintptr_t address) {
    return reinterpret_cast<T *>(address);
}

// The kernels of one instruction set.
class Tiles {
  public:
    explicit Tiles(const char *isa) : kernels(nullptr) {
        for (const Kernels *candidate : KERNELS)
            if (!std::strcmp(candidate->isa, isa)) kernels = candidate;
        if (!kernels) throw nb::value_error("this build has no kernels for that instruction set");
    }

    void forward(const Weight &weight, uintptr_t x, uintptr_t bias, uintptr_t residual, uintptr_t y, int64_t tokens,
                 int before, int after, int threads) const {
        kernels->forward(weight, at<const float>(x), at<const float>(bias), at<const float>(residual), at<float>(y),
                         tokens, static_cast<Activation>(before), static_cast<Activation>(after), threads);
    }

    void input_gradient(const Weight &weight, uintptr_t dy, uintptr_t x, uintptr_t dx, int64_t tokens, int before,
                        int threads) const {
        kernels->input_gradient(weight, at<const float>(dy), at<const float>(x), at<float>(dx), tokens,
                                static_cast<Activation>(before), threads);
    }

    void weight_gradient(const Weight &weight, uintptr_t x, uintptr_t dy, uintptr_t dvalues, int64_t tokens, int before,
                         int threads) const {
        kernels->weight_gradient(weight, at<const float>(x), at<const float>(dy), at<float>(dvalues), tokens,
                                 static_cast<Activation>(before), threads);
    }

  private:
    const Kernels *kernels;
};

}  // namespace

void bind_tiles(nb::module_ &module) {
    nb::class_<Weight>(module, "Weight", "Where a compressed weight lies; keeps nothing alive.")
        .def(
            "__init__",
            [](Weight *self, uintptr_t values, uintptr_t ptr, uintptr_t col, uintptr_t order, int64_t outputs,
               int64_t inputs, int64_t groups, int64_t bo, int64_t bi) {
                new (self) Weight{at<const float>(values),  at<const int32_t>(ptr), at<const int32_t>(col),
                                  at<const int32_t>(order), outputs,                inputs,
                                  groups,                   bo,                     bi};
            });
    nb::class_<Tiles>(module, "Tiles", "The tile kernels of one instruction set: generic, avx2 or avx512.")
        .def(nb::init<const char *>())
        .def("forward", &Tiles::forward, nb::call_guard<nb::gil_scoped_release>())
        .def("input_gradient", &Tiles::input_gradient, nb::call_guard<nb::gil_scoped_release>())
        .def("weight_gradient", &Tiles::weight_gradient, nb::call_guard<nb::gil_scoped_release>());
}
