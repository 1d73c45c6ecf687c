#include <functional>

#include "cpp/kernels/attention_tile.h"

namespace mmx::cpu::MMX_CPU_ISA {

namespace {

constexpr int64_t kTaskRows = 256;      // rows that share a packed block
constexpr int64_t kTaskBlocks = 16;     // blocks of a task where the context is shared out
constexpr int64_t kTasksPerThread = 4;  // below this the context is shared out

/// Blocks as numbers that sort best first in descending order: forced, then score, then lower id.
uint64_t rank_key(float score, int64_t block, bool forced) {
    return static_cast<uint64_t>(forced) << 63 | static_cast<uint64_t>(order_key(score)) << 31 |
           (0x7FFFFFFFu - static_cast<uint32_t>(block));
}

/// Queries of type T, pages of type C.
template <class T, class C>
struct Selector {
    const SelectBlocksParams& p;
    int64_t width = align_up(p.index_dim, kStrip);

    int64_t num_visible(const TokenTile& tile, int64_t token) const {
        return (tile.position + token) / p.block_size + 1;
    }
    int64_t num_blocks(const TokenTile& tile) const { return num_visible(tile, tile.num_tokens - 1); }

    /// First token of the tile that must choose; the ones before it take all they see.
    int64_t first_choosing(const TokenTile& tile) const {
        return std::clamp<int64_t>(p.topk * p.block_size - tile.position, 0, tile.num_tokens);
    }

    int64_t scratch_size(int64_t rows) const { return rows * width + kStrip * (width + kTileRows); }

    /// scores[token, head, block] of the blocks [begin, end) for tokens from `first` on; stride `num_blocks`.
    void score(float* scores, const TokenTile& tile, int64_t first, int64_t begin, int64_t end,
               float* scratch) const {
        const int64_t heads = p.num_index_heads, stride = num_blocks(tile);
        const int64_t rows = tile.num_tokens * heads;
        float* q = scratch;
        float* keys = q + rows * width;
        float* products = keys + kStrip * width;
        for (int64_t row = first * heads; row < rows; ++row) {
            const T* src = static_cast<const T*>(p.index_q) +
                           (tile.token + row / heads) * p.index_q_token_stride +
                           row % heads * p.index_q_head_stride;
            for (int64_t d = 0; d < p.index_dim; ++d) q[row * width + d] = to_float(src[d]);
        }
        const int32_t* table = p.block_table + tile.seq * p.block_table_stride;
        for (int64_t block = begin; block < end; ++block) {
            const int64_t offset =
                tile.position - block * p.block_size;  // of the first token within the block
            const auto visible = [&](int64_t row) {
                return std::min(p.block_size, offset + row / heads + 1);
            };
            const C* page = static_cast<const C*>(p.index_k_cache) + table[block] * p.cache_block_stride;
            const int64_t first_row = std::max(first, -offset) * heads, most = visible(rows - 1);
            for (int64_t row = first_row; row < rows; ++row) scores[row * stride + block] = -kInfinity;
            for (int64_t key = 0; key < most; key += kStrip) {
                pack_keys(keys, page + key * p.index_dim, std::min<int64_t>(kStrip, most - key), p.index_dim);
                for_each_tile(first_row, rows, [&](int64_t row, auto n) {
                    if (key >= visible(row + n - 1)) return;
                    score_tile<n>(products, kStrip, q + row * width, width, keys, p.index_dim);
                    for (int64_t r = 0; r < n; ++r) {
                        float& score = scores[(row + r) * stride + block];
                        score = std::max(score, max_of(products + r * kStrip, visible(row + r) - key));
                    }
                });
            }
        }
    }

    /// Largest of the first n of kStrip products. NaN never wins a comparison, so it counts as -inf.
    static float max_of(float* x, int64_t n) {
        if (n < kStrip) std::fill(x + std::max<int64_t>(n, 0), x + kStrip, -kInfinity);
        vf best = splat(-kInfinity);
        for (int64_t i = 0; i < kStrip; i += kWidth) {
            const vf v = load(x + i);
            best = v > best ? v : best;
        }
        return reduce_max(best);
    }

