// The products with a compressed weight in bfloat16 and int8, compiled once for each instruction set.

#include "narrow/few.h"
#include "narrow/gradients.h"
#include "narrow/many.h"

namespace CUTWORK_ISA::narrow {

template <class F, class T>
void multiply(const Weight& w, Call<T> call) {
    if (!is_worth_sharing(w, call.tokens)) call.threads = 1;
    if (call.tokens <= FEW_TOKENS) forward_few<F>(w, call);
    else forward_many<F>(w, call);
}

void forward(const Weight& w, const uint16_t* x, const float* bias, const uint16_t* residual, uint16_t* y,
             int64_t tokens, Activation before, Activation after, int threads) {
    multiply<Bf16>(w, Call<uint16_t>{x, bias, nullptr, residual, y, tokens, before, after, threads});
}

template <class T>
void int8_forward(const Weight& w, const float* scales, const T* x, const float* bias, T* y, int64_t tokens,
                  Activation after, int threads) {
    multiply<Int8>(w, Call<T>{x, bias, scales, nullptr, y, tokens, NONE, after, threads});
}

}  // namespace CUTWORK_ISA::narrow

namespace CUTWORK_ISA {

extern const NarrowKernels NARROW = {narrow::forward, narrow::input_gradient, narrow::weight_gradient,
                              narrow::int8_forward<float>, narrow::int8_forward<uint16_t>};

}  // namespace CUTWORK_ISA
