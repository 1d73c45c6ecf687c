#pragma once

#include <algorithm>
#include <type_traits>

#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/ptx/multicast.cuh"
#include "cuda/common/ptx/wgmma_n.cuh"
#include "cuda/common/ring.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/common/types.cuh"
#include "cuda/kernels/moe/work_list.cuh"

namespace mmx::cuda::sm90 {

inline constexpr int kChunk = 64;           // of k: 128 bytes, the width of a box
inline constexpr int kBoxBytes = 64 * 128;  // weights of one product
inline constexpr int kRowThreads = 96;      // that gather rows of x
inline constexpr size_t kSmemOfMultiprocessor = 228 * 1024;

/// kGroups consumer warpgroups, each kParts x 64 weight rows; up to kHeight rows of x; a ring of kStages
/// chunks of k; kBlocks thread blocks share a multiprocessor, kCluster of them the weights; rows of x that
/// need not be gathered come kBoxRows at a time.
template <int kGroups_, int kParts_, int kHeight_, int kStages_, int kCluster_, int kBlocks_,
          int kBoxRows_ = kHeight_ < 16 ? kHeight_ : 16>
struct Bf16Tile {
    static constexpr int kGroups = kGroups_, kParts = kParts_, kHeight = kHeight_, kStages = kStages_;
    static constexpr int kCluster = kCluster_, kBlocks = kBlocks_;
    static constexpr int kBoxes = kGroups * kParts, kWeightRows = kBoxes * 64;
    static constexpr int kThreads = (1 + kGroups) * 128;
    static constexpr int kBoxRows = kBoxRows_;
    static_assert(kHeight % kBoxRows == 0 && kBoxRows % 8 == 0 && kBoxes % kCluster == 0);

