#include "cuda/common/launch.h"
#include "cuda/common/reduce.cuh"
#include "cuda/common/types.cuh"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

constexpr int kThreads = 256;

// One block per row: rows are read twice, the second time from L1/L2.
template <class T, class W>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(RmsNormParams p) {
    const int64_t token = blockIdx.x / p.num_heads, head = blockIdx.x % p.num_heads;
    const T* x = static_cast<const T*>(p.x) + token * p.x_token_stride + head * p.x_head_stride;
    T* out = static_cast<T*>(p.out) + token * p.out_token_stride + head * p.out_head_stride;
    const W* weight = static_cast<const W*>(p.weight);
    float squares = 0;
    for (int64_t i = threadIdx.x; i < p.hidden; i += kThreads) {
        const float v = to_float(x[i]);
        squares += v * v;
    }
    const float inv_rms = rsqrtf(block_sum<kThreads>(squares) / static_cast<float>(p.hidden) + p.eps);
    const float shift = p.gemma ? 1.0f : 0.0f;
    for (int64_t i = threadIdx.x; i < p.hidden; i += kThreads)
        out[i] = from_float<T>(to_float(x[i]) * inv_rms * (to_float(weight[i]) + shift));
}

template <class T, class W>
__global__ void __launch_bounds__(kThreads) add_rms_norm_kernel(AddRmsNormParams p) {
    T* residual = static_cast<T*>(p.residual) + blockIdx.x * p.residual_stride;
    const T* x = static_cast<const T*>(p.x) + blockIdx.x * p.x_stride;
    T* out = static_cast<T*>(p.out) + blockIdx.x * p.out_stride;
    const W* weight = static_cast<const W*>(p.weight);
    float squares = 0;
    for (int64_t i = threadIdx.x; i < p.hidden; i += kThreads) {
        residual[i] = from_float<T>(to_float(residual[i]) + to_float(x[i]));
        const float v = to_float(residual[i]);
        squares += v * v;
    }
    const float inv_rms = rsqrtf(block_sum<kThreads>(squares) / static_cast<float>(p.hidden) + p.eps);
    const float shift = p.gemma ? 1.0f : 0.0f;
    for (int64_t i = threadIdx.x; i < p.hidden; i += kThreads)
        out[i] = from_float<T>(to_float(residual[i]) * inv_rms * (to_float(weight[i]) + shift));
}

}  // namespace

void rms_norm(const RmsNormParams& p, Stream stream) {
    const Launch launch{"rms_norm", dim3(static_cast<unsigned>(p.num_tokens * p.num_heads)), kThreads, 0,
                        stream};
    dispatch_float(p.dtype, [&](auto t) {
        dispatch_float(p.weight_dtype, [&](auto w) { launch(rms_norm_kernel<decltype(t), decltype(w)>, p); });
    });
}

void add_rms_norm(const AddRmsNormParams& p, Stream stream) {
    const Launch launch{"add_rms_norm", dim3(static_cast<unsigned>(p.num_tokens)), kThreads, 0, stream};
    dispatch_float(p.dtype, [&](auto t) {
        dispatch_float(p.weight_dtype,
                       [&](auto w) { launch(add_rms_norm_kernel<decltype(t), decltype(w)>, p); });
    });
}

}  // namespace mmx::cuda
