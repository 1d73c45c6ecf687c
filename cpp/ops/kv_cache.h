#pragma once

#include "cpp/ops/backend.h"

namespace mmx::ops {

template <class B>
void kv_store(const Tensor& k_cache, const Tensor& v_cache, const Tensor& k, const Tensor& v,
              const Tensor& slot_mapping, const OptionalTensor& k_scale, const OptionalTensor& v_scale) {
    Matcher m("kv_store");
    m.shape("k", k, {"num_tokens", "num_kv_heads", "head_dim"})
        .shape("v", v, {"num_tokens", "num_kv_heads", "head_dim"})
        .shape("k_cache", k_cache, {"num_blocks", "num_kv_heads", "block_size", "head_dim"}, 3)
        .shape("v_cache", v_cache, {"num_blocks", "num_kv_heads", "block_size", "head_dim"}, 3)
        .shape("slot_mapping", slot_mapping, {"num_tokens"});
    const DType dtype = m.dtype("k", k, kFloat);
    m.same_dtype("v", v, dtype);
    const DType cache_dtype = m.dtype("k_cache", k_cache, {dtype, DType::kE4M3});
    m.same_dtype("v_cache", v_cache, cache_dtype);
    m.same_dtype("slot_mapping", slot_mapping, DType::kI64);
    check_page_scales(m, k_scale, v_scale, cache_dtype);
    const KvStoreParams p{
        .k_cache = ptr(k_cache),
        .v_cache = ptr(v_cache),
        .k = ptr(k),
        .v = ptr(v),
        .slot_mapping = ptr<int64_t>(slot_mapping),
        .k_scale = ptr<float>(k_scale),
        .v_scale = ptr<float>(v_scale),
        .num_tokens = m["num_tokens"],
        .num_kv_heads = m["num_kv_heads"],
        .head_dim = m["head_dim"],
        .num_blocks = m["num_blocks"],
        .block_size = m["block_size"],
        .k_token_stride = k.stride(0),
        .k_head_stride = k.stride(1),
        .v_token_stride = v.stride(0),
        .v_head_stride = v.stride(1),
        .k_cache_block_stride = k_cache.stride(0),
        .v_cache_block_stride = v_cache.stride(0),
        .dtype = dtype,
        .cache_dtype = cache_dtype,
    };
    if (p.num_tokens == 0) return;
    B::enqueue(m.device_index(), &B::kv_store, p);
}

template <class B>
void index_k_store(const Tensor& index_k_cache, const Tensor& index_k, const Tensor& slot_mapping) {
    Matcher m("index_k_store");
    m.shape("index_k", index_k, {"num_tokens", "index_dim"})
        .shape("index_k_cache", index_k_cache, {"num_blocks", "block_size", "index_dim"}, 2)
        .shape("slot_mapping", slot_mapping, {"num_tokens"});
    const DType dtype = m.dtype("index_k", index_k, kFloat);
    const DType cache_dtype = m.dtype("index_k_cache", index_k_cache, {dtype, DType::kE4M3});
    m.same_dtype("slot_mapping", slot_mapping, DType::kI64);
    const IndexKStoreParams p{
        .index_k_cache = ptr(index_k_cache),
        .index_k = ptr(index_k),
        .slot_mapping = ptr<int64_t>(slot_mapping),
        .num_tokens = m["num_tokens"],
        .index_dim = m["index_dim"],
        .num_blocks = m["num_blocks"],
        .block_size = m["block_size"],
        .index_k_stride = index_k.stride(0),
        .cache_block_stride = index_k_cache.stride(0),
        .dtype = dtype,
        .cache_dtype = cache_dtype,
    };
    if (p.num_tokens == 0) return;
    B::enqueue(m.device_index(), &B::index_k_store, p);
}

}  // namespace mmx::ops
