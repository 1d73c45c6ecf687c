#include <numbers>
#include <utility>

#include "cpp/kernels/attention_tile.h"
#include "cpp/kernels/launchers.h"

namespace mmx::cpu::MMX_CPU_ISA {

namespace {

// The keys of a row are summed in segments of this many positions (whole blocks), each with its own running
// softmax, and the segments are merged in ascending order. Why: a long context can then be shared out among
// threads without changing a bit of the result.
constexpr int64_t kSegmentKeys = 2048;
// Rows of one task: their queries and two sets of sums stay in the second level cache.
constexpr int64_t kTaskRows = 512;
// Rows whose queries and scores stay in the first level cache beside a strip of keys or values.
constexpr int64_t kChunkRows = 32;
// Tasks per thread below which the context is cut into segments.
constexpr int64_t kTasksPerThread = 4;

/// Running softmax of rows: weights are 2^(score - max), scores are in units of log2(e).
struct Softmax {
    float* max;  // [rows]
    float* sum;  // [rows] of the weights
    float* out;  // [rows, width] weighted values

    static int64_t size(int64_t rows, int64_t width) { return 2 * align_up(rows, kWidth) + rows * width; }

    static Softmax place(float* memory, int64_t rows) {
        const int64_t padded = align_up(rows, kWidth);
        return {memory, memory + padded, memory + 2 * padded};
    }

    void clear(int64_t rows, int64_t width) const {
        std::fill_n(max, rows, -kInfinity);
        std::fill_n(sum, rows, 0.0f);
        std::fill_n(out, rows * width, 0.0f);
    }
};

/// Turns the scores of one row and block into weights; returns the factor of what was summed before. Scores
/// of [visible, padded) do not count.
float weigh(float* scores, int64_t visible, int64_t padded, float& max, float& sum) {
    std::fill(scores + visible, scores + padded, -kInfinity);
    vf best = splat(-kInfinity);
    for (int64_t i = 0; i < padded; i += kWidth) {
        const vf x = load(scores + i);
        best = x > best ? x : best;
    }
    const float new_max = std::max(max, reduce_max(best));
    const float shift = new_max == -kInfinity ? 0.0f : new_max;  // -inf - -inf would be NaN
    const float factor = exp2_negative(max - shift);
    vf block_sum = {};
    for (int64_t i = 0; i < padded; i += kWidth) {
        const vf w = exp2_negative(load(scores + i) - shift);
        store(scores + i, w);
        block_sum += w;
    }
    max = new_max;
    sum = std::fma(sum, factor, reduce_sum(block_sum));
    return factor;
}

/// Adds the rows of `part` that saw a key to `total`.
void merge(const Softmax& total, const Softmax& part, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; ++row) {
        if (part.sum[row] == 0) continue;
        const float max = std::max(total.max[row], part.max[row]);
        const float old_factor = exp2_negative(total.max[row] - max),
                    factor = exp2_negative(part.max[row] - max);
        total.max[row] = max;
        total.sum[row] = std::fma(part.sum[row], factor, total.sum[row] * old_factor);
        for (int64_t d = row * width; d < (row + 1) * width; d += kWidth)
            store(total.out + d, fma(load(part.out + d), splat(factor), load(total.out + d) * old_factor));
    }
}

/// K and V of one block and KV head in the cache.
template <class C>
struct Page {
    const C* k;  // [num_keys, head_dim]
    const C* v;  // [num_keys, head_dim]
    int64_t num_keys;
};

/// Queries of type T, pages of type C.
template <class T, class C>
struct Attention {
    const PagedAttentionParams& p;
    const int32_t* block_ids;  // as in SparseAttentionParams, or null: every block
    int64_t topk;
    int64_t group = p.num_heads / p.num_kv_heads;
    int64_t width = align_up(p.head_dim, kStrip);
    int64_t padded_keys = align_up(p.block_size, kStrip);
    int64_t segment_blocks = std::max<int64_t>(1, kSegmentKeys / p.block_size);

    int64_t num_blocks(const TokenTile& tile) const {
        return ceil_div(tile.position + tile.num_tokens, p.block_size);
    }

    /// Calls f(block, first token, end token) for the blocks of [begin, end) that tokens of the tile see,
    /// ascending.
    template <class F>
    void for_each_block(const TokenTile& tile, int64_t kv_head, int64_t begin, int64_t end, F&& f) const {
        if (!block_ids) {
            for (int64_t block = begin; block < end; ++block)
                f(block, std::max<int64_t>(0, block * p.block_size - tile.position), tile.num_tokens);
            return;
        }
        std::vector<std::pair<int32_t, int32_t>> choices;  // (block, token)
        for (int64_t token = 0; token < tile.num_tokens; ++token)
            for (int64_t i = 0; i < topk; ++i) {
                const int32_t id = block_ids[((tile.token + token) * p.num_kv_heads + kv_head) * topk + i];
                if (id < 0) break;
                if (id >= begin && id < end) choices.emplace_back(id, static_cast<int32_t>(token));
            }
        std::sort(choices.begin(), choices.end());
        for (size_t i = 0; i < choices.size();) {
            const auto [block, first] = choices[i];
            int32_t last = first;
            while (++i < choices.size() && choices[i] == std::pair(block, last + 1)) ++last;
            f(block, first, last + 1);
        }
    }

