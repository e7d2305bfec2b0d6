// The Python module: what this CPU and its operating system can run, how many threads OpenMP gives, and the kernels.

#include "cpu_features.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace nb = nanobind;

namespace {

int threads(int wanted) {
    if (wanted < 1)
        throw std::invalid_argument("threads: got " + std::to_string(wanted) + "; give a number of at least 1");
    int given = 1;
#ifdef _OPENMP
#pragma omp parallel num_threads(wanted)
    {
#pragma omp single
        given = omp_get_num_threads();
    }
#endif
    return given;
}

}  // namespace

#ifdef CUTWORK_KERNELS
void bind_kernels(nb::module_ &);
#endif

NB_MODULE(_cpu, module) {
    module.doc() = "cutwork's compiled part for CPUs.";
#ifdef CUTWORK_KERNELS
    bind_kernels(module);
#endif
    module.def("features", &features,
               "Return the instruction sets that this CPU has and the operating system lets programs use.");
    module.def("threads", &threads, nb::arg("wanted"), nb::call_guard<nb::gil_scoped_release>(),
               "Return how many threads a parallel region that asks for `wanted` really gets; 1 without OpenMP.");
}
