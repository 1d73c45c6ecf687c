#include "cpp/core/math.h"
#include "cuda/common/launch.h"
#include "cuda/common/reduce.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/gemm/choose.h"
#include "cuda/kernels/gemm/sm90.h"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

/// Any shape and type, one warp per output; the yardstick of the fast kernel and what fp32 runs on.
template <class T, class TOut>
__global__ void linear_kernel(LinearParams p) {
    const int64_t col = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32,
                  row = blockIdx.y;
    if (col >= p.n) return;
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    const T* w = static_cast<const T*>(p.weight) + col * p.k;
    float sum = 0;
    for (int64_t i = threadIdx.x % 32; i < p.k; i += 32) sum += to_float(x[i]) * to_float(w[i]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) static_cast<TOut*>(p.out)[row * p.out_stride + col] = from_float<TOut>(sum);
}

template <class T, class TOut>
void launch_linear(const LinearParams& p, Stream stream) {
    constexpr int kThreads = 128;
    const dim3 grid(static_cast<unsigned>(ceil_div(p.n, kThreads / 32)), static_cast<unsigned>(p.m));
    Launch{"linear", grid, kThreads, 0, stream}(linear_kernel<T, TOut>, p);
}

}  // namespace

void linear(const LinearParams& p, Stream stream) {
    if (sm90_linear_fits(p) && is_aligned16(p.x) && is_aligned16(p.weight))
        return sm90::linear_bf16(p, stream);
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        if (p.out_dtype == DType::kF32)
            launch_linear<T, float>(p, stream);
        else
            launch_linear<T, T>(p, stream);
    });
}

}  // namespace mmx::cuda
