#pragma once

#include "cpp/core/params/gemm.h"
#include "cpp/core/stream.h"

namespace mmx::cuda::sm90 {

/// Projections that are bound by reading the weights, for Hopper. Sizes as `sm90_linear_fits` says, x and
/// weight 16-byte aligned. Sums run over k in the same order whatever m.
void linear_bf16(const LinearParams& p, Stream stream);

}  // namespace mmx::cuda::sm90
