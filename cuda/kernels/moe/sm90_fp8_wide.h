#pragma once

#include "cpp/core/stream.h"

namespace mmx::cuda::sm90 {

struct Fp8Job;

/// Products that are bound by the tensor cores: rows of x are the first operand, in units of 64, and 256
/// weight rows the second. Dense where job.offsets is null. job.num_weight_tiles is set here.
void fp8_wide(const char* op, Fp8Job job, const void* weight, Stream stream);

/// The same of gate and up, which bring the rows of x into plan order in the workspace
/// (fp8_gate_up_workspace_bytes) as they go.
void fp8_gate_up_wide(const char* op, Fp8Job job, const void* weight, void* workspace, Stream stream);

}  // namespace mmx::cuda::sm90
