#pragma once

#include <cstdint>

namespace mmx::cuda {

/// Where a query token stands.
struct TokenPlace {
    int64_t seq;       // -1 for a token behind the last sequence (padding of a captured graph)
    int64_t position;  // in its sequence
};

__device__ __forceinline__ TokenPlace place_of(int64_t token, const int32_t* cu_seqlens_q,
                                               const int32_t* seq_lens, int64_t num_seqs) {
    if (num_seqs == 0 || token >= cu_seqlens_q[num_seqs]) return {-1, 0};
    // The last sequence that begins at or before the token: empty ones that begin there too come before it.
    int64_t low = 0, high = num_seqs - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (cu_seqlens_q[middle] <= token)
            low = middle;
        else
            high = middle - 1;
    }
    return {low, seq_lens[low] - cu_seqlens_q[low + 1] + token};
}

}  // namespace mmx::cuda
