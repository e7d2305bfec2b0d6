// The operators for inference, defined for PyTorch without Python: a library of its own, which a program loads after
// libtorch. In Python the operators are those of `ops`, whose schemas these repeat; a test compares the two.
//
// They compute what the kernels can; there is no reference here for the rest.

#include "instruction_sets.h"
#include "torch_abi.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace {

using namespace torch_abi;

std::string written(const Sizes &sizes) {
    std::string text = "[";
    for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
    return text + "]";
}

std::string dtype_name(int32_t code) {
    if (code == torch.aoti_torch_dtype_float32()) return "float32";
    if (code == torch.aoti_torch_dtype_bfloat16()) return "bfloat16";
    if (code == torch.aoti_torch_dtype_float16()) return "float16";
    if (code == torch.aoti_torch_dtype_float64()) return "float64";
    if (code == torch.aoti_torch_dtype_int8()) return "int8";
    if (code == torch.aoti_torch_dtype_int32()) return "int32";
    return code == torch.aoti_torch_dtype_int64() ? "int64" : "of another dtype";
}

class Call;

// What an operator is called and takes, and what computes it.
struct Operator {
    const char *schema;
    Tensor (*compute)(const Call &);
};

Tensor block_linear(const Call &), block_conv2d(const Call &), int8_linear(const Call &);

const Operator OPERATORS[] = {
    {"block_linear(Tensor x_MI, Tensor values, Tensor ptr, Tensor col, Tensor? order, Tensor? bias_O, "
     "Tensor? residual_MO, int outputs, str before, str after, Tensor? ear=None) -> Tensor",
     block_linear},
    {"block_conv2d(Tensor x, Tensor values, Tensor ptr, Tensor col, Tensor? order, Tensor? bias, int outputs, "
     "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, str after, Tensor? ear=None) -> "
     "Tensor",
     block_conv2d},
    {"int8_linear(Tensor x_MI, Tensor values, Tensor scales_O, Tensor ptr, Tensor col, Tensor? order, Tensor? bias_O, "
     "int outputs, int columns, str after) -> Tensor",
     int8_linear},
};
constexpr int NUM_OPERATORS = sizeof(OPERATORS) / sizeof(OPERATORS[0]);

struct Parameter {
    std::string type, name;
};

struct Signature {
    std::string name;
    std::vector<Parameter> parameters;

    explicit Signature(const std::string &schema) : name(schema.substr(0, schema.find('('))) {
        const size_t end = schema.find(')');
        for (size_t at = name.size() + 1; at < end;) {
            const size_t space = schema.find(' ', at), stop = std::min(schema.find(',', at), end);
            const std::string type = schema.substr(at, space - at);
            // A default, if there is one, is the matter of those who call.
            parameters.push_back({type, schema.substr(space + 1, std::min(schema.find('=', at), stop) - space - 1)});
            at = stop + 2;
        }
    }
};

const std::vector<Signature> &signatures() {
    static const std::vector<Signature> all = [] {
        std::vector<Signature> made;
        for (const Operator &one : OPERATORS) made.emplace_back(one.schema);
        return made;
    }();
    return all;
}

// The arguments of one call, by their names in the schema.
class Call {
  public:
    Call(const Signature &signature, Value *stack) : signature(signature) {
        for (size_t i = 0; i < signature.parameters.size(); ++i)
            arguments.push_back(take(signature.parameters[i].type, stack[i]));
        for (size_t i = 0; i < arguments.size(); ++i)
            if (arguments[i].tensor && !arguments[i].tensor.is_on_cpu())
                refuse(signature.parameters[i].name + " is not on the CPU; move all tensors there");
    }

    [[noreturn]] void refuse(const std::string &reason) const {
        throw std::runtime_error("cutwork::" + signature.name + ": " + reason);
    }

    const Tensor &tensor(const char *name) const { return argument(name).tensor; }
    int64_t number(const char *name) const { return argument(name).number; }
    const Sizes &numbers(const char *name) const { return argument(name).numbers; }

