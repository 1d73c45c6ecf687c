#pragma once

#include <algorithm>

#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/kernels/moe/sm90_fp8_columns.cuh"

/// Grouped GEMM of e4m3 rows with e4m3 weights, D[m, n] = sum over k blocks of 128 of (A . B^T over the
/// block) * A's scale * B's scale. Each block's product is summed by the tensor cores and added in fp32, in
/// the order of k: the result of a row does not depend on its tile, nor on which operand comes first
/// (sm90_fp8_wide.cu).
namespace mmx::cuda::sm90 {

/// What the copy engine fetches: weights, or rows that lie in order; each by a thread of its own, because to
/// ask for a box of few rows takes longer than to fetch it.
template <class C, bool kWeights>
__device__ __forceinline__ void fp8_fetch(const Fp8Job& job, const Fp8Maps& maps, Fp8Shared<C>& shared,
                                          int first_item, int item_step) {
    if (!kWeights && !job.offsets) ptx::wait_for_predecessors();
    Ring<C::kStages> ring(0);
    for (int item = first_item; item < shared.list.num_items(); item += item_step) {
        const MoeUnit unit = shared.list.unit(item, 0);
        const int row_boxes = C::kGathers ? 0 : (unit.num_rows + C::kRowBox - 1) / C::kRowBox;
        // Boxes: gate and up; or the upper and the lower half of the tile's rows.
        const int row = unit.weight_tile * (C::kGateUp ? kFp8Block : C::kTileRows);
        const int box_step = C::kGateUp ? job.weight_rows / 2 : C::kBoxRows;
        for (int step = 0; step < job.num_steps; ++step) {
            uint64_t& full = shared.full[ring.at];
            const int k = step * kFp8Block;
            ptx::barrier_wait(shared.empty[ring.at], ring.parity ^ 1);
            if constexpr (kWeights) {
                ptx::barrier_arrive_expect(full,
                                           C::kHalves * C::kBoxBytes + row_boxes * C::kRowBox * kFp8Block);
#pragma unroll
                for (int box = 0; box < C::kHalves; ++box)
                    ptx::tma_load_3d(shared.weights[ring.at] + box * C::kBoxBytes, maps.weight, full, k,
                                     row + box * box_step, unit.expert);
            } else {
                // The last box may reach into the rows of the next expert: products that nobody stores.
                for (int box = 0; box < row_boxes; ++box)
                    ptx::tma_load_3d(shared.rows[ring.at] + box * C::kRowBox * kFp8Block, maps.rows, full, k,
                                     unit.first_row + box * C::kRowBox, 0);
            }
            ring.advance();
        }
    }
}

/// Gathers rows of x, which the copy engine cannot, and fetches scales of columns. Copies in the background:
/// a load that a thread waited for would hold up the ring at every new sector. Rows for the tensor cores to
/// read are published some steps later, when they have landed; words publish themselves.
template <class C>
__device__ __forceinline__ void fp8_feed(const Fp8Job& job, Fp8Shared<C>& shared, int first_item,
                                         int item_step, int thread) {
    constexpr int kChunks = kFp8Block / 16, kRowsPerPass = C::kFeeders / kChunks;
    constexpr int kPasses = C::kGathers ? (C::kMaxHeight + kRowsPerPass - 1) / kRowsPerPass : 0;
    constexpr int kScalePasses = (C::kMaxHeight + C::kFeeders - 1) / C::kFeeders;
    const int chunk = thread % kChunks, first = thread / kChunks;
    constexpr int kLag = C::kStages - 2;  // steps that copies have to land
    if (!job.offsets) ptx::wait_for_predecessors();
    Ring<C::kStages> ring(0);
    for (int item = first_item; item < shared.list.num_items(); item += item_step) {
        const MoeUnit unit = shared.list.unit(item, 0);
        const auto row_of = [&](int i) { return job.x_row(unit.first_row + min(i, unit.num_rows - 1)); };
        uint32_t from[kPasses + 1];  // in 16 bytes
#pragma unroll
        for (int i = 0; i < kPasses; ++i)
            from[i] = static_cast<uint32_t>(row_of(first + i * kRowsPerPass) * (job.x_stride / 16)) + chunk;
        const float* x_scale[kScalePasses];
#pragma unroll
        for (int i = 0; i < kScalePasses; ++i)
            x_scale[i] = job.x_scale + static_cast<int64_t>(row_of(thread + i * C::kFeeders)) * job.num_steps;
        const float* weight_scale = job.weight_scales<C>(unit, thread % C::kScaleSets);
        const auto publish = [&](int stage) {
            ptx::fence_async_proxy();
            ptx::barrier_arrive(shared.full[stage]);
        };
        for (int step = 0; step < job.num_steps; ++step) {
            ptx::barrier_wait(shared.empty[ring.at], ring.parity ^ 1);
            const uint32_t to = ptx::smem_address(shared.rows[ring.at]);
#pragma unroll
            for (int i = 0; i < kPasses; ++i) {
                const int row = first + i * kRowsPerPass;
                if (i * kRowsPerPass >= unit.num_rows) break;
                ptx::copy_async_16(to + row * kFp8Block + ((chunk ^ (row & 7)) * 16),
                                   job.x + static_cast<int64_t>(from[i]) * 16 + step * kFp8Block,
                                   row < unit.num_rows);
            }
#pragma unroll
            for (int i = 0; i < kScalePasses; ++i) {
                const int row = thread + i * C::kFeeders;
                if (row < unit.height)
                    ptx::copy_async_4(ptx::smem_address(shared.scale.rows[ring.at] + C::scale_place(row)),
                                      x_scale[i] + step);
            }
            if (thread < C::kScaleSets)
                ptx::copy_async_4(ptx::smem_address(shared.scale.weights[ring.at] + thread),
                                  weight_scale + step);
            if constexpr (C::kGathers) {
                ptx::commit_copies();
                ptx::wait_for_copies<kLag>();
                if (step >= kLag) publish((ring.at + C::kStages - kLag) % C::kStages);
            } else {
                ptx::barrier_arrive_after_copies(shared.full[ring.at]);
            }
            ring.advance();
        }
        if constexpr (C::kGathers) {
            ptx::wait_for_copies<0>();
            for (int i = min(kLag, job.num_steps); i > 0; --i)
                publish((ring.at + C::kStages - i) % C::kStages);
        }
    }
    ptx::wait_for_copies<0>();
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocksPerSm)
    fp8_gemm_kernel(const __grid_constant__ Fp8Job job, const __grid_constant__ Fp8Maps maps) {
    extern __shared__ uint8_t raw[];
    auto& shared = *reinterpret_cast<Fp8Shared<C>*>(raw + (1024 - ptx::smem_address(raw) % 1024) % 1024);
    const int tid = static_cast<int>(threadIdx.x);
    if (tid == 0) {
        ptx::prefetch_map(maps.weight);
        if constexpr (!C::kGathers) ptx::prefetch_map(maps.rows);
        for (int i = 0; i < C::kStages; ++i) {
            ptx::barrier_init(shared.full[i], 1 + C::kFeeders);
            ptx::barrier_init(shared.empty[i], 4 * C::kGroups);
        }
        ptx::barrier_init_done();
    }
    if (!job.offsets) {
        // A dense product knows its work without its predecessor and asks for weights at once.
        ptx::let_successors_start();
        if (tid == 0) shared.list.fill_one(job.num_rows, job.num_weight_tiles);
    } else {
        ptx::wait_for_predecessors();
        ptx::let_successors_start();
        shared.list.fill(job.offsets, job.num_experts, job.num_weight_tiles);
    }
    __syncthreads();
    const int first_item = static_cast<int>(blockIdx.x), item_step = static_cast<int>(gridDim.x);
    if (tid < 128) {
        if constexpr (C::kGroups == 2) ptx::release_registers<C::kProducerRegisters>();
        if (tid == 0) fp8_fetch<C, true>(job, maps, shared, first_item, item_step);
        if constexpr (!C::kGathers) {
            if (tid == 96) fp8_fetch<C, false>(job, maps, shared, first_item, item_step);
        }
        if (tid >= 32 && tid < 32 + C::kFeeders) fp8_feed<C>(job, shared, first_item, item_step, tid - 32);
    } else {
        if constexpr (C::kGroups == 2) ptx::take_registers<C::kConsumerRegisters>();
        fp8_consume_columns<C>(job, shared, first_item, item_step);
    }
}

template <class C>
void launch_fp8_gemm(const char* op, const Fp8Job& job, const void* weight, Stream stream) {
    const int64_t k = int64_t{job.num_steps} * kFp8Block, rows = job.weight_rows;
    // Memory is the limit: the L2 should fetch no more than a box has of a row.
    const Fp8Maps maps{
        make_tensor_map<3>(weight, {k, rows, job.num_experts}, {k, rows * k}, {kFp8Block, C::kBoxRows, 1},
                           CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_L2_PROMOTION_NONE),
        make_tensor_map<3>(job.x, {k, job.num_x_rows, 1}, {k, job.num_x_rows * k}, {kFp8Block, C::kRowBox, 1},
                           CU_TENSOR_MAP_DATA_TYPE_UINT8)};
    constexpr size_t kSmemBytes = sizeof(Fp8Shared<C>) + 1024;
    static_assert(C::kBlocksPerSm * (kSmemBytes + 1024) <= 228 * 1024);
    // The host does not know the rows per expert: at most one part-filled tile each.
    const int64_t tiles =
        std::min(job.num_rows, job.num_rows / C::kMaxHeight + std::min(job.num_experts, job.num_rows));
    const int64_t blocks = std::min(num_multiprocessors() * C::kBlocksPerSm, tiles * job.num_weight_tiles);
    LaunchChain{op, dim3(static_cast<unsigned>(blocks)), C::kThreads, kSmemBytes, stream}(fp8_gemm_kernel<C>,
                                                                                          job, maps);
}

}  // namespace mmx::cuda::sm90
