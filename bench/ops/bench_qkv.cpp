#include <vector>

#include "bench/common/bench.h"

using namespace mmx;

MMX_BENCH(norm_rope_store) {
    for (const bench::Case& c : b.cases("qkv", "norm_rope_store")) {
        const DType dtype = DType::kBF16;
        const int64_t num_tokens = c["num_tokens"], num_heads = c["num_heads"], kv_heads = c["num_kv_heads"];
        const int64_t index_heads = c["num_index_heads"], head_dim = c["head_dim"];
        const int64_t rotary_dim = c["rotary_dim"], block_size = c["block_size"];
        const bool whole = c["whole"] != 0;
        const int64_t heads = num_heads + 2 * kv_heads + index_heads + (index_heads > 0);
        const int64_t num_blocks = (num_tokens + block_size - 1) / block_size;
        std::vector<int64_t> places(static_cast<size_t>(num_tokens));
        for (size_t i = 0; i < places.size(); ++i) places[i] = static_cast<int64_t>(i);
        const bench::Buffer order = b.upload(places), qkv = b.randn(dtype, num_tokens * heads * head_dim);
        const int64_t page = kv_heads * block_size * head_dim;
        const bench::Buffer k_cache = b.empty(dtype, num_blocks * page);
        const bench::Buffer v_cache = b.empty(dtype, num_blocks * page);
        const bench::Buffer index_k_cache = b.empty(dtype, num_blocks * block_size * head_dim);
        const bench::Buffer weight = b.randn(dtype, num_heads * head_dim);
        const bench::Buffer cos_sin = b.randn(DType::kF32, num_tokens * rotary_dim);
        const NormRopeStoreParams p{.qkv = qkv.as(),
                                    .k_cache = k_cache.as(),
                                    .v_cache = v_cache.as(),
                                    .index_k_cache = index_heads ? index_k_cache.as() : nullptr,
                                    .q_weight = weight.as(),
                                    .k_weight = weight.as(),
                                    .index_q_weight = weight.as(),
                                    .index_k_weight = weight.as(),
                                    .cos_sin = cos_sin.as<float>(),
                                    .positions = order.as<int64_t>(),
                                    .slot_mapping = order.as<int64_t>(),
                                    .k_scale = nullptr,
                                    .v_scale = nullptr,
                                    .mean_squares = nullptr,
                                    .num_tokens = num_tokens,
                                    .num_heads = num_heads,
                                    .num_kv_heads = kv_heads,
                                    .num_index_heads = index_heads,
                                    .head_dim = head_dim,
                                    .rotary_dim = rotary_dim,
                                    .max_positions = num_tokens,
                                    .num_blocks = num_blocks,
                                    .block_size = block_size,
                                    .qkv_stride = heads * head_dim,
                                    .k_cache_block_stride = page,
                                    .v_cache_block_stride = page,
                                    .index_k_cache_block_stride = block_size * head_dim,
                                    .eps = 1e-6f,
                                    .gemma = !whole,
                                    .norm_whole_projection = whole,
                                    .dtype = dtype,
                                    .weight_dtype = dtype,
                                    .cache_dtype = dtype,
                                    .index_cache_dtype = dtype};
        b.run("norm_rope_store", c, dtype,
              {.bytes = 2.0 * static_cast<double>(qkv.bytes()) + static_cast<double>(cos_sin.bytes()),
               .out = &qkv},
              b.ops().norm_rope_store, p);
    }
}

MMX_BENCH(qk_mean_squares) {
    for (const bench::Case& c : b.cases("qkv", "qk_mean_squares")) {
        const DType dtype = DType::kBF16;
        const int64_t num_tokens = c["num_tokens"], num_heads = c["num_heads"], kv_heads = c["num_kv_heads"];
        const int64_t head_dim = c["head_dim"], width = (num_heads + 2 * kv_heads) * head_dim;
        const bench::Buffer qkv = b.randn(dtype, num_tokens * width),
                            out = b.empty(DType::kF32, 2 * num_tokens);
        Peers alone{};
        alone.num_ranks = 1;
        const QkMeanSquaresParams p{.out = out.as<float>(),
                                    .qkv = qkv.as(),
                                    .peers = alone,
                                    .num_tokens = num_tokens,
                                    .num_heads = num_heads,
                                    .num_kv_heads = kv_heads,
                                    .head_dim = head_dim,
                                    .qkv_stride = width,
                                    .num_parts = 2,
                                    .dtype = dtype};
        b.run("qk_mean_squares", c, dtype, {.bytes = static_cast<double>(qkv.bytes()), .out = &out},
              b.ops().qk_mean_squares, p);
    }
}
