#include "cuda/common/chain.h"
#include "cuda/common/ptx/cluster.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/multicast.cuh"
#include "cuda/common/ptx/wgmma_n.cuh"
#include "cuda/common/types.cuh"
#include "cuda/kernels/moe/choose.h"
#include "cuda/kernels/moe/sm90.h"
#include "cuda/kernels/moe/split_weight.cuh"

namespace mmx::cuda::sm90 {

namespace {

// The same sums as in sm90_router.cu, bit for bit, for so few tokens that every block can hold its whole
// share of the weight: it is read, split and in place before the tokens are known.

constexpr int kChunk = 64, kRow = 2 * kChunk, kBoxBytes = 64 * kRow, kPieces = kChunk / 8;
constexpr int kThreads = 256, kGroups = kThreads / 128, kRowsAtOnce = kThreads / kPieces;
constexpr int kCluster = kRouterSplits / 2;  // blocks whose sums are added up: half of k
constexpr int kStride = 64 + 4;              // floats between a token's sums, so that lanes meet few banks
constexpr int kOwned = 64 / kCluster;        // experts whose sums a block adds up
static_assert(kRouterFewExperts == 64);

/// Byte offset of 16 bytes, number `piece` of a row, in a tile of the 128-byte swizzle.
__device__ __forceinline__ int swizzled(int row, int piece) { return row * kRow + ((piece ^ row % 8) << 4); }

/// 64 experts on M, kColumns tokens of each warpgroup on N. Block (x, y, z): share x of k, tile y of experts,
/// tile z of tokens. sums: [2, num_tokens, num_experts].
template <int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    router_few_kernel(const __grid_constant__ MoeRouterParams p, float* sums) {
    extern __shared__ char raw[];
    char* const shared = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
    const int num_chunks = static_cast<int>(p.hidden) / kChunk, split = static_cast<int>(blockIdx.x);
    const int first = num_chunks * split / kRouterSplits;
    const int count = num_chunks * (split + 1) / kRouterSplits - first;
    const int most = (num_chunks + kRouterSplits - 1) / kRouterSplits;
    char* const weight = shared;                               // [chunk][part][64 experts]
    char* const x = shared + most * kRouterParts * kBoxBytes;  // [chunk][tokens]
    float* const staged = reinterpret_cast<float*>(shared);    // [tokens][kStride]
    constexpr int kTokens = kGroups * kColumns, kTileBytes = kTokens * kRow;
    const int expert0 = static_cast<int>(blockIdx.y) * 64, token0 = static_cast<int>(blockIdx.z) * kTokens;
    const int row0 = static_cast<int>(threadIdx.x) / kPieces, piece = static_cast<int>(threadIdx.x) % kPieces;

    float4 read[kRouterFewChunks][64 / kRowsAtOnce][2];
#pragma unroll
    for (int c = 0; c < kRouterFewChunks; ++c)
#pragma unroll
        for (int r = 0; r < 64 / kRowsAtOnce; ++r) {
            const int64_t expert = expert0 + row0 + r * kRowsAtOnce;
            const bool exists = c < count && expert < p.num_experts;
            const float* from = p.gate_weight + expert * p.hidden + (first + c) * kChunk + piece * 8;
#pragma unroll
            for (int i = 0; i < 2; ++i)
                read[c][r][i] = exists ? reinterpret_cast<const float4*>(from)[i] : float4{};
        }
#pragma unroll
    for (int c = 0; c < kRouterFewChunks; ++c) {
        if (c >= count) break;
#pragma unroll
        for (int r = 0; r < 64 / kRowsAtOnce; ++r) {
            char* const to = weight + c * kRouterParts * kBoxBytes + swizzled(row0 + r * kRowsAtOnce, piece);
#pragma unroll
            for (int part = 0; part < kRouterParts; ++part) {
                const uint2 low = take_upper_bits(read[c][r][0]), high = take_upper_bits(read[c][r][1]);
                *reinterpret_cast<uint4*>(to + part * kBoxBytes) = make_uint4(low.x, low.y, high.x, high.y);
            }
        }
    }

    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    for (int i = static_cast<int>(threadIdx.x); i < count * kTokens * kPieces; i += kThreads) {
        const int c = i / (kTokens * kPieces), row = i / kPieces % kTokens;
        const int64_t token = token0 + row;
        uint4 run{};
        if (token < p.num_tokens)
            run = *reinterpret_cast<const uint4*>(static_cast<const bf16*>(p.x) + token * p.x_stride +
                                                  (first + c) * kChunk + i % kPieces * 8);
        *reinterpret_cast<uint4*>(x + c * kTileBytes + swizzled(row, i % kPieces)) = run;
    }
    ptx::fence_async_proxy();
    __syncthreads();

    const int group = static_cast<int>(threadIdx.x) / 128, lane_idx = static_cast<int>(threadIdx.x) % 32;
    float acc[kColumns / 2] = {};
    if (token0 + group * kColumns < p.num_tokens) {
#pragma unroll 1
        for (int c = 0; c < count; ++c) {
            ptx::wgmma_begin();
            const uint64_t a = ptx::wgmma_operand(ptx::smem_address(weight) + c * kRouterParts * kBoxBytes);
            const uint64_t b =
                ptx::wgmma_operand(ptx::smem_address(x) + c * kTileBytes + group * kColumns * kRow);
#pragma unroll
            for (int step = 0; step < 4; ++step)
#pragma unroll
                for (int part = 0; part < kRouterParts; ++part)
                    ptx::Wgmma<kColumns>::bf16(acc, a + ((part * kBoxBytes + step * 32) >> 4),
                                               b + (step * 32 >> 4), true);
            ptx::wgmma_commit();
        }
        ptx::wgmma_wait<0>();
    }
    __syncthreads();
    const int row = static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane_idx / 4;
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) {
        const int column = group * kColumns + i / 4 * 8 + lane_idx % 4 * 2 + i % 2;
        staged[column * kStride + row + i % 4 / 2 * 8] = acc[i];
    }
    ptx::cluster_sync();
    const int rank = ptx::cluster_rank(), owned = rank * kOwned + static_cast<int>(threadIdx.x) % kOwned;
    for (int t = static_cast<int>(threadIdx.x) / kOwned; t < kTokens; t += kThreads / kOwned) {
        const int64_t token = token0 + t, expert = expert0 + owned;
        if (token >= p.num_tokens || expert >= p.num_experts) continue;
        const uint32_t mine = ptx::smem_address(staged + t * kStride + owned);
        float part[kCluster], total = 0;
#pragma unroll
        for (int i = 0; i < kCluster; ++i) part[i] = ptx::load_remote(ptx::cluster_address(mine, i));
#pragma unroll
        for (int i = 0; i < kCluster; ++i) total += part[i];
        sums[(split / kCluster * p.num_tokens + token) * p.num_experts + expert] = total;
    }
    // Why: other blocks may still read this one's memory.
    ptx::cluster_sync();
}

template <int kColumns>
void launch(const MoeRouterParams& p, float* sums, Stream stream) {
    constexpr int kTokens = kGroups * kColumns;
    const int64_t chunks = ceil_div(p.hidden / kChunk, int64_t{kRouterSplits});
    const dim3 grid(kRouterSplits, static_cast<unsigned>(ceil_div(p.num_experts, kRouterFewExperts)),
                    static_cast<unsigned>(ceil_div(p.num_tokens, int64_t{kTokens})));
    const auto smem_bytes = static_cast<size_t>(chunks * (kRouterParts * kBoxBytes + kTokens * kRow) + 1024);
    LaunchChain{"moe_router", grid, kThreads, smem_bytes, stream, kCluster}(router_few_kernel<kColumns>, p,
                                                                            sums);
}

}  // namespace

void router_sums_few(const MoeRouterParams& p, float* sums, Stream stream) {
    if (p.num_tokens <= 16)
        launch<8>(p, sums, stream);
    else if (p.num_tokens <= 32)
        launch<16>(p, sums, stream);
    else
        launch<32>(p, sums, stream);
}

}  // namespace mmx::cuda::sm90
