#pragma once

#include <cstdint>

namespace mmx {

/// Element types that cross the op boundary. Kernels get them in their Params.
enum class DType : int32_t { kF32, kBF16, kE4M3, kU8, kI8, kI32, kI64 };

constexpr const char* dtype_name(DType dtype) {
    switch (dtype) {
        case DType::kF32: return "float32";
        case DType::kBF16: return "bfloat16";
        case DType::kE4M3: return "float8_e4m3fn";
        case DType::kU8: return "uint8";
        case DType::kI8: return "int8";
        case DType::kI32: return "int32";
        case DType::kI64: return "int64";
    }
    return "unknown";
}

constexpr int64_t dtype_bytes(DType dtype) {
    switch (dtype) {
        case DType::kF32:
        case DType::kI32: return 4;
        case DType::kBF16: return 2;
        case DType::kE4M3:
        case DType::kU8:
        case DType::kI8: return 1;
        case DType::kI64: return 8;
    }
    return 0;
}

}  // namespace mmx