    /// Queries of a tile and KV head as rows (token, head of the group), in units that make 2^score the
    /// weight.
    void load_queries(float* q, const TokenTile& tile, int64_t kv_head) const {
        const float k_scale = p.k_scale ? p.k_scale[kv_head] : 1.0f;
        const float factor = p.scale * std::numbers::log2e_v<float> * k_scale;
        for (int64_t row = 0; row < tile.num_tokens * group; ++row) {
            const T* src = static_cast<const T*>(p.q) + (tile.token + row / group) * p.q_token_stride +
                           (kv_head * group + row % group) * p.q_head_stride;
            for (int64_t d = 0; d < p.head_dim; ++d) q[row * width + d] = to_float(src[d]) * factor;
        }
    }

    void store(const Softmax& total, const TokenTile& tile, int64_t kv_head) const {
        const float v_scale = p.v_scale ? p.v_scale[kv_head] : 1.0f;
        for (int64_t row = 0; row < tile.num_tokens * group; ++row) {
            T* dst = static_cast<T*>(p.out) + (tile.token + row / group) * p.out_token_stride +
                     (kv_head * group + row % group) * p.out_head_stride;
            const float inverse = total.sum[row] == 0 ? 0.0f : v_scale / total.sum[row];
            for (int64_t d = 0; d < p.head_dim; ++d)
                dst[d] = from_float<T>(total.out[row * width + d] * inverse);
        }
    }

    int64_t scratch_size() const { return kChunkRows * padded_keys + kChunkRows + 2 * padded_keys * width; }

    /// Adds the tile's blocks of [begin, end) to `part`; where a segment ends, moves `part` into `total`, if
    /// given.
    void attend(const TokenTile& tile, int64_t kv_head, int64_t begin, int64_t end, const float* q,
                float* scratch, const Softmax& part, const Softmax* total) const {
        const int64_t rows = tile.num_tokens * group;
        float* keys = scratch;
        float* values = keys + padded_keys * width;
        float* work = values + padded_keys * width;
        const int32_t* table = p.block_table + tile.seq * p.block_table_stride;
        int64_t packed = -1, segment = begin / segment_blocks;
        // A block that serves one chunk of rows is packed strip by strip, which stays in the first level
        // cache.
        const bool once = rows <= kChunkRows && (!block_ids || tile.num_tokens == 1);
        part.clear(rows, width);
        for_each_block(tile, kv_head, begin, end, [&](int64_t block, int64_t first_token, int64_t end_token) {
            if (total && block / segment_blocks != segment) {
                merge(*total, part, rows, width);
                part.clear(rows, width);
                segment = block / segment_blocks;
            }
            const int64_t page = table[block], head_offset = kv_head * p.block_size * p.head_dim;
            const Page<C> source{
                .k = static_cast<const C*>(p.k_cache) + page * p.k_cache_block_stride + head_offset,
                .v = static_cast<const C*>(p.v_cache) + page * p.v_cache_block_stride + head_offset,
                // Slots past the tile's last token are never read.
                .num_keys = std::min(p.block_size, tile.position + tile.num_tokens - block * p.block_size)};
            if (!once && block != packed) {
                pack_keys(keys, source.k, source.num_keys, p.head_dim);
                for (int64_t d = 0; d < p.head_dim; d += kStrip)
                    pack_values(values + d * p.block_size, source.v + d, source.num_keys, p.head_dim,
                                p.head_dim - d);
                packed = block;
            }
            const int64_t end_row = end_token * group;
            for (int64_t row = first_token * group; row < end_row; row += kChunkRows)
                attend_rows(row, std::min(row + kChunkRows, end_row), tile.position - block * p.block_size, q,
                            once ? &source : nullptr, keys, values, work, part);
        });
        if (total) merge(*total, part, rows, width);
    }

