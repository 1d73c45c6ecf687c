#pragma once

#include "cpp/core/params/fp8.h"
#include "cpp/core/stream.h"

/// Products of e4m3 rows and weights for Hopper: sizes as sm90_fp8_fits, pointers 16-byte aligned.
namespace mmx::cuda::sm90 {

void fp8_moe_gate_up(const Fp8MoeGateUpParams& p, Stream stream);
void fp8_moe_down(const Fp8MoeDownParams& p, Stream stream);
void fp8_linear(const Fp8LinearParams& p, Stream stream);

}  // namespace mmx::cuda::sm90
