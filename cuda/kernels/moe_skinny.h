#pragma once

#include "cpp/core/params/moe.h"
#include "cpp/core/stream.h"

/// Grouped GEMMs for few rows per expert, bound by reading the weights of the experts that were hit: bf16
/// rows, e4m3 weights. A row's result does not depend on the other rows.
namespace mmx::cuda {

bool is_skinny(const MoeGateUpParams& p);
bool is_skinny(const MoeDownParams& p);
void moe_gate_up_skinny(const MoeGateUpParams& p, Stream stream);
void moe_down_skinny(const MoeDownParams& p, Stream stream);

}  // namespace mmx::cuda