    /// One block for rows [begin, end), packed already or, given its `source`, on the way. `offset` is the
    /// position of the tile's first token within the block.
    void attend_rows(int64_t begin, int64_t end, int64_t offset, const float* q, const Page<C>* source,
                     float* keys, float* values, float* work, const Softmax& part) const {
        float* scores = work;
        float* factors = work + kChunkRows * padded_keys;
        const auto visible = [&](int64_t row) { return std::min(p.block_size, offset + row / group + 1); };
        const int64_t most = visible(end - 1);
        for (int64_t key = 0; key < most; key += kStrip) {
            float* strip = source ? keys : keys + key * p.head_dim;
            if (source)
                pack_keys(strip, source->k + key * p.head_dim, std::min<int64_t>(kStrip, most - key),
                          p.head_dim);
            for_each_tile(begin, end, [&](int64_t row, auto n) {
                if (key < visible(row + n - 1))
                    score_tile<n>(scores + (row - begin) * padded_keys + key, padded_keys, q + row * width,
                                  width, strip, p.head_dim);
            });
        }
        for_each_tile(begin, end, [&](int64_t row, auto n) {
            const int64_t padded = align_up(visible(row + n - 1), kWidth);
            for (int64_t r = row; r < row + n; ++r)
                factors[r - begin] =
                    weigh(scores + (r - begin) * padded_keys, visible(r), padded, part.max[r], part.sum[r]);
        });
        for (int64_t d = 0; d < p.head_dim; d += kStrip) {
            float* strip = source ? values : values + d * p.block_size;
            if (source) pack_values(strip, source->v + d, most, p.head_dim, p.head_dim - d);
            for_each_tile(begin, end, [&](int64_t row, auto n) {
                value_tile<n>(part.out + row * width + d, width, factors + row - begin,
                              scores + (row - begin) * padded_keys, padded_keys, strip, visible(row + n - 1));
            });
        }
    }

    void run_whole(const TokenTile& tile, int64_t kv_head) const {
        const int64_t rows = tile.num_tokens * group, state = Softmax::size(rows, width);
        float* scratch = thread_scratch(scratch_size() + rows * width + 2 * state);
        float* q = scratch + scratch_size();
        const Softmax part = Softmax::place(q + rows * width, rows);
        const Softmax total = Softmax::place(q + rows * width + state, rows);
        load_queries(q, tile, kv_head);
        total.clear(rows, width);
        attend(tile, kv_head, 0, num_blocks(tile), q, scratch, part, &total);
        store(total, tile, kv_head);
    }

    /// Every (tile, KV head, segment) is a task of its own; a second pass merges the segments.
    void run_segments(const std::vector<TokenTile>& tiles) const {
        struct Task {
            int64_t tile, kv_head, segment, offset;
        };
        std::vector<Task> tasks;
        std::vector<size_t> first_tasks;
        int64_t size = 0;
        for (size_t i = 0; i < tiles.size(); ++i)
            for (int64_t kv_head = 0; kv_head < p.num_kv_heads; ++kv_head) {
                first_tasks.push_back(tasks.size());
                for (int64_t segment = 0; segment < ceil_div(num_blocks(tiles[i]), segment_blocks);
                     ++segment) {
                    tasks.push_back({static_cast<int64_t>(i), kv_head, segment, size});
                    size += Softmax::size(tiles[i].num_tokens * group, width);
                }
            }
        first_tasks.push_back(tasks.size());
        const Floats parts = make_floats(size);
        parallel_tasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
            const Task& task = tasks[i];
            const TokenTile& tile = tiles[task.tile];
            const int64_t rows = tile.num_tokens * group, begin = task.segment * segment_blocks;
            float* scratch = thread_scratch(scratch_size() + rows * width);
            float* q = scratch + scratch_size();
            load_queries(q, tile, task.kv_head);
            attend(tile, task.kv_head, begin, std::min(begin + segment_blocks, num_blocks(tile)), q, scratch,
                   Softmax::place(parts.get() + task.offset, rows), nullptr);
        });
        parallel_tasks(static_cast<int64_t>(first_tasks.size()) - 1, [&](int64_t i) {
            const TokenTile& tile = tiles[tasks[first_tasks[i]].tile];
            const int64_t rows = tile.num_tokens * group;
            const Softmax total = Softmax::place(thread_scratch(Softmax::size(rows, width)), rows);
            total.clear(rows, width);
            for (size_t t = first_tasks[i]; t < first_tasks[i + 1]; ++t)
                merge(total, Softmax::place(parts.get() + tasks[t].offset, rows), rows, width);
            store(total, tile, tasks[first_tasks[i]].kv_head);
        });
    }

    void run() const {
        const std::vector<TokenTile> tiles =
            token_tiles(p.cu_seqlens_q, p.seq_lens, p.num_seqs, std::max<int64_t>(1, kTaskRows / group));
        const int64_t num_tasks = static_cast<int64_t>(tiles.size()) * p.num_kv_heads;
        if (num_tasks < kTasksPerThread * omp_get_max_threads()) return run_segments(tiles);
        parallel_tasks(num_tasks,
                       [&](int64_t i) { run_whole(tiles[i / p.num_kv_heads], i % p.num_kv_heads); });
    }
};

}  // namespace

void paged_attention(const PagedAttentionParams& p, Stream stream) {
    dispatch_pages(p.dtype, p.cache_dtype,
                   [&](auto t, auto c) { Attention<decltype(t), decltype(c)>{p, nullptr, 0}.run(); });
    if (p.codes) fp8_quantize(codes_params(p), stream);
}

void sparse_attention(const SparseAttentionParams& p, Stream) {
    dispatch_pages(p.base.dtype, p.base.cache_dtype, [&](auto t, auto c) {
        Attention<decltype(t), decltype(c)>{p.base, p.block_ids, p.topk}.run();
    });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
