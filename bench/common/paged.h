#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "bench/common/bench.h"
#include "cpp/core/math.h"

namespace mmx::bench {

/// Types of queries and of the pages they read; a line of the output names the latter.
inline std::vector<std::pair<DType, DType>> page_types(const Bench& b) {
    std::vector<std::pair<DType, DType>> types;
    for (const DType dtype : b.dtypes()) types.emplace_back(dtype, dtype);
    types.emplace_back(DType::kBF16, DType::kE4M3);
    return types;
}

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
    /// among them, -1 at the tail. With `shared` > 0 each aligned group of eight tokens draws from that many
    /// blocks. `num_keys` becomes the number of (token, key) pairs of one head.
    std::vector<int32_t> random_blocks(int64_t num_heads, int64_t topk, int64_t shared,
                                       double* num_keys) const {
        constexpr int64_t kGroup = 8;
        std::mt19937 rng(2);
        std::vector<int32_t> ids(num_tokens * num_heads * topk, -1);
        std::vector<std::vector<int32_t>> pools(num_heads);
        *num_keys = 0;
        for (int64_t token = 0; token < num_tokens; ++token) {
            const int64_t position = first_position() + token % q_len, own = position / block_size;
            const int64_t kept = std::min({own, topk - 1, shared > 0 ? shared - 1 : own});
            *num_keys += static_cast<double>(kept * block_size + position % block_size + 1);
            for (int64_t head = 0; head < num_heads; ++head) {
                std::vector<int32_t>& pool = pools[head];
                const bool own_changes = token % q_len == 0 || position % block_size == 0;
                if (shared > 0 ? token % kGroup == 0 : own_changes) {
                    pool.resize(own);
                    std::iota(pool.begin(), pool.end(), 0);
                    if (shared > 0) pool.resize(draw(pool, shared - 1, rng));
                }
                int32_t* chosen = ids.data() + (token * num_heads + head) * topk;
                std::copy_n(pool.begin(), draw(pool, kept, rng), chosen);
                std::sort(chosen, chosen + kept);
                chosen[kept] = static_cast<int32_t>(own);
            }
        }
        return ids;
    }

  private:
    /// Moves `count` random elements to the front, fewer if there are fewer; returns how many.
    static int64_t draw(std::vector<int32_t>& pool, int64_t count, std::mt19937& rng) {
        count = std::min(count, std::ssize(pool));
        for (int64_t i = 0; i < count; ++i)
            std::swap(pool[i],
                      pool[i + static_cast<int64_t>(rng() % static_cast<uint64_t>(std::ssize(pool) - i))]);
        return count;
    }
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
