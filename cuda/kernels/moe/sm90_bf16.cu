#include "cuda/kernels/moe/sm90_bf16.cuh"

#include "cuda/kernels/moe/sm90.h"
#include "cuda/kernels/moe/sm90_bf16_wide.h"

namespace mmx::cuda::sm90 {

namespace {

using FewTile = Bf16Tile<1, 1, kMoeFewRows, 6, 1, 3>;
using DecodeTile = Bf16Tile<1, 1, 32, 8, 1, 2>;
using MiddleTile = Bf16Tile<2, 2, 96, 5, 1, 1>;
using LargeTile = Bf16Tile<2, 2, 160, 4, 2, 1, 32>;

constexpr int kCopyThreads = 256;

/// out[m] = x[sorted_rows[m] / topk], 16 bytes a thread, for the rows of local experts.
__global__ void __launch_bounds__(kCopyThreads)
    copy_rows_kernel(const __grid_constant__ Bf16Job job, bf16* out, int hidden) {
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int m = static_cast<int>(blockIdx.x);
    if (m >= job.offsets[job.num_experts]) return;
    const uint4* from = reinterpret_cast<const uint4*>(job.x + job.sorted_rows[m] / job.topk * job.x_stride);
    uint4* to = reinterpret_cast<uint4*>(out + static_cast<int64_t>(m) * hidden);
    for (int i = static_cast<int>(threadIdx.x); i < hidden / 8; i += kCopyThreads) to[i] = from[i];
}

template <bool kGateUp>
void launch(const char* op, const Bf16Job& job, const void* weight, int64_t k, int64_t num_rows,
            void* workspace, Stream stream) {
    switch (choose_bf16_tile(num_rows, job.num_experts)) {
        case MoeBf16Tile::k64x8:
            return launch_bf16<FewTile, kGateUp, kGateUp>(op, job, weight, k, num_rows, stream);
        case MoeBf16Tile::k64x32:
            return launch_bf16<DecodeTile, kGateUp, kGateUp>(op, job, weight, k, num_rows, stream);
        case MoeBf16Tile::k256x160Cluster:
            if constexpr (!kGateUp)
                return launch_bf16<LargeTile, false>(op, job, weight, k, num_rows, stream);
            break;
        case MoeBf16Tile::k128x304Cluster:
            if constexpr (!kGateUp) return moe_down_wide(job, weight, k, num_rows, workspace, stream);
            break;
        case MoeBf16Tile::k256x96: break;
    }
    // Also so many rows that a copy of them would be too large: they are gathered on the way.
    launch_bf16<MiddleTile, kGateUp, kGateUp>(op, job, weight, k, num_rows, stream);
}

/// Gate and up from a copy of x in plan order.
void launch_copied(const MoeGateUpParams& p, Bf16Job job, Stream stream) {
    const int64_t num_rows = p.num_tokens * p.topk;
    if (choose_bf16_tile(num_rows, job.num_experts) == MoeBf16Tile::k128x304Cluster)
        return moe_gate_up_wide(job, p.weight, p.hidden, num_rows, p.workspace, stream);
    bf16* copy = reinterpret_cast<bf16*>(static_cast<char*>(p.workspace) + kMoeCountBytes);
    LaunchChain{"moe_gate_up", dim3(static_cast<unsigned>(num_rows)), kCopyThreads, 0, stream}(
        copy_rows_kernel, job, copy, static_cast<int>(p.hidden));
    job.x = copy;
    job.x_stride = p.hidden;
    launch_bf16<LargeTile, true, false>("moe_gate_up", job, p.weight, p.hidden, num_rows, stream);
}

}  // namespace

void moe_gate_up_bf16(const MoeGateUpParams& p, Stream stream) {
    const Bf16Job job{.x = static_cast<const bf16*>(p.x),
                      .sorted_rows = p.sorted_rows,
                      .offsets = p.expert_offsets,
                      .out = static_cast<bf16*>(p.out),
                      .x_stride = p.x_stride,
                      .n = p.inter,
                      .topk = static_cast<int>(p.topk),
                      .num_experts = static_cast<int>(p.num_local_experts),
                      .num_chunks = 0,
                      .num_weight_tiles = 0,
                      .activation = p.activation,
                      .alpha = p.alpha,
                      .limit = p.limit};
    if (bf16_copied_bytes(p) > 0)
        launch_copied(p, job, stream);
    else
        launch<true>("moe_gate_up", job, p.weight, p.hidden, p.num_tokens * p.topk, nullptr, stream);
}

void moe_down_bf16(const MoeDownParams& p, Stream stream) {
    launch<false>("moe_down",
                  {.x = static_cast<const bf16*>(p.x),
                   .sorted_rows = nullptr,
                   .offsets = p.expert_offsets,
                   .out = static_cast<bf16*>(p.out),
                   .x_stride = p.inter,
                   .n = p.hidden,
                   .topk = 1,
                   .num_experts = static_cast<int>(p.num_local_experts),
                   .num_chunks = 0,
                   .num_weight_tiles = 0,
                   .activation = Activation::kSilu,
                   .alpha = 0,
                   .limit = 0},
                  p.weight, p.inter, p.num_rows, p.workspace, stream);
}

}  // namespace mmx::cuda::sm90
