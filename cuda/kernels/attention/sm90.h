#pragma once

#include "cpp/core/params/attention.h"
#include "cpp/core/stream.h"

/// Attention kernels for Hopper: bf16, head_dim 128, pages of 128 tokens, at most 16 query heads per KV head.
namespace mmx::cuda::sm90 {

void sparse_decode(const SparseAttentionParams& p, Stream stream);
/// Of sparse_decode: where thread blocks have few pages (few_pages), and under fixed_split.
void sparse_decode_few(const SparseAttentionParams& p, int64_t splits, Stream stream);
void sparse_decode_fixed(const SparseAttentionParams& p, Stream stream);
void sparse_prefill(const SparseAttentionParams& p, Stream stream);
void paged_decode(const PagedAttentionParams& p, Stream stream);
void paged_prefill(const PagedAttentionParams& p, Stream stream);

}  // namespace mmx::cuda::sm90