    /// Writes the ids of one row; `scores` [visible blocks], or null where all of them are kept.
    void choose(int32_t* ids, const float* scores, int64_t visible, std::vector<uint64_t>& keys) const {
        const int64_t kept = std::min(visible, p.topk);
        if (!scores) {
            for (int64_t i = 0; i < kept; ++i) ids[i] = static_cast<int32_t>(i);
        } else {
            keys.resize(static_cast<size_t>(visible));
            for (int64_t block = 0; block < visible; ++block)
                keys[block] = rank_key(scores[block], block,
                                       block < p.init_blocks || block >= visible - p.local_blocks);
            std::nth_element(keys.begin(), keys.begin() + kept - 1, keys.end(), std::greater<uint64_t>());
            for (int64_t i = 0; i < kept; ++i)
                ids[i] = static_cast<int32_t>(0x7FFFFFFFu - (keys[i] & 0x7FFFFFFFu));
            std::sort(ids, ids + kept);
        }
        std::fill(ids + kept, ids + p.topk, -1);
    }

    void choose_tile(const float* scores, const TokenTile& tile, int64_t first) const {
        std::vector<uint64_t> keys;
        const int64_t heads = p.num_index_heads, stride = num_blocks(tile);
        for (int64_t row = 0; row < tile.num_tokens * heads; ++row)
            choose(p.block_ids + (tile.token * heads + row) * p.topk,
                   row / heads < first ? nullptr : scores + row * stride, num_visible(tile, row / heads),
                   keys);
    }

    void run_whole(const TokenTile& tile) const {
        const int64_t first = first_choosing(tile), rows = tile.num_tokens * p.num_index_heads;
        float* scratch = nullptr;
        float* scores = nullptr;
        if (first < tile.num_tokens) {
            scratch = thread_scratch(scratch_size(rows) + rows * num_blocks(tile));
            scores = scratch + scratch_size(rows);
            score(scores, tile, first, 0, num_blocks(tile), scratch);
        }
        choose_tile(scores, tile, first);
    }

    /// Every (tile, range of blocks) is a task of its own; a second pass chooses.
    void run_ranges(const std::vector<TokenTile>& tiles) const {
        struct Task {
            size_t tile;
            int64_t begin;
        };
        std::vector<Task> tasks;
        std::vector<int64_t> offsets;
        int64_t size = 0;
        for (size_t i = 0; i < tiles.size(); ++i) {
            offsets.push_back(size);
            if (first_choosing(tiles[i]) == tiles[i].num_tokens) continue;
            size += tiles[i].num_tokens * p.num_index_heads * num_blocks(tiles[i]);
            for (int64_t begin = 0; begin < num_blocks(tiles[i]); begin += kTaskBlocks)
                tasks.push_back({i, begin});
        }
        const Floats scores = make_floats(size);
        parallel_tasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
            const TokenTile& tile = tiles[tasks[i].tile];
            const int64_t begin = tasks[i].begin;
            score(scores.get() + offsets[tasks[i].tile], tile, first_choosing(tile), begin,
                  std::min(begin + kTaskBlocks, num_blocks(tile)),
                  thread_scratch(scratch_size(tile.num_tokens * p.num_index_heads)));
        });
        parallel_tasks(static_cast<int64_t>(tiles.size()), [&](int64_t i) {
            choose_tile(scores.get() + offsets[i], tiles[i], first_choosing(tiles[i]));
        });
    }

    void run() const {
        const std::vector<TokenTile> tiles = token_tiles(p.cu_seqlens_q, p.seq_lens, p.num_seqs,
                                                         std::max<int64_t>(1, kTaskRows / p.num_index_heads));
        const int64_t num_tiles = static_cast<int64_t>(tiles.size());
        if (num_tiles < kTasksPerThread * omp_get_max_threads()) return run_ranges(tiles);
        parallel_tasks(num_tiles, [&](int64_t i) { run_whole(tiles[i]); });
    }
};

}  // namespace

void select_blocks(const SelectBlocksParams& p, Stream) {
    dispatch_pages(p.dtype, p.cache_dtype,
                   [&](auto t, auto c) { Selector<decltype(t), decltype(c)>{p}.run(); });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
