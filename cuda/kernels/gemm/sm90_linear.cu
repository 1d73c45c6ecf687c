#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/ptx/wgmma_n.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/gemm/choose.h"
#include "cuda/kernels/gemm/sm90.h"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kChunk = 64;     // of k: 128 bytes, the width of a box
constexpr int kThreads = 160;  // a warpgroup that multiplies, then a warp that feeds it
constexpr int kStages = LinearPlan::kMaxStages;

struct LinearJob {
    void* out;  // [m, n], rows of out_stride
    int64_t out_stride;
    int m, n, num_chunks, num_tiles, tile_rows, weight_bytes, stage_bytes, stages;
    bool is_out_f32;
};

struct Barriers {
    uint64_t full[kStages], empty[kStages];
};

struct Ring {
    int stage = 0, parity = 0;
    __device__ __forceinline__ void advance(int stages) {
        if (++stage == stages) stage = 0, parity ^= 1;
    }
};

__device__ __forceinline__ int first_row(const LinearJob& job, int tile) {
    return static_cast<int>(static_cast<int64_t>(job.n) * tile / job.num_tiles);
}

/// One thread. Weights of the whole ring are asked for before the predecessor has ended, x after.
template <int kColumns>
__device__ __forceinline__ void produce(const LinearJob& job, const CUtensorMap& weight, const CUtensorMap& x,
                                        char* stages, Barriers& barriers) {
    const int tiles = (job.num_tiles - 1 - static_cast<int>(blockIdx.x)) / static_cast<int>(gridDim.x) + 1;
    const int total = tiles * job.num_chunks, ahead = min(total, job.stages);
    const int bytes = job.tile_rows * 128 + kColumns * 128, token = static_cast<int>(blockIdx.y) * kColumns;
    struct Place {
        int tile, chunk, row;  // first weight row of the tile
    };
    const auto next = [&](Place& p) {
        if (++p.chunk < job.num_chunks) return;
        p.chunk = 0;
        p.tile += static_cast<int>(gridDim.x);
        p.row = first_row(job, p.tile);
    };
    const auto load_weight = [&](const Place& p, int stage) {
        ptx::barrier_arrive_expect(barriers.full[stage], bytes);
        ptx::tma_load_3d(stages + stage * job.stage_bytes, weight, barriers.full[stage], p.chunk * kChunk,
                         p.row, 0, ptx::kEvictFirst);
    };
    const auto load_x = [&](const Place& p, int stage) {
        ptx::tma_load_3d(stages + stage * job.stage_bytes + job.weight_bytes, x, barriers.full[stage],
                         p.chunk * kChunk, token, 0);
    };
    Place place{static_cast<int>(blockIdx.x), 0, first_row(job, static_cast<int>(blockIdx.x))}, early = place;
    for (int i = 0; i < ahead; ++i, next(early)) load_weight(early, i);
    ptx::wait_for_predecessors();
    for (int i = 0; i < ahead; ++i, next(place)) load_x(place, i);
    Ring ring;
    for (int i = ahead; i < total; ++i, next(place)) {
        ptx::barrier_wait(barriers.empty[ring.stage], ring.parity);
        load_weight(place, ring.stage);
        load_x(place, ring.stage);
        ring.advance(job.stages);
    }
}

template <int kParts, int kColumns>
__device__ __forceinline__ void store(const LinearJob& job, int tile,
                                      const float (&acc)[kParts][kColumns / 2]) {
    const int tid = static_cast<int>(threadIdx.x), g = tid % 32 / 4, t = tid % 4;
    const int begin = first_row(job, tile), end = first_row(job, tile + 1);
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
        for (int i = 0; i < kColumns / 2; ++i) {
            const int row = begin + part * 64 + tid / 32 * 16 + g + i % 4 / 2 * 8;
            const int token = static_cast<int>(blockIdx.y) * kColumns + i / 4 * 8 + 2 * t + i % 2;
            if (row >= end || token >= job.m) continue;
            const int64_t at = token * job.out_stride + row;
            if (job.is_out_f32)
                static_cast<float*>(job.out)[at] = acc[part][i];
            else
                static_cast<bf16*>(job.out)[at] = __float2bfloat16_rn(acc[part][i]);
        }
}

