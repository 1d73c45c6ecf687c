#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cpp/core/check.h"
#include "cpp/core/dtype.h"

namespace mmx::cuda {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}

/// Calls f(T{}) with the element type of `dtype` (f32 or bf16).
template <class F>
void dispatch_float(DType dtype, F&& f) {
    switch (dtype) {
        case DType::kF32: return f(float{});
        case DType::kBF16: return f(bf16{});
        default: fail("unsupported element type ", dtype_name(dtype));
    }
}

}  // namespace mmx::cuda