    // A tensor that has so many dimensions.
    const Tensor &tensor(const char *name, size_t dims) const {
        const Tensor &found = tensor(name);
        if (found.sizes().size() != dims)
            refuse(std::string(name) + " has the shape " + written(found.sizes()) + "; it must have " +
                   std::to_string(dims) + " dimensions");
        return found;
    }

    Activation activation(const char *name) const {
        static const char *const NAMES[] = {"none", "relu", "gelu", "gelu_tanh", "silu"};
        const std::string &text = argument(name).text;
        for (int i = 0; i < 5; ++i)
            if (text == NAMES[i]) return static_cast<Activation>(i);
        refuse("unknown activation '" + text + "'; write one of none, relu, gelu, gelu_tanh, silu");
    }

    // Refuses a tensor that is there and has another shape.
    void expect(const char *name, const Sizes &shape) const {
        const Tensor &found = tensor(name);
        if (found && found.sizes() != shape)
            refuse(std::string(name) + " has the shape " + written(found.sizes()) + "; expected " + written(shape));
    }

    // Refuses tensors that are there and have another dtype.
    void expect(std::initializer_list<const char *> names, int32_t dtype, const char *legal) const {
        for (const char *name : names)
            if (tensor(name) && tensor(name).dtype() != dtype)
                refuse(std::string(name) + " is " + dtype_name(tensor(name).dtype()) +
                       "; outside of Python it must be " + legal + ", so convert the model before it is exported");
    }

  private:
    const Argument &argument(const char *name) const {
        for (size_t i = 0; i < arguments.size(); ++i)
            if (signature.parameters[i].name == name) return arguments[i];
        throw std::logic_error(signature.name + " has no argument " + name);
    }

    const Signature &signature;
    std::vector<Argument> arguments;
};

// The index of a weight, in which kernels find as many numbers as they read.
struct Index {
    const int32_t *ptr, *col, *order;
    int64_t groups;

    Index(const Call &call, int64_t rows, int64_t units) {
        const int64_t outputs = call.number("outputs");
        groups = (outputs + rows - 1) / std::max<int64_t>(rows, 1);
        ptr = read(call, "ptr", groups + 1), col = read(call, "col", units), order = read(call, "order", outputs);
    }

    Weight weight(const Tensor &values, int64_t outputs, int64_t inputs, int64_t rows, int64_t columns) const {
        return {values.data<const void>(), ptr, col, order, outputs, inputs, groups, rows, columns};
    }

  private:
    static const int32_t *read(const Call &call, const char *name, int64_t count) {
        const Tensor &index = call.tensor(name);
        if (!index) return nullptr;
        call.expect(name, {count});
        if (index.dtype() != torch.aoti_torch_dtype_int32() || !index.lies_by({1}))
            call.refuse(std::string(name) + " is " + dtype_name(index.dtype()) +
                        "; it must be contiguous int32, as cutwork made it");
        return index.data<const int32_t>();
    }
};

// The set that is used first of those with such kernels.
template <class T>
const InstructionSet &best(const T *InstructionSet::*kernels) {
    for (const InstructionSet &set : instruction_sets())
        if (set.*kernels) return set;
    throw std::logic_error("cutwork: no instruction set has such kernels");
}

const pid_t PROCESS = getpid();

// As many as PyTorch uses, but one after a fork, which the threads of OpenMP do not survive.
int num_threads() {
    uint32_t count = 1;
    if (getpid() == PROCESS) check(torch.torch_get_num_threads(&count));
    return static_cast<int>(count);
}

