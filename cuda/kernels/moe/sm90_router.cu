#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/multicast.cuh"
#include "cuda/common/ptx/wgmma_n.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/common/types.cuh"
#include "cuda/kernels/moe/choose.h"
#include "cuda/kernels/moe/sm90.h"
#include "cuda/kernels/moe/split_weight.cuh"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kParts = kRouterParts, kChunk = 64, kStages = 3;
constexpr int kGroups = static_cast<int>(kRouterExperts) / 64;
constexpr int kColumns = static_cast<int>(kRouterTokens);
constexpr int kBoxBytes = 64 * 128, kWeightBytes = kGroups * kParts * kBoxBytes;
constexpr int kSplitThreads = 256, kScoreThreads = kGroups * 128 + 32;
static_assert(kRouterSplits % 2 == 0);

/// parts[i] of every weight.
__global__ void __launch_bounds__(kSplitThreads)
    split_weight_kernel(const float* weight, bf16* parts, int64_t count) {
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int64_t i = (static_cast<int64_t>(blockIdx.x) * kSplitThreads + threadIdx.x) * 4;
    if (i >= count) return;
    float4 rest = *reinterpret_cast<const float4*>(weight + i);
#pragma unroll
    for (int part = 0; part < kParts; ++part)
        *reinterpret_cast<uint2*>(parts + part * count + i) = take_upper_bits(rest);
}

struct Shared {
    alignas(1024) char weight[kStages][kWeightBytes];  // [group][part][64 experts]
    alignas(1024) char x[kStages][kColumns * 128];
    uint64_t full[kStages], empty[kStages];
};

struct Maps {
    CUtensorMap weight;  // (k, expert, part)
    CUtensorMap x;       // (k, token, 0)
};

/// Experts on M, tokens on N. Block (x, y, z): tile x of tokens, share y of k, tile z of experts.
template <int kCluster>
__global__ void __launch_bounds__(kScoreThreads, 1)
    router_sums_kernel(const __grid_constant__ MoeRouterParams p, const __grid_constant__ Maps maps,
                       float* sums, int num_sums) {
    extern __shared__ char raw[];
    Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
    if (threadIdx.x == 0) {
        for (int i = 0; i < kStages; ++i) {
            ptx::barrier_init(shared.full[i], 1);
            ptx::barrier_init(shared.empty[i], kGroups * 4 * kCluster);
        }
        ptx::barrier_init_done();
    }
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    if constexpr (kCluster > 1)
        ptx::cluster_sync();
    else
        __syncthreads();
    const int num_chunks = static_cast<int>(p.hidden) / kChunk;
    const auto chunk_of = [&](int split) { return num_chunks * split / kRouterSplits; };
    const int num_splits = kRouterSplits / static_cast<int>(gridDim.y);
    const int first_split = static_cast<int>(blockIdx.y) * num_splits;
    const int token0 = static_cast<int>(blockIdx.x) * kColumns;
    const int expert0 = static_cast<int>(blockIdx.z * kRouterExperts);
    const int group = static_cast<int>(threadIdx.x) / 128;
    int stage = 0, parity = 0;
    const auto advance = [&] {
        if (++stage == kStages) stage = 0, parity ^= 1;
    };
    if (group == kGroups) {
        if (threadIdx.x == kGroups * 128) {
            const int rank = kCluster > 1 ? ptx::cluster_rank() : 0;
            for (int chunk = chunk_of(first_split); chunk < chunk_of(first_split + num_splits); ++chunk) {
                uint64_t& full = shared.full[stage];
                ptx::barrier_wait(shared.empty[stage], parity ^ 1);
                ptx::barrier_arrive_expect(full, kWeightBytes + kColumns * 128);
                ptx::tma_load_3d(shared.x[stage], maps.x, full, chunk * kChunk, token0, 0);
                static_assert(kCluster == 1 || kCluster == kGroups);
                for (int g = 0; g < kGroups; ++g) {
                    char* to = shared.weight[stage] + g * kParts * kBoxBytes;
                    if (kCluster == 1)
                        ptx::tma_load_3d(to, maps.weight, full, chunk * kChunk, expert0 + g * 64, 0);
                    else if (g == rank)
                        ptx::tma_load_3d_multicast(to, maps.weight, full, (1 << kCluster) - 1, chunk * kChunk,
                                                   expert0 + g * 64, 0);
                }
                advance();
            }
        }
    } else {
        const int tid = static_cast<int>(threadIdx.x) % 128, lane_idx = tid % 32, g = lane_idx / 4,
                  t = tid % 4;
        const auto release = [&](int at) {
            if constexpr (kCluster == 1) {
                if (lane_idx == 0) ptx::barrier_arrive(shared.empty[at]);
            } else {
                if (lane_idx < kCluster) ptx::barrier_arrive_at(shared.empty[at], lane_idx);
            }
        };
        const int expert = expert0 + group * 64 + tid / 32 * 16 + g;
        const auto write = [&](const float (&values)[kColumns / 2], int slot) {
            float* to = sums + slot * p.num_tokens * p.num_experts + expert;
#pragma unroll
            for (int i = 0; i < kColumns / 2; ++i) {
                const int64_t token = token0 + i / 4 * 8 + 2 * t + i % 2;
                const int row = i % 4 / 2 * 8;
                if (token < p.num_tokens && expert + row < p.num_experts)
                    to[token * p.num_experts + row] = values[i];
            }
        };
        const bool is_summed = num_sums < kRouterSplits;
        float total[kColumns / 2] = {};
        for (int split = first_split; split < first_split + num_splits; ++split) {
            float acc[kColumns / 2] = {};
            int previous = -1;
            for (int chunk = chunk_of(split); chunk < chunk_of(split + 1); ++chunk) {
                ptx::barrier_wait(shared.full[stage], parity);
                const uint64_t x = ptx::wgmma_operand(ptx::smem_address(shared.x[stage]));
                const uint64_t weight =
                    ptx::wgmma_operand(ptx::smem_address(shared.weight[stage]) + group * kParts * kBoxBytes);
                ptx::wgmma_begin();
#pragma unroll
                for (int step = 0; step < 4; ++step)
#pragma unroll
                    for (int part = 0; part < kParts; ++part)
                        ptx::Wgmma<kColumns>::bf16(acc, weight + ((part * kBoxBytes + step * 32) >> 4),
                                                   x + (step * 32 >> 4), true);
                ptx::wgmma_commit();
                ptx::wgmma_wait<1>();
                if (previous >= 0) release(previous);
                previous = stage;
                advance();
            }
            ptx::wgmma_wait<0>();
            if (previous >= 0) release(previous);
            if (is_summed) {
#pragma unroll
                for (int i = 0; i < kColumns / 2; ++i) total[i] += acc[i];
            } else {
                write(acc, split);
            }
        }
        if (is_summed) write(total, static_cast<int>(blockIdx.y));
    }
    // Why: the other block may still copy into this one's memory or arrive on its barriers.
    if constexpr (kCluster > 1) ptx::cluster_sync();
}