/// Tensor cores cut off what they add, always towards zero: sums over kRun chunks are added by rounding
/// additions instead, which keeps the error of long sums near that of fp32.
template <int kParts, int kColumns>
__device__ __forceinline__ void multiply(const LinearJob& job, const char* stages, Barriers& barriers) {
    constexpr int kRun = 8;
    const bool is_lane0 = threadIdx.x % 32 == 0;
    Ring ring;
    for (int tile = static_cast<int>(blockIdx.x); tile < job.num_tiles; tile += static_cast<int>(gridDim.x)) {
        float total[kParts][kColumns / 2] = {};
        for (int begin = 0; begin < job.num_chunks; begin += kRun) {
            const int count = min(kRun, job.num_chunks - begin);
            float acc[kParts][kColumns / 2];
            int previous = 0;
            for (int chunk = 0; chunk < count; ++chunk) {
                ptx::barrier_wait(barriers.full[ring.stage], ring.parity);
                const uint32_t at = ptx::smem_address(stages + ring.stage * job.stage_bytes);
                const uint64_t weight = ptx::wgmma_operand(at), x = ptx::wgmma_operand(at + job.weight_bytes);
                ptx::wgmma_begin();
#pragma unroll
                for (int step = 0; step < 4; ++step)
#pragma unroll
                    for (int part = 0; part < kParts; ++part)
                        ptx::Wgmma<kColumns>::bf16(acc[part], weight + ((part * 64 * 128 + step * 32) >> 4),
                                                   x + (step * 32 >> 4), chunk + step > 0);
                ptx::wgmma_commit();
                ptx::wgmma_wait<1>();
                if (chunk > 0 && is_lane0) ptx::barrier_arrive(barriers.empty[previous]);
                previous = ring.stage;
                ring.advance(job.stages);
            }
            ptx::wgmma_wait<0>();
            if (is_lane0) ptx::barrier_arrive(barriers.empty[previous]);
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
                ptx::keep_registers(acc[part]);
#pragma unroll
                for (int i = 0; i < kColumns / 2; ++i) total[part][i] += acc[part][i];
            }
        }
        store<kParts, kColumns>(job, tile, total);
    }
}

/// D[m, n] = A[m, k] . B[n, k]^T. Weights are the first operand, read in runs of kParts x 64 rows: those
/// behind a tile's last one are whatever lies in shared memory, and their results are not kept.
template <int kParts, int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    linear_kernel(const __grid_constant__ LinearJob job, const __grid_constant__ CUtensorMap weight,
                  const __grid_constant__ CUtensorMap x) {
    extern __shared__ char raw[];
    __shared__ Barriers barriers;
    char* stages = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
    if (threadIdx.x == 0) {
        for (int i = 0; i < job.stages; ++i) {
            ptx::barrier_init(barriers.full[i], 1);
            ptx::barrier_init(barriers.empty[i], 4);
        }
        ptx::barrier_init_done();
    }
    __syncthreads();
    ptx::let_successors_start();
    if (threadIdx.x >= 128) {
        if (threadIdx.x == 128) produce<kColumns>(job, weight, x, stages, barriers);
    } else {
        ptx::wait_for_predecessors();
        multiply<kParts, kColumns>(job, stages, barriers);
    }
}

template <int kParts, int kColumns>
void launch(const LinearParams& p, const LinearPlan& plan, int64_t blocks, Stream stream) {
    const LinearJob job{.out = p.out,
                        .out_stride = p.out_stride,
                        .m = static_cast<int>(p.m),
                        .n = static_cast<int>(p.n),
                        .num_chunks = static_cast<int>(p.k / kChunk),
                        .num_tiles = static_cast<int>(plan.num_tiles),
                        .tile_rows = static_cast<int>(plan.tile_rows),
                        .weight_bytes = static_cast<int>(plan.weight_bytes),
                        .stage_bytes = static_cast<int>(plan.stage_bytes()),
                        .stages = static_cast<int>(plan.stages),
                        .is_out_f32 = p.out_dtype == DType::kF32};
    const CUtensorMap weight =
        make_tensor_map<3>(p.weight, {p.k, p.n, 1}, {p.k, p.k * p.n}, {kChunk, plan.tile_rows, 1},
                           CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_L2_PROMOTION_NONE);
    const CUtensorMap x =
        make_tensor_map<3>(p.x, {p.k, p.m, 1}, {p.x_stride, p.x_stride * p.m}, {kChunk, kColumns, 1});
    const size_t smem_bytes =
        static_cast<size_t>(plan.stages * plan.stage_bytes() + kParts * 64 * 128 + 1024);
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(ceil_div(p.m, int64_t{kColumns})));
    LaunchChain{"linear", grid, kThreads, smem_bytes, stream}(linear_kernel<kParts, kColumns>, job, weight,
                                                              x);
}

template <int kColumns>
void launch(const LinearParams& p, const LinearPlan& plan, int64_t blocks, Stream stream) {
    return plan.tile_rows <= 64 ? launch<1, kColumns>(p, plan, blocks, stream)
                                : launch<2, kColumns>(p, plan, blocks, stream);
}

}  // namespace

void linear_bf16(const LinearParams& p, Stream stream) {
    const int64_t multiprocessors = num_multiprocessors();
    const LinearPlan plan = make_linear_plan(p.m, p.n, multiprocessors);
    const int64_t blocks = std::min(multiprocessors, plan.num_tiles);
    switch (plan.columns) {
        case 8: return launch<8>(p, plan, blocks, stream);
        case 16: return launch<16>(p, plan, blocks, stream);
        case 32: return launch<32>(p, plan, blocks, stream);
        default: return launch<64>(p, plan, blocks, stream);
    }
}

}  // namespace mmx::cuda::sm90
