#pragma once

#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpp/core/check.h"
#include "cpp/core/math.h"
#include "cpp/core/ops.h"

/// Included by kernel files only. Everything lives in the namespace of the instruction set level being
/// compiled, so that no function is shared between levels.
namespace mmx::cpu::MMX_CPU_ISA {

/// bfloat16 in memory; arithmetic is done in float.
struct bf16 {
    uint16_t bits;
};

static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

template <class T>
static inline T from_float(float x) {
    if constexpr (std::is_same_v<T, float>) {
        return x;
    } else {
        // Round to nearest even; NaN keeps its sign and becomes quiet.
        const uint32_t u = std::bit_cast<uint32_t>(x);
        const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
        const uint32_t quiet_nan = (u >> 16) | 0x40u;
        return T{static_cast<uint16_t>((u & 0x7FFFFFFFu) > 0x7F800000u ? quiet_nan : rounded)};
    }
}

/// Unsigned keys in the order of the floats; -0 equals 0.
static inline uint32_t order_key(float x) {
    const uint32_t u = std::bit_cast<uint32_t>(x + 0.0f);
    return u ^ (u >> 31 ? 0xFFFFFFFFu : 0x80000000u);
}

/// Sum of squares in 16 fixed lanes, so that the order of additions is the same for every width of vector.
template <class T>
static inline float sum_of_squares(const T* x, int64_t n) {
    constexpr int kLanes = 16;
    float lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int l = 0; l < kLanes; ++l) {
            const float v = to_float(x[i + l]);
            lanes[l] += v * v;
        }
    float sum = 0;
    for (; i < n; ++i) sum += to_float(x[i]) * to_float(x[i]);
    for (int l = 0; l < kLanes; ++l) sum += lanes[l];
    return sum;
}

/// Calls f(T{}) with the element type of `dtype` (f32 or bf16).
template <class F>
static inline void dispatch_float(DType dtype, F&& f) {
    switch (dtype) {
        case DType::kF32: return f(float{});
        case DType::kBF16: return f(bf16{});
        default: fail("unsupported element type ", dtype_name(dtype));
    }
}

/// Runs f(begin, end) over [0, n) in chunks of at least `grain` on the OpenMP threads. Results must not
/// depend on how the range was cut.
template <class F>
static inline void parallel_for(int64_t n, int64_t grain, F&& f) {
    if (n <= 0) return;
    const int64_t chunks =
        std::min<int64_t>(omp_in_parallel() ? 1 : omp_get_max_threads(), ceil_div(n, grain));
    if (chunks <= 1) {
        f(int64_t{0}, n);
        return;
    }
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(chunks))
    for (int64_t c = 0; c < chunks; ++c) {
        const int64_t begin = n * c / chunks, end = n * (c + 1) / chunks;
        if (begin < end) f(begin, end);
    }
}

/// Runs f(task) for tasks of uneven cost, handed out one by one.
template <class F>
static inline void parallel_tasks(int64_t n, F&& f) {
    if (n <= 0) return;
    const int64_t threads = std::min<int64_t>(omp_in_parallel() ? 1 : omp_get_max_threads(), n);
    if (threads <= 1) {
        for (int64_t i = 0; i < n; ++i) f(i);
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast<int>(threads))
    for (int64_t i = 0; i < n; ++i) f(i);
}

}  // namespace mmx::cpu::MMX_CPU_ISA