    struct Stage {
        char weight[kBoxes * kBoxBytes];
        char x[kHeight * 128];
    };
    struct Shared {
        alignas(1024) Stage stages[kStages];
        uint64_t full[kStages], empty[kStages];
        std::conditional_t<kHeight == kMoeFewRows, MoeFewList<kHeight>, MoeWorkList<kHeight, kCluster>> list;
    };
};

/// D[m, n] = A[m, k] . B[e, n, k]^T for the rows m of expert e.
///
/// A thread of the products holds weight rows g and g + 8 of a warp's 16. The boxes deal the rows of B out so
/// that these are gate and up of one channel, or two neighbouring channels, and so that the channels of a
/// thread, and of a warp, are neighbours: results go straight from registers to whole sectors.
struct Bf16Job {
    const bf16* x;               // [.., k], rows of x_stride
    const int32_t* sorted_rows;  // gate and up: row m of A is x[sorted_rows[m] / topk]; down: x[m]
    const int32_t* offsets;      // [num_experts + 1]
    bf16* out;                   // [.., n]
    int64_t x_stride, n;
    int topk, num_experts, num_chunks, num_weight_tiles;
    Activation activation;  // these three for gate and up only
    float alpha, limit;
};

template <int kParts>
struct Bf16Maps {
    CUtensorMap weight[kParts];  // (k, g, row g or g + 8, warp, expert)
    CUtensorMap x;               // (k, row, 0), of down
};

/// The weight boxes of one chunk that this block has to fetch.
template <class Tile, class F>
__device__ __forceinline__ void for_each_box(const MoeUnit& unit, int rank, F&& f) {
    constexpr int kShare = Tile::kBoxes / Tile::kCluster;
#pragma unroll
    for (int i = 0; i < Tile::kBoxes; ++i) {
        if (Tile::kCluster > 1 && unit.is_weight_shared && i >= kShare) break;
        const int box = Tile::kCluster == 1 ? i : (i + rank * kShare) % Tile::kBoxes;
        f(box, (unit.weight_tile * Tile::kGroups + box / Tile::kParts) * 4);
    }
}

template <class Tile, bool kGather>
__device__ __forceinline__ void produce_boxes(const Bf16Job& job, const Bf16Maps<Tile::kParts>& maps,
                                              typename Tile::Shared& shared, int rank) {
    Ring<Tile::kStages> ring(0);
    for (int item = static_cast<int>(blockIdx.x) / Tile::kCluster; item < shared.list.num_items();
         item += static_cast<int>(gridDim.x) / Tile::kCluster) {
        const MoeUnit unit = shared.list.unit(item, rank);
        const int row_boxes = kGather ? 0 : (unit.num_rows + Tile::kBoxRows - 1) / Tile::kBoxRows;
        const int bytes = Tile::kBoxes * kBoxBytes + row_boxes * Tile::kBoxRows * 128;
        for (int chunk = 0; chunk < job.num_chunks; ++chunk) {
            uint64_t& full = shared.full[ring.at];
            ptx::barrier_wait(shared.empty[ring.at], ring.parity ^ 1);
            ptx::barrier_arrive_expect(full, bytes);
            for_each_box<Tile>(unit, rank, [&](int box, int warp) {
                char* to = shared.stages[ring.at].weight + box * kBoxBytes;
                const CUtensorMap& map = maps.weight[box % Tile::kParts];
                if (Tile::kHeight == kMoeFewRows)
                    ptx::tma_load_5d(to, map, full, chunk * kChunk, 0, 0, warp, unit.expert,
                                     ptx::kEvictFirst);
                else if (Tile::kCluster == 1 || !unit.is_weight_shared)
                    ptx::tma_load_5d(to, map, full, chunk * kChunk, 0, 0, warp, unit.expert);
                else
                    ptx::tma_load_5d_multicast(to, map, full, (1 << Tile::kCluster) - 1, chunk * kChunk, 0, 0,
                                               warp, unit.expert);
            });
            // Boxes reach into the rows of the next expert: columns of the products that nobody stores.
            for (int box = 0; box < row_boxes; ++box)
                ptx::tma_load_3d(shared.stages[ring.at].x + box * Tile::kBoxRows * 128, maps.x, full,
                                 chunk * kChunk, unit.first_row + box * Tile::kBoxRows, 0);
            ring.advance();
        }
    }
}

/// Gathers rows of x, which the copy engine cannot. Rows behind the last one of a tile keep what they held.
template <class Tile>
__device__ __forceinline__ void gather_rows(const Bf16Job& job, typename Tile::Shared& shared, int rank,
                                            int thread) {
    constexpr int kStep = kRowThreads / 8, kSteps = (Tile::kHeight + kStep - 1) / kStep;
    const int row = thread / 8, piece = thread % 8;
    const char* x = reinterpret_cast<const char*>(job.x) + piece * 16;
    Ring<Tile::kStages> ring(0);
    for (int item = static_cast<int>(blockIdx.x) / Tile::kCluster; item < shared.list.num_items();
         item += static_cast<int>(gridDim.x) / Tile::kCluster) {
        const MoeUnit unit = shared.list.unit(item, rank);
        uint32_t from[kSteps];  // in 16 bytes
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
            const int m = unit.first_row + min(i * kStep + row, unit.num_rows - 1);
            from[i] = static_cast<uint32_t>(job.sorted_rows[m] / job.topk * (job.x_stride / 8));
        }
        for (int chunk = 0; chunk < job.num_chunks; ++chunk) {
            ptx::barrier_wait(shared.empty[ring.at], ring.parity ^ 1);
            const uint32_t to = ptx::smem_address(shared.stages[ring.at].x) + row * 128;
#pragma unroll
            for (int i = 0; i < kSteps; ++i) {
                if (i * kStep >= unit.num_rows) break;
                const uint32_t swizzled = static_cast<uint32_t>(piece ^ ((row + i * kStep) % 8)) * 16;
                ptx::copy_async_16(to + i * kStep * 128 + swizzled,
                                   x + static_cast<uint64_t>(from[i]) * 16 + chunk * 128,
                                   i * kStep + row < unit.num_rows);
            }
            ptx::barrier_arrive_after_copies(shared.full[ring.at]);
            ring.advance();
        }
    }
}