template <int kCluster>
void launch_sums(const MoeRouterParams& p, const RouterPlan& plan, const bf16* parts, float* sums,
                 Stream stream) {
    const Maps maps{make_tensor_map<3>(parts, {p.hidden, p.num_experts, kParts},
                                       {p.hidden, p.hidden * p.num_experts}, {kChunk, 64, kParts}),
                    make_tensor_map<3>(p.x, {p.hidden, p.num_tokens, 1},
                                       {p.x_stride, p.x_stride * p.num_tokens}, {kChunk, kColumns, 1})};
    const int64_t tiles = align_up(ceil_div(p.num_tokens, kColumns), kCluster);
    const LaunchChain launch{"moe_router",
                             dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(plan.blocks),
                                  static_cast<unsigned>(ceil_div(p.num_experts, kRouterExperts))),
                             kScoreThreads,
                             sizeof(Shared) + 1024,
                             stream,
                             kCluster};
    launch(router_sums_kernel<kCluster>, p, maps, sums, plan.num_sums);
}

}  // namespace

void router_sums(const MoeRouterParams& p, const RouterPlan& plan, Stream stream) {
    bf16* parts = static_cast<bf16*>(p.workspace);
    float* sums = router_sums_of(p, plan);
    if (plan.few) return router_sums_few(p, sums, stream);
    const int64_t count = p.num_experts * p.hidden;
    const dim3 split_grid(static_cast<unsigned>(ceil_div(count, 4 * kSplitThreads)));
    LaunchChain{"moe_router", split_grid, kSplitThreads, 0, stream}(split_weight_kernel, p.gate_weight, parts,
                                                                    count);
    if (plan.cluster == 2)
        launch_sums<2>(p, plan, parts, sums, stream);
    else
        launch_sums<1>(p, plan, parts, sums, stream);
}

}  // namespace mmx::cuda::sm90
