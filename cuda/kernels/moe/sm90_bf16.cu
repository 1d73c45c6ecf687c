#include "cuda/kernels/moe/sm90_bf16.cuh"

#include "cuda/kernels/moe/sm90.h"

namespace mmx::cuda::sm90 {

namespace {

template <bool kGateUp>
void launch(const char* op, const Bf16Job& job, const void* weight, int64_t k, int64_t num_rows,
            Stream stream) {
    switch (choose_bf16_tile(num_rows, job.num_experts)) {
        case MoeBf16Tile::k64x32:
            return launch_bf16<Bf16Tile<1, 1, 32, 8, 1, 1, 2>, kGateUp>(op, job, weight, k, num_rows, stream);
        case MoeBf16Tile::k128x64:
            return launch_bf16<Bf16Tile<2, 1, 64, 8, 1, 1, 1>, kGateUp>(op, job, weight, k, num_rows, stream);
        case MoeBf16Tile::k256x160:
            return launch_bf16<Bf16Tile<2, 2, 160, 4, 1, 1, 1>, kGateUp>(op, job, weight, k, num_rows, stream);
        case MoeBf16Tile::k256x160Cluster:
            return launch_bf16<Bf16Tile<2, 2, 160, 4, 1, 2, 1>, kGateUp>(op, job, weight, k, num_rows, stream);
    }
}

}  // namespace

void moe_gate_up_bf16(const MoeGateUpParams& p, Stream stream) {
    launch<true>("moe_gate_up",
                 {.x = static_cast<const bf16*>(p.x),
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
                  .limit = p.limit},
                 p.weight, p.hidden, p.num_tokens * p.topk, stream);
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
                  p.weight, p.inter, p.num_rows, stream);
}

}  // namespace mmx::cuda::sm90
