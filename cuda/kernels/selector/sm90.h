#pragma once

#include "cpp/core/params/selector.h"
#include "cpp/core/stream.h"

/// Selector kernels for Hopper: bf16 queries, pages of bf16 or e4m3, index_dim 128, pages of 128 tokens.
/// First the best score of each block goes to the workspace, fp32 [num_tokens * num_index_heads,
/// select_score_stride], or lists of the best blocks of each stretch of pages (SelectLists); then a second
/// kernel ranks. Blocks from a token's own one on are never scored: its own block is always forced.
namespace mmx::cuda::sm90 {

void select_decode_scores(const SelectBlocksParams& p, Stream stream);
void select_prefill_scores(const SelectBlocksParams& p, Stream stream);
void select_prefill_lists(const SelectBlocksParams& p, Stream stream);
void select_topk(const SelectBlocksParams& p, Stream stream);
void select_topk_of_lists(const SelectBlocksParams& p, Stream stream);

}  // namespace mmx::cuda::sm90
