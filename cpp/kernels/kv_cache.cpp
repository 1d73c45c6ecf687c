#include "cpp/kernels/vec.h"

namespace mmx::cpu::MMX_CPU_ISA {

namespace {

void check_slots(const char* op, const int64_t* slot_mapping, int64_t num_tokens, int64_t num_slots) {
    for (int64_t token = 0; token < num_tokens; ++token)
        MMX_CHECK(slot_mapping[token] < num_slots, op, ": slot_mapping[", token, "] must be below ",
                  num_slots, " (num_blocks * block_size), got ", slot_mapping[token]);
}

/// One tensor to store; strides in elements.
struct Rows {
    void* cache;         // [num_blocks, num_heads, block_size, width]
    const void* x;       // [num_tokens, num_heads, width]
    const float* scale;  // [num_heads] of e4m3 pages, null = 1
    int64_t cache_block_stride, x_token_stride, x_head_stride, num_heads, block_size, width;

    /// T: type of the tokens, C: of the pages.
    template <class T, class C>
    void store(int64_t token, int64_t slot) const {
        const int64_t block = slot / block_size, offset = slot % block_size;
        for (int64_t head = 0; head < num_heads; ++head) {
            C* to =
                static_cast<C*>(cache) + block * cache_block_stride + (head * block_size + offset) * width;
            const T* from = static_cast<const T*>(x) + token * x_token_stride + head * x_head_stride;
            if constexpr (std::is_same_v<T, C>) {
                std::memcpy(to, from, static_cast<size_t>(width) * sizeof(T));
            } else {
                const float divisor = scale ? scale[head] : 1.0f;
                for (int64_t i = 0; i < width; ++i) to[i] = to_e4m3(to_float(from[i]) / divisor);
            }
        }
    }
};

void store_all(std::initializer_list<Rows> sources, const int64_t* slot_mapping, int64_t num_tokens,
               DType dtype, DType cache_dtype) {
    const Rows& first = *sources.begin();
    const int64_t token_bytes =
        static_cast<int64_t>(sources.size()) * first.num_heads * first.width * dtype_bytes(dtype);
    dispatch_float(dtype, [&](auto t) {
        using T = decltype(t);
        parallel_for(num_tokens, ceil_div(65536, std::max<int64_t>(1, token_bytes)),
                     [&](int64_t begin, int64_t end) {
                         for (int64_t token = begin; token < end; ++token) {
                             const int64_t slot = slot_mapping[token];
                             if (slot < 0) continue;
                             for (const Rows& rows : sources)
                                 if (cache_dtype == DType::kE4M3)
                                     rows.store<T, e4m3>(token, slot);
                                 else
                                     rows.store<T, T>(token, slot);
                         }
                     });
    });
}

}  // namespace

void kv_store(const KvStoreParams& p, Stream) {
    check_slots("kv_store", p.slot_mapping, p.num_tokens, p.num_blocks * p.block_size);
    store_all({{p.k_cache, p.k, p.k_scale, p.k_cache_block_stride, p.k_token_stride, p.k_head_stride,
                p.num_kv_heads, p.block_size, p.head_dim},
               {p.v_cache, p.v, p.v_scale, p.v_cache_block_stride, p.v_token_stride, p.v_head_stride,
                p.num_kv_heads, p.block_size, p.head_dim}},
              p.slot_mapping, p.num_tokens, p.dtype, p.cache_dtype);
}

void index_k_store(const IndexKStoreParams& p, Stream) {
    check_slots("index_k_store", p.slot_mapping, p.num_tokens, p.num_blocks * p.block_size);
    store_all({{p.index_k_cache, p.index_k, nullptr, p.cache_block_stride, p.index_k_stride, 0, 1,
                p.block_size, p.index_dim}},
              p.slot_mapping, p.num_tokens, p.dtype, p.cache_dtype);
}

}  // namespace mmx::cpu::MMX_CPU_ISA
