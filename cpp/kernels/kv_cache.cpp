#include "cpp/kernels/common.h"

namespace mmx::cpu::MMX_CPU_ISA {

namespace {

void check_slots(const char* op, const int64_t* slot_mapping, int64_t num_tokens, int64_t num_slots) {
    for (int64_t token = 0; token < num_tokens; ++token)
        MMX_CHECK(slot_mapping[token] < num_slots, op, ": slot_mapping[", token, "] must be below ",
                  num_slots, " (num_blocks * block_size), got ", slot_mapping[token]);
}

/// Rows of `head_bytes`, from [num_tokens, num_heads, head] (strides in bytes) to the same heads of a slot.
struct Rows {
    char* cache;
    const char* x;
    int64_t cache_block_bytes, x_token_bytes, x_head_bytes, head_bytes;

    void store(int64_t token, int64_t slot, int64_t num_heads, int64_t block_size) const {
        const int64_t block = slot / block_size, offset = slot % block_size;
        for (int64_t head = 0; head < num_heads; ++head)
            std::memcpy(cache + block * cache_block_bytes + (head * block_size + offset) * head_bytes,
                        x + token * x_token_bytes + head * x_head_bytes, static_cast<size_t>(head_bytes));
    }
};

}  // namespace

void kv_store(const KvStoreParams& p, Stream) {
    check_slots("kv_store", p.slot_mapping, p.num_tokens, p.num_blocks * p.block_size);
    const int64_t bytes = dtype_bytes(p.dtype);
    const Rows k{static_cast<char*>(p.k_cache), static_cast<const char*>(p.k), p.k_cache_block_stride * bytes,
                 p.k_token_stride * bytes,      p.k_head_stride * bytes,       p.head_dim * bytes};
    const Rows v{static_cast<char*>(p.v_cache), static_cast<const char*>(p.v), p.v_cache_block_stride * bytes,
                 p.v_token_stride * bytes,      p.v_head_stride * bytes,       p.head_dim * bytes};
    const int64_t token_bytes = std::max<int64_t>(1, 2 * p.num_kv_heads * p.head_dim * bytes);
    parallel_for(p.num_tokens, ceil_div(65536, token_bytes), [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
            const int64_t slot = p.slot_mapping[token];
            if (slot < 0) continue;
            k.store(token, slot, p.num_kv_heads, p.block_size);
            v.store(token, slot, p.num_kv_heads, p.block_size);
        }
    });
}

void index_k_store(const IndexKStoreParams& p, Stream) {
    check_slots("index_k_store", p.slot_mapping, p.num_tokens, p.num_blocks * p.block_size);
    const int64_t bytes = dtype_bytes(p.dtype);
    const Rows rows{static_cast<char*>(p.index_k_cache),
                    static_cast<const char*>(p.index_k),
                    p.cache_block_stride * bytes,
                    p.index_k_stride * bytes,
                    0,
                    p.index_dim * bytes};
    const int64_t token_bytes = std::max<int64_t>(1, p.index_dim * bytes);
    parallel_for(p.num_tokens, ceil_div(65536, token_bytes), [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token)
            if (p.slot_mapping[token] >= 0) rows.store(token, p.slot_mapping[token], 1, p.block_size);
    });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
