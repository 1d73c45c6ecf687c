#pragma once

#include "cpp/core/params/moe.h"
#include "cpp/core/stream.h"
#include "cuda/kernels/moe/choose.h"

/// Grouped GEMMs for Hopper. Weights are the first operand of the products and rows of x the second, so that
/// a tile may have any multiple of 8 rows; sums run over k in ascending order whatever the tile. Sizes as
/// `sm90_bf16_fits` says, pointers 16-byte aligned.
namespace mmx::cuda::sm90 {

void moe_gate_up_bf16(const MoeGateUpParams& p, Stream stream);
void moe_down_bf16(const MoeDownParams& p, Stream stream);

/// The router in two steps; sizes as `sm90_router_fits` says, pointers 16-byte aligned. First its gate on
/// tensor cores, as exact as fp32: sums of x . gate_weight^T over parts of k, [plan.num_sums, num_tokens,
/// num_experts]. An infinity in x makes scores NaN where one of them has to be added to another.
void router_sums(const MoeRouterParams& p, const RouterPlan& plan, Stream stream);
void router_sums_few(const MoeRouterParams& p, float* sums, Stream stream);  // where plan.few says so

/// Where in the workspace they are.
inline float* router_sums_of(const MoeRouterParams& p, const RouterPlan& plan) {
    return reinterpret_cast<float*>(static_cast<char*>(p.workspace) + plan.sums);
}

/// Then the choice, on request with the expert plan, where `router_plans` says so.
void router_choose(const MoeRouterParams& p, const float* sums, int num_sums, Stream stream);
void router_choose_plan(const MoeRouterParams& p, const MoePlanParams& plan, const float* sums,
                        Stream stream);

}  // namespace mmx::cuda::sm90
