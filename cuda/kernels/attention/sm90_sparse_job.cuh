#pragma once

#include "cpp/core/stream.h"
#include "cuda/kernels/attention/choose.h"

namespace mmx::cuda::sm90 {

/// Everything that the kernels of one sparse prefill share.
struct SparseJob {
    SparseAttentionParams p;
    PrefillPlan plan;

    template <class T>
    __host__ __device__ __forceinline__ T* at(int64_t offset) const {
        return reinterpret_cast<T*>(static_cast<char*>(p.base.workspace) + offset);
    }
    /// Whether a row tile does the token.
    __device__ __forceinline__ bool in_union(int token, int head) const {
        const int group = token / static_cast<int>(kListedTokens);
        return plan.unions &&
               at<int>(plan.union_sizes)[group * static_cast<int>(p.base.num_kv_heads) + head] != 0;
    }
};

inline constexpr int kEntryTokenShift = 6;
static_assert(kDecodeMaxTopk <= 1 << kEntryTokenShift);

/// An entry of a bucket's list; `rank`: the block's place in the token's own list.
__device__ __forceinline__ int entry_of(int token, int rank) { return token << kEntryTokenShift | rank; }

/// An item of `num_tiles` row tiles that attend to a sequence's block.
__device__ __forceinline__ PrefillItem make_item(const PagedAttentionParams& p, int seq, int block, int head,
                                                 int first_tile, int num_tiles) {
    const int page_size = static_cast<int>(p.block_size), seq_len = p.seq_lens[seq];
    return {p.block_table[seq * p.block_table_stride + block], first_tile,
            block * page_size - (seq_len - p.cu_seqlens_q[seq + 1]),
            static_cast<uint16_t>(num_tiles | head << 8),
            static_cast<uint16_t>(min(page_size, seq_len - block * page_size))};
}

/// Lists row tiles of neighbours that chose much the same blocks, and for the other tokens the items: which
/// queries chose each block.
void list_choices(const SparseJob& job, Stream stream);

}  // namespace mmx::cuda::sm90
