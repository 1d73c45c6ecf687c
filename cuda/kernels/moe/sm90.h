#pragma once

#include "cpp/core/params/moe.h"
#include "cpp/core/stream.h"

/// Grouped GEMMs for Hopper. Weights are the first operand of the products and rows of x the second, so that
/// a tile may have any multiple of 8 rows; sums run over k in ascending order whatever the tile. Sizes as
/// `sm90_bf16_fits` says, pointers 16-byte aligned.
namespace mmx::cuda::sm90 {

void moe_gate_up_bf16(const MoeGateUpParams& p, Stream stream);
void moe_down_bf16(const MoeDownParams& p, Stream stream);

/// The router with its gate on tensor cores, as exact as fp32; sizes as `sm90_router_fits` says, pointers
/// 16-byte aligned. An infinity in x makes scores NaN where one of them has to be added to another.
void moe_router(const MoeRouterParams& p, Stream stream);

}  // namespace mmx::cuda::sm90