Tensor block_linear(const Call &call) {
    const Tensor &x = call.tensor("x_MI", 2);
    const Sizes shape = x.sizes(), tiles = call.tensor("values", 3).sizes();
    const int64_t tokens = shape[0], inputs = shape[1], outputs = call.number("outputs");
    const int64_t units = tiles[0], columns = tiles[1], rows = tiles[2];
    const Activation before = call.activation("before"), after = call.activation("after");
    const int32_t dtype = x.dtype(), float32 = torch.aoti_torch_dtype_float32();
    const bool is_narrow = dtype == torch.aoti_torch_dtype_bfloat16();
    call.expect({"x_MI", "values", "bias_O", "residual_MO"}, is_narrow ? dtype : float32,
                is_narrow ? "bfloat16, as x_MI is" : "float32, or all tensors bfloat16");
    call.expect("bias_O", {outputs});
    call.expect("residual_MO", {tokens, outputs});
    const Index index(call, rows, units);
    const Tensor input = x.contiguous(dtype), values = call.tensor("values").contiguous(dtype);
    const Tensor bias = call.tensor("bias_O").contiguous(float32);
    const Tensor residual = call.tensor("residual_MO").contiguous(dtype);
    Tensor y = Tensor::empty({tokens, outputs}, dtype);
    const Weight weight = index.weight(values, outputs, inputs, rows, columns);
    if (is_narrow) {
        best(&InstructionSet::narrow)
            .narrow->forward(weight, input.data<const uint16_t>(), bias.data<const float>(),
                             residual.data<const uint16_t>(), y.data<uint16_t>(), tokens, before, after, num_threads());
    } else {
        best(&InstructionSet::linear)
            .linear->forward(weight, input.data<const float>(), bias.data<const float>(), residual.data<const float>(),
                             y.data<float>(), tokens, before, after, num_threads());
    }
    return y;
}

Axis axis(const Call &call, size_t dim, int64_t size) {
    const Axis found = axis_of(size, call.numbers("kernel_size").at(dim), call.numbers("stride").at(dim),
                               call.numbers("padding").at(dim), call.numbers("dilation").at(dim));
    if (found.out < 1)
        call.refuse("an image has " + std::to_string(size) + " rows or columns, which is less than the kernel takes; " +
                    "give a larger one");
    return found;
}

// The strides of images of these sizes that lie pixel by pixel.
Sizes channels_last(const Sizes &sizes) {
    const Sizes pixels = Tensor::contiguous_strides({sizes[0], sizes[2], sizes[3], sizes[1]});
    return {pixels[0], pixels[3], pixels[1], pixels[2]};
}

Tensor block_conv2d(const Call &call) {
    const Tensor &x = call.tensor("x", 4);
    const Sizes shape = x.sizes(), tiles = call.tensor("values", 3).sizes();
    const int64_t images = shape[0], channels = shape[1];
    const int64_t outputs = call.number("outputs"), channel_groups = call.number("groups");
    const int64_t units = tiles[0], columns = tiles[1], rows = tiles[2];
    const Activation after = call.activation("after");
    const int32_t float32 = torch.aoti_torch_dtype_float32();
    call.expect({"x", "values", "bias"}, float32, "float32");
    call.expect("bias", {outputs});
    if (channel_groups > 1 && (call.tensor("order") || (outputs / channel_groups) % rows != 0))
        call.refuse("tiles of " + std::to_string(rows) + " outputs may reach over the " +
                    std::to_string(channel_groups) +
                    " groups of the convolution; outside of Python no tile may, so leave this layer dense");
    const Index index(call, rows, units);
    const Axis down = axis(call, 0, shape[2]), across = axis(call, 1, shape[3]);
    const Tensor input = x.lying_by(channels_last(shape), float32), bias = call.tensor("bias").contiguous(float32);
    const Tensor values = call.tensor("values").contiguous(float32);
    const int64_t inputs = down.kernel * across.kernel * (channels / channel_groups);
    const Conv conv{
        index.weight(values, outputs, inputs, rows, columns), down, across, images, channels, channel_groups};
    const Sizes sizes = {images, outputs, down.out, across.out};
    Tensor y = Tensor::empty(sizes, channels_last(sizes), float32);
    best(&InstructionSet::conv)
        .conv->forward(conv, input.data<const float>(), bias.data<const float>(), y.data<float>(), after,
                       num_threads());
    return y;
}

