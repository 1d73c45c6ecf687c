#pragma once

#include "cuda/common/paged.cuh"
#include "cuda/common/reduce.cuh"

namespace mmx::cuda {

/// What is stored of a sequence: its query tokens, from `begin` to `end`, and its length.
struct SeqLens {
    int begin, end, len;
    bool operator==(const SeqLens&) const = default;
};

/// Behind the wait for predecessors: warps that ask for the same find it in the L1.
__device__ __forceinline__ SeqLens read_lens(const int32_t* cu_seqlens_q, const int32_t* seq_lens, int seq) {
    return {cu_seqlens_q[seq], cu_seqlens_q[seq + 1], seq_lens[seq]};
}

/// Past the L1, for blocks that also look at lengths before their predecessors are done.
__device__ __forceinline__ SeqLens peek_lens(const int32_t* cu_seqlens_q, const int32_t* seq_lens, int seq) {
    return {__ldcg(cu_seqlens_q + seq), __ldcg(cu_seqlens_q + seq + 1), __ldcg(seq_lens + seq)};
}

/// `place_of` by one whole warp, for kernels that wait for it: the loads of a decode batch do not depend on
/// each other, other batches need one more round.
__device__ __forceinline__ TokenPlace warp_place_of(int token, const int32_t* cu_seqlens_q,
                                                    const int32_t* seq_lens, int num_seqs) {
    if (token < num_seqs) {
        const int begin = cu_seqlens_q[token], end = cu_seqlens_q[token + 1], seq_len = seq_lens[token];
        if (begin == token && end == token + 1) return {token, seq_len - 1};
    }
    int ended = 0;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x % 32); i < num_seqs; i += 32)
        ended += cu_seqlens_q[i + 1] <= token;
    const int seq = __reduce_add_sync(kFull, ended);
    if (seq == num_seqs) return {-1, 0};
    return {seq, static_cast<int64_t>(seq_lens[seq]) - cu_seqlens_q[seq + 1] + token};
}

}  // namespace mmx::cuda
