// What a convolution with a compressed weight is to the kernels, and the kernels that every instruction set offers.
//
// Images lie in memory pixel by pixel, the channels of each side by side. The columns of the weight are ordered (kernel
// row, kernel column, channel).

#pragma once

#include "tiles.h"

struct Axis {
    int64_t size, out, kernel, stride, padding, dilation;
};

struct Conv {
    Weight weight;  // its inputs are the columns of the matrix
    Axis rows, columns;
    int64_t images, channels;
    int64_t parts;  // the channels and outputs fall into so many parts that do not see each other; no group straddles
};

// Results do not depend on the number of threads.
struct ConvKernels {
    const char *isa;
    // y = after(conv(x) + bias); bias may be null
    void (*forward)(const Conv &, const float *x, const float *bias, float *y, Activation after, int threads);
    void (*input_gradient)(const Conv &, const float *dy, float *dx, int threads);
    void (*weight_gradient)(const Conv &, const float *x, const float *dy, float *dvalues, int threads);
};

extern const ConvKernels GENERIC_CONV, AVX2_CONV, AVX512_CONV;
