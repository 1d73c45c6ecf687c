#pragma once

#include "cpp/ops/peers.h"

namespace mmx::ops {

template <class B>
void norm_rope_store(const Tensor& qkv, const Tensor& k_cache, const Tensor& v_cache,
                     const OptionalTensor& index_k_cache, const Tensor& q_weight, const Tensor& k_weight,
                     const OptionalTensor& index_q_weight, const OptionalTensor& index_k_weight,
                     const Tensor& cos_sin, const Tensor& positions, const Tensor& slot_mapping,
                     int64_t num_heads, double eps, bool gemma, const OptionalTensor& k_scale,
                     const OptionalTensor& v_scale, const OptionalTensor& mean_squares) {
    Matcher m("norm_rope_store");
    m.shape("k_cache", k_cache, {"num_blocks", "num_kv_heads", "block_size", "head_dim"}, 3)
        .shape("v_cache", v_cache, {"num_blocks", "num_kv_heads", "block_size", "head_dim"}, 3)
        .shape("qkv", qkv, {"num_tokens", "heads", "head_dim"}, 2)
        .shape("cos_sin", cos_sin, {"max_positions", "rotary_dim"}, 2)
        .shape("positions", positions, {"num_tokens"})
        .shape("slot_mapping", slot_mapping, {"num_tokens"});
    const DType dtype = m.dtype("qkv", qkv, kFloat), weight_dtype = m.dtype("q_weight", q_weight, kFloat);
    const DType cache_dtype = m.dtype("k_cache", k_cache, {dtype, DType::kE4M3});
    m.same_dtype("v_cache", v_cache, cache_dtype);
    m.same_dtype("k_weight", k_weight, weight_dtype);
    m.same_dtype("cos_sin", cos_sin, DType::kF32);
    m.same_dtype("positions", positions, DType::kI64);
    m.same_dtype("slot_mapping", slot_mapping, DType::kI64);
    m.require(m["rotary_dim"] % 2 == 0 && m["rotary_dim"] <= m["head_dim"],
              "rotary_dim must be even and at most head_dim=", m["head_dim"], ", got ", m["rotary_dim"]);
    check_page_scales(m, k_scale, v_scale, cache_dtype);

    const bool has_index = index_k_cache.has_value();
    const bool whole = mean_squares.has_value() || q_weight.numel() != m["head_dim"];
    m.require(index_q_weight.has_value() == has_index && index_k_weight.has_value() == has_index,
              "index_k_cache, index_q_weight and index_k_weight must be given together");
    if (has_index) {
        m.shape("index_k_cache", *index_k_cache, {"num_blocks", "block_size", "head_dim"}, 2)
            .shape("index_q_weight", *index_q_weight, {"head_dim"})
            .shape("index_k_weight", *index_k_weight, {"head_dim"});
        m.same_dtype("index_q_weight", *index_q_weight, weight_dtype);
        m.same_dtype("index_k_weight", *index_k_weight, weight_dtype);
    }
    const int64_t num_index_heads = m["heads"] - num_heads - 2 * m["num_kv_heads"] - has_index;
    m.require(num_heads > 0 && (has_index ? num_index_heads > 0 : num_index_heads == 0), "qkv must have ",
              num_heads, " + 2 * ", m["num_kv_heads"], " heads", has_index ? " and index heads" : "",
              ", got ", m["heads"]);
    m.shape("q_weight", q_weight, {whole ? num_heads * m["head_dim"] : m["head_dim"]})
        .shape("k_weight", k_weight, {whole ? m["num_kv_heads"] * m["head_dim"] : m["head_dim"]});
    if (mean_squares) {
        m.shape("mean_squares", *mean_squares, {"num_tokens", 2}, 2);
        m.same_dtype("mean_squares", *mean_squares, DType::kF32);
    }
    const NormRopeStoreParams p{
        .qkv = ptr(qkv),
        .k_cache = ptr(k_cache),
        .v_cache = ptr(v_cache),
        .index_k_cache = ptr(index_k_cache),
        .q_weight = ptr(q_weight),
        .k_weight = ptr(k_weight),
        .index_q_weight = ptr(index_q_weight),
        .index_k_weight = ptr(index_k_weight),
        .cos_sin = ptr<float>(cos_sin),
        .positions = ptr<int64_t>(positions),
        .slot_mapping = ptr<int64_t>(slot_mapping),
        .k_scale = ptr<float>(k_scale),
        .v_scale = ptr<float>(v_scale),
        .mean_squares = ptr<float>(mean_squares),
        .num_tokens = m["num_tokens"],
        .num_heads = num_heads,
        .num_kv_heads = m["num_kv_heads"],
        .num_index_heads = num_index_heads,
        .head_dim = m["head_dim"],
        .rotary_dim = m["rotary_dim"],
        .max_positions = m["max_positions"],
        .num_blocks = m["num_blocks"],
        .block_size = m["block_size"],
        .qkv_stride = qkv.stride(0),
        .k_cache_block_stride = k_cache.stride(0),
        .v_cache_block_stride = v_cache.stride(0),
        .index_k_cache_block_stride = has_index ? index_k_cache->stride(0) : 0,
        .eps = static_cast<float>(eps),
        .gemma = gemma,
        .norm_whole_projection = whole,
        .dtype = dtype,
        .weight_dtype = weight_dtype,
        .cache_dtype = cache_dtype,
        .index_cache_dtype =
            has_index ? m.dtype("index_k_cache", *index_k_cache, {dtype, DType::kE4M3}) : cache_dtype,
    };
    if (p.num_tokens == 0) return;
    B::enqueue(m.device_index(), &B::norm_rope_store, p);
}

template <class B>
void qk_mean_squares(const Tensor& out, const Tensor& qkv, int64_t num_heads, int64_t num_kv_heads,
                     int64_t num_parts, const std::vector<Tensor>& inboxes, const OptionalTensor& epochs,
                     int64_t rank, double timeout) {
    Matcher m("qk_mean_squares");
    m.shape("qkv", qkv, {"num_tokens", "heads", "head_dim"}, 2).shape("out", out, {"num_tokens", 2}, 2);
    m.same_dtype("out", out, DType::kF32);
    m.require(num_heads > 0 && num_kv_heads > 0 && num_heads + num_kv_heads <= m["heads"], "qkv must have ",
              num_heads, " + ", num_kv_heads, " heads or more, got ", m["heads"]);
    m.require(num_parts > 0, "num_parts must be positive, got ", num_parts);
    const QkMeanSquaresParams p{
        .out = ptr<float>(out),
        .qkv = ptr(qkv),
        .peers = to_peers(m, inboxes, epochs, rank, timeout, m["num_tokens"], 2),
        .num_tokens = m["num_tokens"],
        .num_heads = num_heads,
        .num_kv_heads = num_kv_heads,
        .head_dim = m["head_dim"],
        .qkv_stride = qkv.stride(0),
        .num_parts = num_parts,
        .dtype = m.dtype("qkv", qkv, kFloat),
    };
    if (p.num_tokens == 0) return;
    B::enqueue(m.device_index(), &B::qk_mean_squares, p);
}

}  // namespace mmx::ops
