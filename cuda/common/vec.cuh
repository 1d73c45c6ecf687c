#pragma once

#include <cuda_fp8.h>

#include <initializer_list>
#include <type_traits>

#include "cuda/common/types.cuh"

/// Runs of neighbouring elements as floats, in one wide access where the addresses allow it.
namespace mmx::cuda {

using e4m3 = __nv_fp8_e4m3;

__device__ __forceinline__ float to_float(e4m3 x) { return static_cast<float>(x); }

/// Nearest code, ties to even; beyond 448 the largest code, NaN stays NaN.
template <>
__device__ __forceinline__ e4m3 from_float<e4m3>(float x) {
    return e4m3(x);
}

/// Calls f(T{}, C{}) with the element types of queries and pages.
template <class F>
void dispatch_pages(DType dtype, DType cache_dtype, F&& f) {
    dispatch_float(dtype, [&](auto t) {
        if (cache_dtype == DType::kE4M3) return f(t, e4m3{});
        f(t, t);
    });
}

template <class T, int kN>
struct alignas(sizeof(T) * kN < 16 ? sizeof(T) * kN : 16) Pack {
    T v[kN];
};

/// Whether runs of kN elements may be accessed as a Pack: the addresses must be aligned, the strides between
/// rows multiples of kN.
template <class T, int kN>
bool is_packable(const void* data, std::initializer_list<int64_t> strides) {
    bool ok = reinterpret_cast<uintptr_t>(data) % alignof(Pack<T, kN>) == 0;
    for (const int64_t stride : strides) ok = ok && stride % kN == 0;
    return ok;
}

/// to[i] = from[i] for i < count, 0 behind it; nothing behind `count` is read.
template <class T, int kN>
__device__ __forceinline__ void load_run(float (&to)[kN], const T* from, int64_t count, bool packable) {
    if (packable && count >= kN) {
        const Pack<T, kN> run = *reinterpret_cast<const Pack<T, kN>*>(from);
#pragma unroll
        for (int i = 0; i < kN; ++i) to[i] = to_float(run.v[i]);
    } else {
#pragma unroll
        for (int i = 0; i < kN; ++i) to[i] = i < count ? to_float(from[i]) : 0.0f;
    }
}

/// to[i] = from[i] for i < count; `to` is global memory.
template <class T, int kN>
__device__ __forceinline__ void store_run(T* to, const float (&from)[kN], int64_t count, bool packable) {
    if (packable && count >= kN) {
        Pack<T, kN> run;
#pragma unroll
        for (int i = 0; i < kN; ++i) run.v[i] = from_float<T>(from[i]);
        // Why intrinsics: the compiler merges a plain wide store with the narrow ones below.
        using Word = std::conditional_t<sizeof(run) % 16 == 0, uint4,
                                        std::conditional_t<sizeof(run) % 8 == 0, uint2, unsigned>>;
        static_assert(sizeof(run) % 4 == 0);
#pragma unroll
        for (unsigned i = 0; i < sizeof(run) / sizeof(Word); ++i)
            __stwb(reinterpret_cast<Word*>(to) + i, reinterpret_cast<const Word*>(&run)[i]);
    } else {
#pragma unroll
        for (int i = 0; i < kN; ++i)
            if (i < count) to[i] = from_float<T>(from[i]);
    }
}

}  // namespace mmx::cuda
