// The part of PyTorch's stable C interface that our operators need, found in the process at run time: no header and no
// library of PyTorch takes part in the build. Declared as in torch/csrc/stable/c/shim.h of PyTorch 2.10.

#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace torch_abi {

// A number, or the bits of a handle: what an operator takes and returns.
using Value = uint64_t;
using Handle = void *;
using BoxedKernel = void (*)(Value *stack, uint64_t inputs, uint64_t outputs);

// Later versions, asked to, behave as this one, which was the first to pass text and lists.
constexpr uint64_t VERSION = uint64_t{2} << 56 | uint64_t{10} << 48;

// Those that return int32_t, except for the codes of dtypes and devices, return 0 where all went well.
#define CUTWORK_TORCH_FUNCTIONS(F)                                                                                    \
    F(aoti_torch_library_init_fragment, (const char *space, const char *file, uint32_t line, Handle *))               \
    F(aoti_torch_library_init_impl, (const char *space, const char *key, const char *file, uint32_t line, Handle *))  \
    F(aoti_torch_library_def, (Handle library, const char *schema))                                                   \
    F(torch_library_impl, (Handle library, const char *name, BoxedKernel, uint64_t version))                          \
    F(aoti_torch_dtype_float32, ())                                                                                   \
    F(aoti_torch_dtype_bfloat16, ())                                                                                  \
    F(aoti_torch_dtype_float16, ())                                                                                   \
    F(aoti_torch_dtype_float64, ())                                                                                   \
    F(aoti_torch_dtype_int8, ())                                                                                      \
    F(aoti_torch_dtype_int32, ())                                                                                     \
    F(aoti_torch_dtype_int64, ())                                                                                     \
    F(aoti_torch_device_type_cpu, ())                                                                                 \
    F(aoti_torch_get_device_type, (Handle tensor, int32_t *))                                                         \
    F(aoti_torch_get_dtype, (Handle tensor, int32_t *))                                                               \
    F(aoti_torch_get_dim, (Handle tensor, int64_t *))                                                                 \
    F(aoti_torch_get_sizes, (Handle tensor, int64_t **))                                                              \
    F(aoti_torch_get_strides, (Handle tensor, int64_t **))                                                            \
    F(aoti_torch_get_data_ptr, (Handle tensor, void **))                                                              \
    F(aoti_torch_empty_strided, (int64_t dims, const int64_t *sizes, const int64_t *strides, int32_t dtype,           \
                                 int32_t device, int32_t index, Handle *))                                            \
    F(aoti_torch_copy_, (Handle to, Handle from, int32_t non_blocking))                                               \
    F(aoti_torch_new_tensor_handle, (Handle tensor, Handle *))                                                        \
    F(aoti_torch_delete_tensor_object, (Handle tensor))                                                               \
    F(torch_string_length, (Handle text, size_t *))                                                                   \
    F(torch_string_c_str, (Handle text, const char **))                                                               \
    F(torch_delete_string, (Handle text))                                                                             \
    F(torch_list_size, (Handle list, size_t *))                                                                       \
    F(torch_list_get_item, (Handle list, size_t place, Value *))                                                      \
    F(torch_delete_list, (Handle list))                                                                               \
    F(torch_get_num_threads, (uint32_t *))

struct Functions {
#define CUTWORK_DECLARE(name, arguments) int32_t(*name) arguments = nullptr;
    CUTWORK_TORCH_FUNCTIONS(CUTWORK_DECLARE)
#undef CUTWORK_DECLARE

