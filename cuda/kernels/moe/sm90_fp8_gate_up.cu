#include "cuda/kernels/moe/choose_fp8.h"
#include "cuda/kernels/moe/sm90_fp8.cuh"
#include "cuda/kernels/moe/sm90_fp8.h"

namespace mmx::cuda::sm90 {

namespace {

template <class C>
void launch(const Fp8MoeGateUpParams& p, Stream stream) {
    const int64_t steps = p.hidden / kFp8Block, tiles = p.inter / kFp8Block;
    const Fp8Job job{.x = static_cast<const uint8_t*>(p.x),
                     .x_scale = p.x_scale,
                     .weight_scale = p.weight_scale,
                     .offsets = p.expert_offsets,
                     .sorted_rows = p.sorted_rows,
                     .out = p.out,
                     .out_scale = p.out_scale,
                     .x_stride = p.hidden,
                     .out_stride = p.inter,
                     .num_experts = static_cast<int>(p.num_local_experts),
                     .num_rows = static_cast<int>(p.num_tokens * p.topk),
                     .num_x_rows = static_cast<int>(p.num_tokens),
                     .topk = static_cast<int>(p.topk),
                     .num_steps = static_cast<int>(steps),
                     .scale_rows = static_cast<int>(2 * tiles),
                     .weight_rows = static_cast<int>(2 * p.inter),
                     .num_weight_tiles = static_cast<int>(tiles),
                     .activation = p.activation,
                     .alpha = p.alpha,
                     .limit = p.limit};
    launch_fp8_gemm<C>("fp8_moe_gate_up", job, p.weight, stream);
}

void launch(Fp8Tile tile, const Fp8MoeGateUpParams& p, Stream stream) {
    if (tile == Fp8Tile::k256x32) return launch<Fp8Config<true, false, 256, 32, 5>>(p, stream);
    launch<Fp8Config<true, false, 256, 128, 4, true>>(p, stream);
}

}  // namespace

void fp8_moe_gate_up(const Fp8MoeGateUpParams& p, Stream stream) {
    launch(choose_fp8_tile(p.num_tokens * p.topk, p.num_local_experts, 2 * p.inter), p, stream);
}

}  // namespace mmx::cuda::sm90