template <class Tile, bool kGather, int kColumns>
__device__ __forceinline__ void multiply(typename Tile::Shared& shared, Ring<Tile::kStages>& ring,
                                         int num_chunks, int group,
                                         float (&acc)[Tile::kParts][Tile::kHeight / 2]) {
    const int lane_idx = static_cast<int>(threadIdx.x) % 32;
    const auto release = [&](int stage) {
        if constexpr (Tile::kCluster == 1) {
            if (lane_idx == 0) ptx::barrier_arrive(shared.empty[stage]);
        } else {
            if (lane_idx < Tile::kCluster) ptx::barrier_arrive_at(shared.empty[stage], lane_idx);
        }
    };
    int previous = 0;
    for (int chunk = 0; chunk < num_chunks; ++chunk) {
        ptx::barrier_wait(shared.full[ring.at], ring.parity);
        if constexpr (kGather) ptx::fence_async_proxy();
        const uint64_t weight = ptx::wgmma_operand(ptx::smem_address(shared.stages[ring.at].weight) +
                                                   group * Tile::kParts * kBoxBytes);
        const uint64_t x = ptx::wgmma_operand(ptx::smem_address(shared.stages[ring.at].x));
        ptx::wgmma_begin();
#pragma unroll
        for (int step = 0; step < 4; ++step)
#pragma unroll
            for (int part = 0; part < Tile::kParts; ++part)
                ptx::Wgmma<kColumns>::bf16(acc[part], weight + ((part * kBoxBytes + step * 32) >> 4),
                                           x + (step * 32 >> 4), chunk + step > 0);
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();
        if (chunk > 0) release(previous);
        previous = ring.at;
        ring.advance();
    }
    ptx::wgmma_wait<0>();
    release(previous);
}

/// act(gate, up) with the fast exponential and reciprocal: exact to a few units in the last place of fp32,
/// far below the rounding to bf16 that follows.
__device__ __forceinline__ float fast_gated_act(float gate, float up, Activation activation, float alpha,
                                                float limit) {
    float slope = ptx::kLog2e;
    if (activation == Activation::kSwigluOai) {
        gate = gate > limit ? limit : gate;
        up = up > limit ? limit : up;
        up = up < -limit ? -limit : up;
        up += 1.0f;
        slope *= alpha;
    }
    return __fdividef(gate, 1.0f + ptx::exp2_approx(-slope * gate)) * up;
}

template <class Tile, bool kGateUp>
__device__ __forceinline__ void store(const Bf16Job& job, const MoeUnit& unit, int group,
                                      const float (&acc)[Tile::kParts][Tile::kHeight / 2]) {
    constexpr int kOutputs = kGateUp ? Tile::kParts : 2 * Tile::kParts;  // neighbouring channels of a thread
    const int tid = static_cast<int>(threadIdx.x) % 128, g = tid % 32 / 4, t = tid % 4;
    const int warp = (unit.weight_tile * Tile::kGroups + group) * 4 + tid / 32;
    const int channel = (warp * 8 + g) * kOutputs;
    if (!unit.is_valid || channel >= job.n) return;
    bf16* out = job.out + (unit.first_row + 2 * t) * job.n + channel;
#pragma unroll
    for (int j = 0; j < Tile::kHeight / 8; ++j) {
        if (8 * j >= unit.num_rows) break;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            float values[kOutputs];
#pragma unroll
            for (int part = 0; part < Tile::kParts; ++part) {
                const float low = acc[part][4 * j + e], high = acc[part][4 * j + 2 + e];
                if constexpr (kGateUp) {
                    values[part] = fast_gated_act(low, high, job.activation, job.alpha, job.limit);
                } else {
                    values[2 * part] = low;
                    values[2 * part + 1] = high;
                }
            }
            if (8 * j + 2 * t + e >= unit.num_rows) continue;
            bf16* to = out + (8 * j + e) * job.n;
            if constexpr (kOutputs == 1) {
                *to = __float2bfloat16_rn(values[0]);
            } else if constexpr (kOutputs == 2) {
                *reinterpret_cast<uint32_t*>(to) = ptx::pack_bf16(values[0], values[1]);
            } else {
                *reinterpret_cast<uint2*>(to) =
                    make_uint2(ptx::pack_bf16(values[0], values[1]), ptx::pack_bf16(values[2], values[3]));
            }
        }
    }
}