Tensor int8_linear(const Call &call) {
    const Tensor &x = call.tensor("x_MI", 2);
    const Sizes shape = x.sizes(), steps = call.tensor("values", 3).sizes();
    const int64_t tokens = shape[0], inputs = shape[1], outputs = call.number("outputs");
    const int64_t rows = steps[1], columns = call.number("columns");
    const Activation after = call.activation("after");
    const int32_t float32 = torch.aoti_torch_dtype_float32(), int8 = torch.aoti_torch_dtype_int8();
    const bool is_narrow = x.dtype() == torch.aoti_torch_dtype_bfloat16();
    call.expect({"values"}, int8, "int8");
    call.expect({"x_MI"}, is_narrow ? x.dtype() : float32, "float32 or bfloat16");
    call.expect("scales_O", {outputs});
    call.expect("bias_O", {outputs});
    const Index index(call, rows, call.tensor("col", 1).sizes()[0]);
    const Tensor values = call.tensor("values").contiguous(int8), input = x.contiguous(x.dtype());
    const Weight weight = index.weight(values, outputs, inputs, rows, columns);
    call.expect("values", {num_steps(weight, INT8_STEP), rows, INT8_STEP});
    const Tensor scales = call.tensor("scales_O").contiguous(float32), bias = call.tensor("bias_O").contiguous(float32);
    Tensor y = Tensor::empty({tokens, outputs}, x.dtype());
    const NarrowKernels &kernels = *best(&InstructionSet::narrow).narrow;
    if (is_narrow)
        kernels.int8_forward_bf16(weight, scales.data<const float>(), input.data<const uint16_t>(),
                                  bias.data<const float>(), y.data<uint16_t>(), tokens, after, num_threads());
    else
        kernels.int8_forward(weight, scales.data<const float>(), input.data<const float>(), bias.data<const float>(),
                             y.data<float>(), tokens, after, num_threads());
    return y;
}

// PyTorch hands a kernel nothing that tells operators apart, so each has a function of its own.
template <int number>
void run(Value *stack, uint64_t, uint64_t) {
    const Signature &signature = signatures()[number];
    const Call call(signature, stack);
    stack[0] = reinterpret_cast<Value>(OPERATORS[number].compute(call).release());
}

template <int number = 0>
void define(Handle definitions, Handle kernels) {
    if constexpr (number < NUM_OPERATORS) {
        check(torch.aoti_torch_library_def(definitions, OPERATORS[number].schema));
        check(torch.torch_library_impl(kernels, signatures()[number].name.c_str(), run<number>, VERSION));
        define<number + 1>(definitions, kernels);
    }
}

// Nobody can catch what is thrown while a library loads, so what went wrong is written.
bool define_operators() {
    if (const char *missing = torch.find()) {
        std::fprintf(stderr,
                     "cutwork: its operators are not defined, because this process has no %s; load libtorch 2.10 or "
                     "newer before this library\n",
                     missing);
        return false;
    }
    try {
        // Never closed: that would take the operators away again.
        Handle definitions = nullptr, kernels = nullptr;
        check(torch.aoti_torch_library_init_fragment("cutwork", __FILE__, __LINE__, &definitions));
        check(torch.aoti_torch_library_init_impl("cutwork", "CPU", __FILE__, __LINE__, &kernels));
        define(definitions, kernels);
    } catch (const std::exception &error) {
        std::fprintf(stderr,
                     "cutwork: its operators are not defined (%s); where cutwork is imported in Python they are there "
                     "already, and this library is not needed\n",
                     error.what());
        return false;
    }
    return true;
}

const bool DEFINED = define_operators();

}  // namespace

// Whether the operators are defined, and the instruction sets that they use: of float32, and of bfloat16 and int8.
extern "C" {
__attribute__((visibility("default"))) int cutwork_operators_are_defined() { return DEFINED; }
__attribute__((visibility("default"))) const char *cutwork_instruction_sets() {
    static const std::string names =
        std::string(best(&InstructionSet::linear).name) + " " + best(&InstructionSet::narrow).name;
    return names.c_str();
}
}