    // Finds every function; returns the name of one that is missing, or null.
    const char *find() {
        // PyTorch may have been loaded out of sight of others, as Python does, or be part of the program.
        void *library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
        void *where = library ? library : RTLD_DEFAULT;
#define CUTWORK_FIND(name, arguments) \
    if (!(name = reinterpret_cast<decltype(name)>(dlsym(where, #name)))) return #name;
        CUTWORK_TORCH_FUNCTIONS(CUTWORK_FIND)
#undef CUTWORK_FIND
        return nullptr;
    }
};

inline Functions torch;

inline void check(int32_t error) {
    // PyTorch has written what it was to the standard error output.
    if (error) throw std::runtime_error("cutwork: PyTorch reported an error");
}

using Sizes = std::vector<int64_t>;

// An owned tensor, or none.
class Tensor {
  public:
    Tensor() = default;
    explicit Tensor(Handle owned) : handle(owned) {}
    Tensor(Tensor &&other) noexcept : handle(std::exchange(other.handle, nullptr)) {}
    Tensor &operator=(Tensor &&other) noexcept {
        std::swap(handle, other.handle);
        return *this;
    }
    ~Tensor() {
        if (handle) torch.aoti_torch_delete_tensor_object(handle);
    }

    static Tensor empty(const Sizes &sizes, const Sizes &strides, int32_t dtype) {
        Handle made = nullptr;
        check(torch.aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                                             torch.aoti_torch_device_type_cpu(), 0, &made));
        return Tensor(made);
    }

    static Tensor empty(const Sizes &sizes, int32_t dtype) { return empty(sizes, contiguous_strides(sizes), dtype); }

    // Strides by which the last dimension lies side by side.
    static Sizes contiguous_strides(const Sizes &sizes) {
        Sizes strides(sizes.size());
        int64_t stride = 1;
        for (size_t i = sizes.size(); i-- > 0; stride *= sizes[i] > 0 ? sizes[i] : 1) strides[i] = stride;
        return strides;
    }

    explicit operator bool() const { return handle; }

    Handle release() { return std::exchange(handle, nullptr); }

    int32_t dtype() const {
        int32_t code;
        check(torch.aoti_torch_get_dtype(handle, &code));
        return code;
    }

    bool is_on_cpu() const {
        int32_t device;
        check(torch.aoti_torch_get_device_type(handle, &device));
        return device == torch.aoti_torch_device_type_cpu();
    }

    Sizes sizes() const { return numbers(torch.aoti_torch_get_sizes); }

    // Null where there is no tensor.
    template <class T>
    T *data() const {
        void *address = nullptr;
        if (handle) check(torch.aoti_torch_get_data_ptr(handle, &address));
        return static_cast<T *>(address);
    }

    // Whether the numbers lie in memory by these strides, which do not matter in a dimension of one.
    bool lies_by(const Sizes &strides) const {
        const Sizes shape = sizes(), mine = numbers(torch.aoti_torch_get_strides);
        for (size_t i = 0; i < shape.size(); ++i)
            if (shape[i] > 1 && mine[i] != strides[i]) return false;
        return true;
    }

    // The same numbers by these strides and in this dtype: the same tensor if they are so already.
    Tensor lying_by(const Sizes &strides, int32_t wanted) const {
        if (dtype() == wanted && lies_by(strides)) {
            Handle same = nullptr;
            check(torch.aoti_torch_new_tensor_handle(handle, &same));
            return Tensor(same);
        }
        Tensor copy = empty(sizes(), strides, wanted);
        check(torch.aoti_torch_copy_(copy.handle, handle, 0));
        return copy;
    }

    // None stays none.
    Tensor contiguous(int32_t wanted) const {
        return handle ? lying_by(contiguous_strides(sizes()), wanted) : Tensor();
    }

  private:
    Sizes numbers(int32_t (*get)(Handle, int64_t **)) const {
        int64_t dims, *first;
        check(torch.aoti_torch_get_dim(handle, &dims));
        check(get(handle, &first));
        return Sizes(first, first + dims);
    }

    Handle handle = nullptr;
};

// One argument of a call; of its fields the one that its type says is filled.
struct Argument {
    Tensor tensor;
    int64_t number = 0;
    Sizes numbers;
    std::string text;
};

// Takes over an argument of a type from a schema.
inline Argument take(const std::string &type, Value value) {
    Argument argument;
    const Handle handle = reinterpret_cast<Handle>(value);
    if (type == "Tensor") {
        argument.tensor = Tensor(handle);
    } else if (type == "Tensor?") {
        if (Value *inner = static_cast<Value *>(handle)) {
            argument.tensor = Tensor(reinterpret_cast<Handle>(*inner));
            // Version 2.10 asks for this.
            delete inner;
        }
    } else if (type == "int") {
        argument.number = static_cast<int64_t>(value);
    } else if (type == "int[]") {
        size_t size = 0;
        check(torch.torch_list_size(handle, &size));
        for (size_t i = 0; i < size; ++i) {
            Value item = 0;
            check(torch.torch_list_get_item(handle, i, &item));
            argument.numbers.push_back(static_cast<int64_t>(item));
        }
        check(torch.torch_delete_list(handle));
    } else if (type == "str") {
        size_t size = 0;
        const char *text = nullptr;
        check(torch.torch_string_length(handle, &size));
        check(torch.torch_string_c_str(handle, &text));
        argument.text.assign(text, size);
        check(torch.torch_delete_string(handle));
    } else {
        throw std::logic_error("cutwork: no way to take an argument of the type " + type);
    }
    return argument;
}

}  // namespace torch_abi
