#pragma once

#include "cpp/core/params/fp8.h"
#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/ptx/multicast.cuh"
#include "cuda/common/ptx/store.cuh"
#include "cuda/common/ptx/wgmma_n.cuh"
#include "cuda/common/ring.cuh"
#include "cuda/common/types.cuh"
#include "cuda/kernels/moe/work_list.cuh"

/// Tiles of the grouped GEMM of e4m3 rows with e4m3 weights, and what a thread block keeps of one in shared
/// memory.
namespace mmx::cuda::sm90 {

inline constexpr int kFp8Block = 128;  // of k per scale; bytes of a row of a stage
inline constexpr int kFp8Half = 64;    // rows of one product

struct Fp8Job {
    const uint8_t* x;            // rows of x_stride bytes
    const float* x_scale;        // rows of num_steps
    const float* weight_scale;   // [num_experts, scale_rows, num_steps]
    const int32_t* offsets;      // [num_experts + 1]; or null, one expert with num_rows rows
    const int32_t* sorted_rows;  // row m is x[sorted_rows[m] / topk]; or null, x[m]
    void* out;                   // gate and up: e4m3 [.., inter]; else bf16 rows of out_stride
    float* out_scale;            // gate and up: [.., inter / 128]
    int64_t x_stride, out_stride;
    int num_experts, num_rows, num_x_rows, topk, num_steps, scale_rows, weight_rows, num_weight_tiles;
    Activation activation;  // these three for gate and up only
    float alpha, limit;

    __device__ __forceinline__ int x_row(int m) const { return sorted_rows ? sorted_rows[m] / topk : m; }

    /// Scales along k of the tile's weight block number i: of gate and up these two, else blocks in order.
    template <class C>
    __device__ __forceinline__ const float* weight_scales(const MoeUnit& unit, int i) const {
        const int block = C::kGateUp ? unit.weight_tile + i * (scale_rows / 2)
                                     : unit.weight_tile * C::kTileRows / kFp8Block + i;
        return weight_scale +
               (static_cast<int64_t>(unit.expert) * scale_rows + min(block, scale_rows - 1)) * num_steps;
    }
};

struct Fp8Maps {
    CUtensorMap weight, rows;
};

/// Tiles of kTileRows weight rows (256; not gate and up: 64) x at most kMaxHeight rows. Weights are the first
/// operand of the products, 128 rows per warpgroup in halves of 64 (of gate and up 64 rows each, which meet
/// in one thread).
template <bool kGateUp_, int kTileRows_, int kMaxHeight_, int kStages_>
struct Fp8Config {
    static constexpr bool kGateUp = kGateUp_;
    static constexpr int kTileRows = kTileRows_, kMaxHeight = kMaxHeight_, kStages = kStages_;
    static constexpr int kGroups = kTileRows == 256 ? 2 : 1, kHalves = kGroups;
    static_assert(!kGateUp || kTileRows == 256, "a tile is the 128 channels that share a scale");
    static constexpr int kThreads = 128 * (1 + kGroups), kBlocksPerSm = kGroups == 2 ? 1 : 2;
    static constexpr int kBoxRows = kTileRows / kHalves;  // a stage has kHalves boxes of weight rows
    static constexpr int kBoxBytes = kBoxRows * kFp8Block;
    // Rows of x are gathered by threads, or come by box. Few boxes: to ask for one takes 80 clocks.
    static constexpr bool kGathers = kGateUp;
    static constexpr int kRowBox = kMaxHeight == 32 ? 8 : 32;
    // Threads that gather rows of x and that fetch scales, all without waiting for either.
    static constexpr int kFeeders = kGathers ? 96 : kMaxHeight > 32 ? 64 : 32;
    static constexpr int kProducerRegisters = kGathers ? 56 : 40, kConsumerRegisters = kGathers ? 224 : 232;
    // Output passes through shared memory, 16 bytes more per row than needed keep it free of bank conflicts:
    // transposed, by blocks or warpgroups.
    static constexpr int kChannels = kGateUp ? kTileRows / 2 : kTileRows / kGroups;
    static constexpr int kStagedRow = kChannels * (kGateUp ? 1 : 2) + 16;
    static constexpr int kStagedRows = kGateUp ? kMaxHeight : kGroups * 32;
    // Blocks of weights with a scale of their own: gate and up, or each group's. Scales of rows that are
    // columns lie as a thread of the products wants them: those of its columns 8j + 2t, + 1 in a run.
    static constexpr int kScaleSets = kGateUp ? 2 : kGroups;
    static constexpr int kScaleRun = kMaxHeight / 4 + 4;
    __host__ __device__ static constexpr int scale_place(int row) {
        return row % 8 / 2 * kScaleRun + row / 8 * 2 + row % 2;
    }
    using List = MoeWorkList<kMaxHeight, 1>;
};

/// Scales of columns, and the largest magnitudes of a result that is quantised.
template <class C>
struct Fp8ColumnScales {
    alignas(16) float rows[C::kStages][4 * C::kScaleRun];
    float weights[C::kStages][2];
    float amax[C::kGateUp ? 4 * C::kGroups : 1][C::kMaxHeight];
    float factor[C::kMaxHeight];
};
template <class C>
struct Fp8Shared {
    alignas(1024) uint8_t weights[C::kStages][C::kTileRows * kFp8Block];
    alignas(1024) uint8_t rows[C::kStages][C::kMaxHeight * kFp8Block];
    alignas(16) uint8_t staged[C::kStagedRows * C::kStagedRow];
    Fp8ColumnScales<C> scale;
    uint64_t full[C::kStages], empty[C::kStages];
    typename C::List list;
};

/// Gives back a stage that this warp has read, to all who write it.
template <class C>
__device__ __forceinline__ void fp8_release(Fp8Shared<C>& shared, int stage) {
    const int lane_idx = static_cast<int>(threadIdx.x) % 32;
    __syncwarp();  // all lanes have read their scales
    if (lane_idx == 0) ptx::barrier_arrive(shared.empty[stage]);
}

__device__ __forceinline__ float quick_sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

/// gate = act(gate, up). Few instructions and no calls: this code runs once per tile, straight from the L2.
template <int kSize>
__device__ __forceinline__ void fp8_activate(const Fp8Job& job, float (&gates)[kSize],
                                             const float (&ups)[kSize]) {
    if (job.activation == Activation::kSilu) {
#pragma unroll
        for (int i = 0; i < kSize; ++i) gates[i] = gates[i] * ups[i] * quick_sigmoid(gates[i]);
    } else {
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
            const float gate = gates[i] > job.limit ? job.limit : gates[i];
            float up = ups[i] > job.limit ? job.limit : ups[i];
            up = up < -job.limit ? -job.limit : up;
            gates[i] = gate * quick_sigmoid(job.alpha * gate) * (up + 1.0f);
        }
    }
}

}  // namespace mmx::cuda::sm90
