#include <algorithm>

#include "cpp/core/math.h"
#include "cuda/common/launch.h"
#include "cuda/common/types.cuh"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

constexpr int kThreads = 256;

// A thread owns both members of a pair, so `out` may be `x`. Items of a head: its pairs, then the dims to
// copy.
template <class T>
__global__ void __launch_bounds__(kThreads) rope_kernel(RopeParams p) {
    const int64_t token = blockIdx.x, half = p.rotary_dim / 2, items = p.head_dim - half;
    const float* cos = p.cos_sin + p.positions[token] * p.rotary_dim;
    const float* sin = cos + half;
    const int64_t step = static_cast<int64_t>(gridDim.y) * kThreads;
    for (int64_t i = blockIdx.y * kThreads + threadIdx.x; i < p.num_heads * items; i += step) {
        const int64_t head = i / items, item = i % items;
        const T* x = static_cast<const T*>(p.x) + token * p.x_token_stride + head * p.x_head_stride;
        T* out = static_cast<T*>(p.out) + token * p.out_token_stride + head * p.out_head_stride;
        if (item < half) {
            const float first = to_float(x[item]), second = to_float(x[item + half]);
            out[item] = from_float<T>(first * cos[item] - second * sin[item]);
            out[item + half] = from_float<T>(second * cos[item] + first * sin[item]);
        } else if (out != x) {
            out[item + half] = x[item + half];
        }
    }
}

}  // namespace

void rope(const RopeParams& p, Stream stream) {
    const int64_t items = p.num_heads * (p.head_dim - p.rotary_dim / 2);
    const auto blocks_per_token =
        static_cast<unsigned>(std::clamp<int64_t>(ceil_div(items, 2 * kThreads), 1, 64));
    const Launch launch{"rope", dim3(static_cast<unsigned>(p.num_tokens), blocks_per_token), kThreads, 0,
                        stream};
    dispatch_float(p.dtype, [&](auto t) { launch(rope_kernel<decltype(t)>, p); });
}

}  // namespace mmx::cuda
