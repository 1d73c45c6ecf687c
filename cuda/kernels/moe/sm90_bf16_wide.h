#pragma once

#include <cstdint>

#include "cpp/core/stream.h"

namespace mmx::cuda::sm90 {

struct Bf16Job;

/// For hundreds of rows per expert: tiles of 128 weight rows x all rows of an expert where they are at most
/// kMoeWideHeight, so that weights come from memory once and two thread blocks share the rows. Gate and up
/// bring the rows of x into plan order in the workspace (bf16_copied_bytes) as they go; down needs
/// bf16_ticket_bytes. job.num_chunks and job.num_weight_tiles are set here.
void moe_gate_up_wide(Bf16Job job, const void* weight, int64_t k, int64_t num_rows, void* workspace,
                      Stream stream);
void moe_down_wide(const Bf16Job& job, const void* weight, int64_t k, int64_t num_rows, void* workspace,
                   Stream stream);

}  // namespace mmx::cuda::sm90
