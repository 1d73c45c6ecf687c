#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "bench/common/bench.h"
#include "cpp/core/math.h"

namespace mmx::bench {

/// A batch of equal sequences over a paged cache whose pages lie in random order.
struct PagedBatch {
    int64_t num_seqs, q_len, seq_len, block_size;
    int64_t blocks_per_seq = ceil_div(seq_len, block_size);
    int64_t num_blocks = num_seqs * blocks_per_seq;
    int64_t num_tokens = num_seqs * q_len;
    Buffer block_table, cu_seqlens_q, seq_lens;

    PagedBatch(Bench& b, const Case& c)
        : num_seqs(c["num_seqs"]),
          q_len(c["q_len"]),
          seq_len(c["seq_len"]),
          block_size(c["block_size"]),
          block_table(b.upload(pages())),
          cu_seqlens_q(b.upload(bounds())),
          seq_lens(b.upload(std::vector<int32_t>(num_seqs, static_cast<int32_t>(seq_len)))) {}

    int64_t first_position() const { return seq_len - q_len; }

    /// Ascending random choices like the selector's: [num_tokens, num_heads, topk], the token's own block
    /// among them, -1 at the tail. `num_keys` becomes the number of (token, key) pairs of one head.
    std::vector<int32_t> random_blocks(int64_t num_heads, int64_t topk, double* num_keys) const {
        std::mt19937 rng(2);
        std::vector<int32_t> ids;
        *num_keys = 0;
        for (int64_t token = 0; token < num_tokens; ++token) {
            const int64_t position = first_position() + token % q_len, own = position / block_size;
            const int64_t kept = std::min(own, topk - 1);
            *num_keys += static_cast<double>(kept * block_size + position % block_size + 1);
            for (int64_t head = 0; head < num_heads; ++head) {
                std::vector<int32_t> earlier(own);
                for (int64_t i = 0; i < own; ++i) earlier[i] = static_cast<int32_t>(i);
                std::shuffle(earlier.begin(), earlier.end(), rng);
                std::sort(earlier.begin(), earlier.begin() + kept);
                ids.insert(ids.end(), earlier.begin(), earlier.begin() + kept);
                ids.push_back(static_cast<int32_t>(own));
                ids.insert(ids.end(), topk - kept - 1, -1);
            }
        }
        return ids;
    }

  private:
    std::vector<int32_t> pages() const {
        std::vector<int32_t> pages(num_blocks);
        for (int64_t i = 0; i < num_blocks; ++i) pages[i] = static_cast<int32_t>(i);
        std::shuffle(pages.begin(), pages.end(), std::mt19937(1));
        return pages;
    }
    std::vector<int32_t> bounds() const {
        std::vector<int32_t> bounds;
        for (int64_t i = 0; i <= num_seqs; ++i) bounds.push_back(static_cast<int32_t>(i * q_len));
        return bounds;
    }
};

}  // namespace mmx::bench