template <class Tile, bool kGateUp, bool kGather>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    moe_bf16_kernel(const __grid_constant__ Bf16Job job,
                    const __grid_constant__ Bf16Maps<Tile::kParts> maps) {
    extern __shared__ char raw[];
    using Shared = typename Tile::Shared;
    Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
    const int rank = Tile::kCluster > 1 ? ptx::cluster_rank() : 0;
    if (threadIdx.x == 0) {
        for (int part = 0; part < Tile::kParts; ++part) ptx::prefetch_map(maps.weight[part]);
        if constexpr (!kGather) ptx::prefetch_map(maps.x);
        for (int i = 0; i < Tile::kStages; ++i) {
            ptx::barrier_init(shared.full[i], kGather ? 1 + kRowThreads : 1);
            ptx::barrier_init(shared.empty[i], Tile::kGroups * 4 * Tile::kCluster);
        }
        ptx::barrier_init_done();
    }
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    shared.list.fill(job.offsets, job.num_experts, job.num_weight_tiles);
    if constexpr (Tile::kCluster > 1)
        ptx::cluster_sync();
    else
        __syncthreads();
    const int group = static_cast<int>(threadIdx.x) / 128 - 1;
    if (group < 0) {
        if constexpr (Tile::kParts == 2) ptx::release_registers<72>();
        if (threadIdx.x == 0) produce_boxes<Tile, kGather>(job, maps, shared, rank);
        if (kGather && threadIdx.x >= 128 - kRowThreads)
            gather_rows<Tile>(job, shared, rank, static_cast<int>(threadIdx.x) - (128 - kRowThreads));
    } else {
        if constexpr (Tile::kParts == 2) ptx::take_registers<216>();
        Ring<Tile::kStages> ring(0);
        for (int item = static_cast<int>(blockIdx.x) / Tile::kCluster; item < shared.list.num_items();
             item += static_cast<int>(gridDim.x) / Tile::kCluster) {
            const MoeUnit unit = shared.list.unit(item, rank);
            float acc[Tile::kParts][Tile::kHeight / 2];
            ptx::dispatch_columns<Tile::kHeight>(unit.height, [&]<int kColumns>() {
                multiply<Tile, kGather, kColumns>(shared, ring, job.num_chunks, group, acc);
            });
            store<Tile, kGateUp>(job, unit, group, acc);
        }
    }
    // Why: the other block may still copy into this one's memory or arrive on its barriers.
    if constexpr (Tile::kCluster > 1) ptx::cluster_sync();
}

template <class Tile, bool kGateUp, bool kGather = kGateUp>
void launch_bf16(const char* op, Bf16Job job, const void* weight, int64_t k, int64_t num_rows,
                 Stream stream) {
    constexpr int64_t kThreadRows =
        kGateUp ? Tile::kParts : 2 * Tile::kParts;  // neighbours, of gate or of up
    constexpr auto kPromotion =
        Tile::kHeight <= 32 ? CU_TENSOR_MAP_L2_PROMOTION_NONE : CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    const int64_t expert_rows = kGateUp ? 2 * job.n : job.n;
    job.num_chunks = static_cast<int>(k / kChunk);
    job.num_weight_tiles = static_cast<int>(ceil_div(expert_rows, Tile::kWeightRows));
    Bf16Maps<Tile::kParts> maps;
    for (int part = 0; part < Tile::kParts; ++part)
        maps.weight[part] = make_tensor_map<5>(
            static_cast<const bf16*>(weight) + (kGateUp ? part : 2 * part) * k,
            {k, 8, 2, job.n / (8 * kThreadRows), job.num_experts},
            {kThreadRows * k, (kGateUp ? job.n : 1) * k, 8 * kThreadRows * k, expert_rows * k},
            {64, 8, 2, 4, 1}, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kPromotion);
    if constexpr (!kGather)
        maps.x =
            make_tensor_map<3>(job.x, {k, num_rows, 1}, {job.x_stride, job.x_stride * num_rows},
                               {kChunk, Tile::kBoxRows, 1}, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kPromotion);
    // The host does not know the rows per expert: at most one part-filled tile each.
    const int64_t tiles = num_rows / Tile::kHeight + std::min<int64_t>(job.num_experts, num_rows);
    // Not less, lest one block more fits a multiprocessor and another stays empty.
    constexpr size_t kSmemBytes =
        std::max(sizeof(typename Tile::Shared) + 1024, kSmemOfMultiprocessor / (Tile::kBlocks + 1) + 1);
    const auto kernel = moe_bf16_kernel<Tile, kGateUp, kGather>;
    int64_t blocks = num_multiprocessors() * Tile::kBlocks;
    if constexpr (Tile::kCluster > 1) {
        static const int64_t resident =
            num_resident_blocks(kernel, Tile::kThreads, kSmemBytes, Tile::kCluster);
        blocks = resident;
    }
    blocks = std::min(blocks, align_up(tiles * job.num_weight_tiles, Tile::kCluster));
    const LaunchChain launch{
        op, dim3(static_cast<unsigned>(blocks)), Tile::kThreads, kSmemBytes, stream, Tile::kCluster};
    launch(kernel, job, maps);
}

}  // namespace mmx::cuda::sm90
