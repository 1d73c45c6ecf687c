#pragma once

#include "cpp/ops/backend.h"

namespace mmx::ops {

inline PagedAttentionParams paged_attention_params(Matcher& m, const Tensor& out, const Tensor& q,
                                                   const Tensor& k_cache, const Tensor& v_cache,
                                                   const Tensor& block_table, const Tensor& cu_seqlens_q,
                                                   const Tensor& seq_lens, int64_t max_seqlen_q, double scale,
                                                   const OptionalTensor& k_scale,
                                                   const OptionalTensor& v_scale, bool fixed_split) {
    m.shape("q", q, {"num_tokens", "num_heads", "head_dim"})
        .shape("out", out, {"num_tokens", "num_heads", "head_dim"})
        .shape("k_cache", k_cache, {"num_blocks", "num_kv_heads", "block_size", "head_dim"}, 3)
        .shape("v_cache", v_cache, {"num_blocks", "num_kv_heads", "block_size", "head_dim"}, 3)
        .shape("block_table", block_table, {"num_seqs", "max_blocks_per_seq"})
        .shape("seq_lens", seq_lens, {"num_seqs"})
        .shape("cu_seqlens_q", cu_seqlens_q, {m["num_seqs"] + 1});
    const DType dtype = m.dtype("q", q, kFloat);
    m.same_dtype("out", out, dtype);
    const DType cache_dtype = m.dtype("k_cache", k_cache, {dtype, DType::kE4M3});
    m.same_dtype("v_cache", v_cache, cache_dtype);
    check_page_scales(m, k_scale, v_scale, cache_dtype);
    m.same_dtype("block_table", block_table, DType::kI32);
    m.same_dtype("cu_seqlens_q", cu_seqlens_q, DType::kI32);
    m.same_dtype("seq_lens", seq_lens, DType::kI32);
    m.require(m["num_kv_heads"] > 0 && m["num_heads"] % m["num_kv_heads"] == 0, "num_heads=", m["num_heads"],
              " must be a multiple of num_kv_heads=", m["num_kv_heads"]);
    return {
        .out = ptr(out),
        .q = ptr(q),
        .k_cache = ptr(k_cache),
        .v_cache = ptr(v_cache),
        .block_table = ptr<int32_t>(block_table),
        .cu_seqlens_q = ptr<int32_t>(cu_seqlens_q),
        .seq_lens = ptr<int32_t>(seq_lens),
        .workspace = nullptr,
        .workspace_bytes = 0,
        .num_tokens = m["num_tokens"],
        .num_seqs = m["num_seqs"],
        .num_heads = m["num_heads"],
        .num_kv_heads = m["num_kv_heads"],
        .head_dim = m["head_dim"],
        .num_blocks = m["num_blocks"],
        .block_size = m["block_size"],
        .max_blocks_per_seq = m["max_blocks_per_seq"],
        .max_seqlen_q = max_seqlen_q,
        .out_token_stride = out.stride(0),
        .out_head_stride = out.stride(1),
        .q_token_stride = q.stride(0),
        .q_head_stride = q.stride(1),
        .k_cache_block_stride = k_cache.stride(0),
        .v_cache_block_stride = v_cache.stride(0),
        .block_table_stride = block_table.stride(0),
        .k_scale = ptr<float>(k_scale),
        .v_scale = ptr<float>(v_scale),
        .scale = static_cast<float>(scale),
        .dtype = dtype,
        .cache_dtype = cache_dtype,
        .fixed_split = fixed_split,
        .codes = nullptr,
        .codes_scale = nullptr,
    };
}

template <class B>
int64_t paged_attention_workspace(const Tensor& out, const Tensor& q, const Tensor& k_cache,
                                  const Tensor& v_cache, const Tensor& block_table,
                                  const Tensor& cu_seqlens_q, const Tensor& seq_lens, int64_t max_seqlen_q,
                                  double scale, const OptionalTensor& k_scale, const OptionalTensor& v_scale,
                                  bool fixed_split, const OptionalTensor&, const OptionalTensor&) {
    Matcher m("paged_attention");
    const PagedAttentionParams p =
        paged_attention_params(m, out, q, k_cache, v_cache, block_table, cu_seqlens_q, seq_lens, max_seqlen_q,
                               scale, k_scale, v_scale, fixed_split);
    return p.num_tokens == 0 ? 0 : B::paged_attention_workspace(p);
}

template <class B>
void paged_attention(const Tensor& out, const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                     const Tensor& block_table, const Tensor& cu_seqlens_q, const Tensor& seq_lens,
                     const Tensor& workspace, int64_t max_seqlen_q, double scale,
                     const OptionalTensor& k_scale, const OptionalTensor& v_scale, bool fixed_split,
                     const OptionalTensor& codes, const OptionalTensor& codes_scale) {
    Matcher m("paged_attention");
    PagedAttentionParams p =
        paged_attention_params(m, out, q, k_cache, v_cache, block_table, cu_seqlens_q, seq_lens, max_seqlen_q,
                               scale, k_scale, v_scale, fixed_split);
    m.require(codes.has_value() == codes_scale.has_value(), "codes and codes_scale must be given together");
    if (codes) {
        const int64_t width = p.num_heads * p.head_dim;
        m.require(width % kFp8Group == 0 && p.out_head_stride == p.head_dim,
                  "codes need heads side by side, 128 columns a scale, got ", width, " columns, heads ",
                  p.out_head_stride, " apart");
        m.shape("codes", *codes, {"num_tokens", width}, 2)
            .shape("codes_scale", *codes_scale, {"num_tokens", width / kFp8Group}, 2);
        m.same_dtype("codes", *codes, DType::kE4M3);
        m.same_dtype("codes_scale", *codes_scale, DType::kF32);
        p.codes = ptr(*codes);
        p.codes_scale = ptr<float>(*codes_scale);
    }
    if (p.num_tokens == 0) return;
    set_workspace(m, p, workspace, B::paged_attention_workspace(p));
    B::enqueue(m.device_index(), &B::paged_attention, p);
}

inline SparseAttentionParams sparse_attention_params(Matcher& m, const Tensor& out, const Tensor& q,
                                                     const Tensor& k_cache, const Tensor& v_cache,
                                                     const Tensor& block_ids, const Tensor& block_table,
                                                     const Tensor& cu_seqlens_q, const Tensor& seq_lens,
                                                     int64_t max_seqlen_q, double scale,
                                                     const OptionalTensor& k_scale,
                                                     const OptionalTensor& v_scale, bool fixed_split) {
    const PagedAttentionParams base =
        paged_attention_params(m, out, q, k_cache, v_cache, block_table, cu_seqlens_q, seq_lens, max_seqlen_q,
                               scale, k_scale, v_scale, fixed_split);
    m.shape("block_ids", block_ids, {"num_tokens", "num_kv_heads", "topk"}, 3);
    m.same_dtype("block_ids", block_ids, DType::kI32);
    return {.base = base, .block_ids = ptr<int32_t>(block_ids), .topk = m["topk"]};
}

template <class B>
int64_t sparse_attention_workspace(const Tensor& out, const Tensor& q, const Tensor& k_cache,
                                   const Tensor& v_cache, const Tensor& block_ids, const Tensor& block_table,
                                   const Tensor& cu_seqlens_q, const Tensor& seq_lens, int64_t max_seqlen_q,
                                   double scale, const OptionalTensor& k_scale, const OptionalTensor& v_scale,
                                   bool fixed_split) {
    Matcher m("sparse_attention");
    const SparseAttentionParams p =
        sparse_attention_params(m, out, q, k_cache, v_cache, block_ids, block_table, cu_seqlens_q, seq_lens,
                                max_seqlen_q, scale, k_scale, v_scale, fixed_split);
    return p.base.num_tokens == 0 ? 0 : B::sparse_attention_workspace(p);
}

template <class B>
void sparse_attention(const Tensor& out, const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                      const Tensor& block_ids, const Tensor& block_table, const Tensor& cu_seqlens_q,
                      const Tensor& seq_lens, const Tensor& workspace, int64_t max_seqlen_q, double scale,
                      const OptionalTensor& k_scale, const OptionalTensor& v_scale, bool fixed_split) {
    Matcher m("sparse_attention");
    SparseAttentionParams p =
        sparse_attention_params(m, out, q, k_cache, v_cache, block_ids, block_table, cu_seqlens_q, seq_lens,
                                max_seqlen_q, scale, k_scale, v_scale, fixed_split);
    if (p.base.num_tokens == 0) return;
    set_workspace(m, p.base, workspace, B::sparse_attention_workspace(p));
    B::enqueue(m.device_index(), &B::sparse_attention, p);
}

}  // namespace mmx::ops
