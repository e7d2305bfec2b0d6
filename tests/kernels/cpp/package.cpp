// A program without Python that runs a package compiled ahead of time on the numbers 0, 1/216, 2/216, ... and prints
// what comes out. Arguments: the library of operators, the package.

#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>

int main(int, char **arguments) {
    if (!dlopen(arguments[1], RTLD_NOW)) return std::puts(dlerror()), 1;
    torch::inductor::AOTIModelPackageLoader model(arguments[2]);
    const at::Tensor x = at::arange(216, at::kFloat).view({2, 3, 6, 6}) / 216;
    for (const at::Tensor &y : model.run({x}))
        for (int64_t i = 0; i < y.numel(); ++i) std::printf("%.9g\n", y.view(-1)[i].item<float>());
}
