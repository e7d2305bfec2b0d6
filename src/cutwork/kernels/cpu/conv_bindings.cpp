// The convolution kernels as Python functions. Memory comes as addresses: the caller has checked every shape and index.

#include "conv.h"
#include "tiles_bindings.h"

#include <nanobind/stl/array.h>

#include <array>
#include <cstring>

namespace nb = nanobind;

namespace {

#if defined(__x86_64__)
const ConvKernels *const KERNELS[] = {&GENERIC_CONV, &AVX2_CONV, &AVX512_CONV};
#else
const ConvKernels *const KERNELS[] = {&GENERIC_CONV};
#endif

template <class T>
T *at(uintptr_t address) {
    return reinterpret_cast<T *>(address);
}

using Sizes = std::array<int64_t, 6>;

Axis axis(const Sizes &sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]}; }

// The kernels of one instruction set.
class Convolutions {
  public:
    explicit Convolutions(const char *isa) : kernels(nullptr) {
        for (const ConvKernels *candidate : KERNELS)
            if (!std::strcmp(candidate->isa, isa)) kernels = candidate;
        if (!kernels) throw nb::value_error("this build has no kernels for that instruction set");
    }

    void forward(const Conv &conv, uintptr_t x, uintptr_t bias, uintptr_t y, int after, int threads) const {
        kernels->forward(conv, at<const float>(x), at<const float>(bias), at<float>(y), static_cast<Activation>(after),
                         threads);
    }

    void input_gradient(const Conv &conv, uintptr_t dy, uintptr_t dx, int threads) const {
        kernels->input_gradient(conv, at<const float>(dy), at<float>(dx), threads);
    }

    void weight_gradient(const Conv &conv, uintptr_t x, uintptr_t dy, uintptr_t dvalues, int threads) const {
        kernels->weight_gradient(conv, at<const float>(x), at<const float>(dy), at<float>(dvalues), threads);
    }

  private:
    const ConvKernels *kernels;
};

}  // namespace

void bind_conv(nb::module_ &module) {
    nb::class_<Conv>(module, "Conv",
                     "A convolution with a compressed weight: its rows and columns each as size, outputs, kernel, "
                     "stride, padding and dilation. Keeps nothing alive.")
        .def("__init__", [](Conv *self, const Weight &weight, const Sizes &rows, const Sizes &columns, int64_t images,
                            int64_t channels, int64_t parts) {
            new (self) Conv{weight, axis(rows), axis(columns), images, channels, parts};
        });
    nb::class_<Convolutions>(module, "Convolutions",
                             "The convolutions of one instruction set: generic, avx2 or avx512.")
        .def(nb::init<const char *>())
        .def("forward", &Convolutions::forward, nb::call_guard<nb::gil_scoped_release>())
        .def("input_gradient", &Convolutions::input_gradient, nb::call_guard<nb::gil_scoped_release>())
        .def("weight_gradient", &Convolutions::weight_gradient, nb::call_guard<nb::gil_scoped_release>());
}
