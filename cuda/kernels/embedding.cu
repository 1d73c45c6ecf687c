#include <algorithm>

#include "cpp/core/math.h"
#include "cuda/common/copy.cuh"
#include "cuda/common/launch.h"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

constexpr int kThreads = 128;

/// `width` and `out_stride` count elements of type U.
template <class U>
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(EmbeddingParams p, int64_t width, int64_t out_stride) {
    const int64_t token = blockIdx.x, row = p.ids[token] - p.first_row;
    const bool held = row >= 0 && row < p.num_rows;
    const U* weight = static_cast<const U*>(p.weight) + (held ? row * width : 0);
    U* out = static_cast<U*>(p.out) + token * out_stride;
    const int64_t step = static_cast<int64_t>(gridDim.y) * kThreads;
    for (int64_t i = blockIdx.y * kThreads + threadIdx.x; i < width; i += step)
        out[i] = held ? weight[i] : U{};
}

}  // namespace

void embedding(const EmbeddingParams& p, Stream stream) {
    const int64_t bytes = dtype_bytes(p.dtype), row_bytes = p.hidden * bytes,
                  stride_bytes = p.out_stride * bytes;
    dispatch_copy_width(
        {address(p.weight), address(p.out), static_cast<uint64_t>(row_bytes),
         static_cast<uint64_t>(stride_bytes)},
        [&](auto u) {
            const int64_t size = sizeof(u), width = row_bytes / size;
            const auto blocks = static_cast<unsigned>(std::clamp<int64_t>(ceil_div(width, kThreads), 1, 64));
            const Launch launch{"embedding", dim3(static_cast<unsigned>(p.num_tokens), blocks), kThreads, 0,
                                stream};
            launch(embedding_kernel<decltype(u)>, p, width, stride_bytes / size);
        });
}

}  // namespace mmx::cuda
