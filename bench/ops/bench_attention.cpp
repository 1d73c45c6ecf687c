#include <cmath>
#include <optional>

#include "bench/common/paged.h"

using namespace mmx;

namespace {

/// Queries, caches and output of one case.
struct Inputs {
    bench::PagedBatch batch;
    int64_t num_heads, num_kv_heads, head_dim;
    bench::Buffer q, k, v, out;
    std::optional<bench::Buffer> scales;  // of pages whose elements are not the queries' type

    Inputs(bench::Bench& b, const bench::Case& c, DType dtype, DType pages)
        : batch(b, c),
          num_heads(c["num_heads"]),
          num_kv_heads(c["num_kv_heads"]),
          head_dim(c["head_dim"]),
          q(b.randn(dtype, batch.num_tokens * num_heads * head_dim)),
          k(b.randn(pages, batch.num_blocks * page_size())),
          v(b.randn(pages, batch.num_blocks * page_size())),
          out(b.empty(dtype, batch.num_tokens * num_heads * head_dim)) {
        if (pages != dtype) scales.emplace(b.upload(std::vector(static_cast<size_t>(num_kv_heads), 1.0f)));
    }

    int64_t page_size() const { return num_kv_heads * batch.block_size * head_dim; }

    PagedAttentionParams params(DType dtype, DType pages) const {
        return {.out = out.as(),
                .q = q.as(),
                .k_cache = k.as(),
                .v_cache = v.as(),
                .block_table = batch.block_table.as<int32_t>(),
                .cu_seqlens_q = batch.cu_seqlens_q.as<int32_t>(),
                .seq_lens = batch.seq_lens.as<int32_t>(),
                .workspace = nullptr,
                .workspace_bytes = 0,
                .num_tokens = batch.num_tokens,
                .num_seqs = batch.num_seqs,
                .num_heads = num_heads,
                .num_kv_heads = num_kv_heads,
                .head_dim = head_dim,
                .num_blocks = batch.num_blocks,
                .block_size = batch.block_size,
                .max_blocks_per_seq = batch.blocks_per_seq,
                .max_seqlen_q = batch.q_len,
                .out_token_stride = num_heads * head_dim,
                .out_head_stride = head_dim,
                .q_token_stride = num_heads * head_dim,
                .q_head_stride = head_dim,
                .k_cache_block_stride = page_size(),
                .v_cache_block_stride = page_size(),
                .block_table_stride = batch.blocks_per_seq,
                .k_scale = scales ? scales->as<float>() : nullptr,
                .v_scale = scales ? scales->as<float>() : nullptr,
                .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
                .dtype = dtype,
                .cache_dtype = pages,
                .fixed_split = false,
                .codes = nullptr,
                .codes_scale = nullptr};
    }

    /// `num_keys`: pairs of query token and key of one head; `kv_bytes`: what must be read of the caches.
    bench::Work work(bench::Bench& b, double num_keys, double kv_bytes) const {
        bench::Work work{.bytes = kv_bytes + static_cast<double>(q.bytes() + out.bytes()),
                         .flops = 4.0 * num_keys * static_cast<double>(num_heads * head_dim),
                         .math = DType::kF32,
                         .out = &out};
        if (batch.q_len == 1) {
            work.baseline = "copy of K";
            work.baseline_run = [this, &b] { b.backend().copy(v.as(), k.as(), k.bytes()); };
        }
        return work;
    }
};

}  // namespace

MMX_BENCH(paged_attention) {
    for (const bench::Case& c : b.cases("attention", "paged_attention"))
        for (const auto& [dtype, pages] : bench::page_types(b)) {
            const Inputs in(b, c, dtype, pages);
            PagedAttentionParams p = in.params(dtype, pages);
            p.workspace_bytes = b.ops().paged_attention_workspace ? b.ops().paged_attention_workspace(p) : 0;
            const bench::Buffer workspace = b.empty(DType::kI8, std::max<int64_t>(1, p.workspace_bytes));
            p.workspace = p.workspace_bytes ? workspace.as() : nullptr;
            const auto& batch = in.batch;
            const double num_keys =
                static_cast<double>(batch.num_tokens) * static_cast<double>(batch.seq_len) -
                static_cast<double>(batch.num_tokens * (batch.q_len - 1)) / 2;
            const double kv_bytes = static_cast<double>(in.k.bytes() + in.v.bytes());
            b.run("paged_attention", c, pages, in.work(b, num_keys, kv_bytes), b.ops().paged_attention, p);
        }
}

MMX_BENCH(sparse_attention) {
    for (const bench::Case& c : b.cases("attention", "sparse_attention"))
        for (const auto& [dtype, pages] : bench::page_types(b)) {
            const Inputs in(b, c, dtype, pages);
            const int64_t topk = c["topk"];
            double num_keys = 0;
            const bench::Buffer ids = b.upload(
                in.batch.random_blocks(in.num_kv_heads, topk, c.has("shared") ? c["shared"] : 0, &num_keys));
            SparseAttentionParams p{
                .base = in.params(dtype, pages), .block_ids = ids.as<int32_t>(), .topk = topk};
            PagedAttentionParams& base = p.base;
            base.workspace_bytes =
                b.ops().sparse_attention_workspace ? b.ops().sparse_attention_workspace(p) : 0;
            const bench::Buffer workspace = b.empty(DType::kI8, std::max<int64_t>(1, base.workspace_bytes));
            base.workspace = base.workspace_bytes ? workspace.as() : nullptr;
            // Every page that a token chose is read once; with many tokens that is every page.
            const double num_pages = std::min(static_cast<double>(in.batch.num_blocks),
                                              num_keys / static_cast<double>(in.batch.block_size));
            const double kv_bytes =
                2.0 * num_pages * static_cast<double>(in.page_size() * dtype_bytes(pages));
            b.run("sparse_attention", c, pages, in.work(b, num_keys, kv_bytes), b.ops().sparse_attention, p);
        }
}
