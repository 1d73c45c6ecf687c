#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>

#include "cpp/core/check.h"
#include "cpp/core/dtype.h"

namespace mmx::ops {

using Tensor = torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

/// A dimension in a shape pattern: a name, bound at first sight and compared afterwards, or a number.
struct Dim {
    const char* name = nullptr;
    int64_t value = -1;
    Dim(const char* name_) : name(name_) {}
    Dim(int64_t value_) : value(value_) {}
};

/// Checks tensors of one op call against patterns of named dimensions, so that an error message shows what
/// was bound and can not lie: "rms_norm: weight must be [hidden=4096], got [4095]".
class Matcher {
  public:
    explicit Matcher(const char* op) : op_(op) {}

    /// Shape must match `dims`; the last `dense` dimensions must lie packed in memory.
    Matcher& shape(const char* name, const Tensor& t, std::initializer_list<Dim> dims, int dense = 1) {
        bool ok = t.dim() == static_cast<int64_t>(dims.size());
        int i = 0;
        for (const Dim& d : dims) {
            if (!ok) break;
            ok = d.name ? bind(d.name, t.size(i)) : t.size(i) == d.value;
            ++i;
        }
        if (!ok) fail(op_, ": ", name, " must be ", pattern(dims), ", got ", sizes(t));
        check_device(name, t);
        check_dense(name, t, dense);
        return *this;
    }

    /// Size of a bound dimension.
    int64_t operator[](const char* dim) const {
        for (int i = 0; i < num_bound_; ++i)
            if (std::strcmp(bound_[i].name, dim) == 0) return bound_[i].value;
        fail(op_, ": dimension ", dim, " is not bound");
    }

    /// Element type of `t`, which must be one of `allowed`.
    DType dtype(const char* name, const Tensor& t, std::initializer_list<DType> allowed) const {
        const std::optional<DType> found = to_dtype(t.scalar_type());
        for (DType d : allowed)
            if (found == d) return d;
        std::string names;
        for (DType d : allowed) names += (names.empty() ? "" : " or ") + std::string(dtype_name(d));
        fail(op_, ": ", name, " must be ", names, ", got ",
             found ? dtype_name(*found) : torch::headeronly::toString(t.scalar_type()));
    }

    void same_dtype(const char* name, const Tensor& t, DType expected) const { dtype(name, t, {expected}); }

    template <class... Parts>
    void require(bool ok, const Parts&... parts) const {
        if (!ok) fail(op_, ": ", parts...);
    }

    int32_t device_index() const { return device_index_; }

  private:
    static std::optional<DType> to_dtype(torch::headeronly::ScalarType type) {
        using torch::headeronly::ScalarType;
        switch (type) {
            case ScalarType::Float: return DType::kF32;
            case ScalarType::BFloat16: return DType::kBF16;
            case ScalarType::Float8_e4m3fn: return DType::kE4M3;
            case ScalarType::Byte: return DType::kU8;
            case ScalarType::Char: return DType::kI8;
            case ScalarType::Int: return DType::kI32;
            case ScalarType::Long: return DType::kI64;
            default: return std::nullopt;
        }
    }

    bool bind(const char* dim, int64_t value) {
        for (int i = 0; i < num_bound_; ++i)
            if (std::strcmp(bound_[i].name, dim) == 0) return bound_[i].value == value;
        if (num_bound_ == static_cast<int>(bound_.size())) fail(op_, ": too many dimensions");
        bound_[num_bound_++] = {dim, value};
        return true;
    }

    void check_device(const char* name, const Tensor& t) {
        int32_t type = 0;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
        const int32_t index = t.get_device_index();
        if (device_type_ < 0) {
            device_type_ = type;
            device_index_ = index;
        } else if (type != device_type_ || index != device_index_) {
            fail(op_, ": ", name, " must be on the device of the other tensors");
        }
    }

    void check_dense(const char* name, const Tensor& t, int dense) const {
        if (t.numel() == 0) return;
        int64_t expected = 1;
        for (int64_t i = t.dim() - 1; i >= t.dim() - dense && i >= 0; --i) {
            if (t.size(i) != 1 && t.stride(i) != expected)
                fail(op_, ": the last ", dense, " dimension(s) of ", name, " must be contiguous");
            expected *= t.size(i);
        }
    }

    std::string pattern(std::initializer_list<Dim> dims) const {
        std::string text = "[";
        for (const Dim& d : dims) {
            if (text.size() > 1) text += ", ";
            if (!d.name) {
                text += std::to_string(d.value);
                continue;
            }
            text += d.name;
            for (int i = 0; i < num_bound_; ++i) {
                if (std::strcmp(bound_[i].name, d.name) != 0) continue;
                text += '=';
                text += std::to_string(bound_[i].value);
            }
        }
        return text + "]";
    }

    static std::string sizes(const Tensor& t) {
        std::string text = "[";
        for (int64_t i = 0; i < t.dim(); ++i) {
            if (i > 0) text += ", ";
            text += std::to_string(t.size(i));
        }
        return text + "]";
    }

    struct Bound {
        const char* name;
        int64_t value;
    };
    const char* op_;
    std::array<Bound, 16> bound_{};
    int num_bound_ = 0;
    int32_t device_type_ = -1;
    int32_t device_index_ = -1;
};

template <class T = void>
T* ptr(const Tensor& t) {
    return static_cast<T*>(t.data_ptr());
}

template <class T = void>
T* ptr(const OptionalTensor& t) {
    return t ? static_cast<T*>(t->data_ptr()) : nullptr;
}

}  // namespace mmx::ops
