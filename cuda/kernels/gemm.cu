#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/stream_rows.cuh"
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

// ---- skinny: weights streamed once for up to 16 rows of x -----------------------------------------
//
// More rows take turns, in the same order of additions: a row's result is the same in every batch. That costs
// what reading weights and x through the L2 costs; a library is faster on many rows where it need not hold.

constexpr int kWarps = 8;        // split k between them; their sums are added in warp order
constexpr int kUnroll = 2;       // chunks in flight: 8 loads of 16 bytes per lane
constexpr int kWeightRows = 16;  // per block: the m of mma.m16n8k16
constexpr int kGroup = 16;       // row tiles that share a pass over the weights, their x in the L2

/// Blocks per multiprocessor that the registers of so many tiles allow.
constexpr int blocks_of(int token_tiles) { return token_tiles == 1 ? 4 : token_tiles == 2 ? 3 : 2; }

template <int kTokenTiles, class TOut>
__global__ void __launch_bounds__(kWarps * 32, blocks_of(kTokenTiles)) linear_skinny_kernel(LinearParams p) {
    constexpr int kTokens = kTokenTiles * 8;
    const int warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32, g = lane_idx / 4, t = lane_idx % 4;
    int64_t first_row = static_cast<int64_t>(blockIdx.x) * kWeightRows, first_token = 0;
    if constexpr (kTokenTiles > 2) {
        // Blocks in order: groups of row tiles, in each the weights, of each the tiles of the group.
        const unsigned num_tiles = static_cast<unsigned>((p.m + kTokens - 1) / kTokens);
        const unsigned pass = static_cast<unsigned>(p.n / kWeightRows) * kGroup, group = blockIdx.x / pass;
        const unsigned tiles = min(num_tiles - group * kGroup, kGroup), rest = blockIdx.x - group * pass;
        first_row = static_cast<int64_t>(rest / tiles) * kWeightRows;
        first_token = static_cast<int64_t>(group * kGroup + rest % tiles) * kTokens;
    }
    const int num_tokens = static_cast<int>(min(p.m - first_token, static_cast<int64_t>(kTokens)));
    const bf16* first_x = static_cast<const bf16*>(p.x) + first_token * p.x_stride;
    const bf16* weight = static_cast<const bf16*>(p.weight) + (first_row + g) * p.k;
    const bf16* x[kTokenTiles];
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; ++tile) {
        const int token = tile * 8 + g;
        x[tile] = token < num_tokens ? first_x + token * p.x_stride : nullptr;
    }
    float acc[kTokenTiles][4] = {};
    const bf16* high = weight + 8 * p.k;
    const int num_chunks = static_cast<int>(p.k / kStreamChunk<bf16>);
    const auto ready = [] {
        ptx::let_successors_start();
        ptx::wait_for_predecessors();
    };
    stream_rows<bf16, kTokenTiles, kUnroll>(acc, weight, high, x, nullptr, nullptr, num_chunks, warp_idx,
                                            kWarps, ready);

    __shared__ float partial[kWarps][kTokens][kWeightRows];
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            partial[warp_idx][tile * 8 + t * 2 + i % 2][g + 8 * (i / 2)] = acc[tile][i];
    __syncthreads();
    TOut* out = static_cast<TOut*>(p.out) + first_token * p.out_stride + first_row;
    for (int i = threadIdx.x; i < kTokens * kWeightRows; i += kWarps * 32) {
        const int token = i / kWeightRows, row = i % kWeightRows;
        if (token >= num_tokens) break;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += partial[w][token][row];
        out[token * p.out_stride + row] = from_float<TOut>(sum);
    }
}

bool is_skinny(const LinearParams& p) {
    const auto aligned = [](const void* data, int64_t stride) {
        return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
    };
    return p.dtype == DType::kBF16 && p.n % kWeightRows == 0 && p.k % kStreamChunk<bf16> == 0 &&
           aligned(p.x, p.x_stride) && aligned(p.weight, p.k);
}

template <class T, class TOut>
void launch_linear(const LinearParams& p, Stream stream) {
    if constexpr (std::is_same_v<T, bf16>) {
        if (is_skinny(p)) {
            const auto launch = [&](auto kernel, int64_t tokens) {
                const int64_t blocks = ceil_div(p.m, tokens) * (p.n / kWeightRows);
                const dim3 grid(static_cast<unsigned>(blocks));
                // Blocks that start early crowd on the multiprocessors that are free first, which costs a
                // grid of less than a wave more than the start that it hides.
                if (blocks >= blocks_of(1) * num_multiprocessors())
                    LaunchChain{"linear", grid, kWarps * 32, 0, stream}(kernel, p);
                else
                    Launch{"linear", grid, kWarps * 32, 0, stream}(kernel, p);
            };
            if (p.m <= 8) return launch(linear_skinny_kernel<1, TOut>, 8);
            if (p.m <= 16) return launch(linear_skinny_kernel<2, TOut>, 16);
            return launch(linear_skinny_kernel<4, TOut>, 32);
        }
    }
    constexpr int kThreads = 128;
    const dim3 grid(static_cast<unsigned>(ceil_div(p.n, kThreads / 32)), static_cast<unsigned>(p.m));
    Launch{"linear", grid, kThreads, 0, stream}(linear_kernel<T, TOut>, p);
}

}  // namespace

void linear(const LinearParams& p, Stream stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        if (p.out_dtype == DType::kF32)
            launch_linear<T, float>(p, stream);
        else
            launch_linear<T, T>(p, stream);
    });
}

}  // namespace mmx::cuda
