#include <vector>

#include "bench/common/bench.h"
#include "cpp/core/math.h"

using namespace mmx;

namespace {

/// Consecutive slots, page after page in descending order: a prompt being stored.
std::vector<int64_t> make_slots(int64_t num_tokens, int64_t num_blocks, int64_t block_size) {
    std::vector<int64_t> slots(static_cast<size_t>(num_tokens));
    for (int64_t token = 0; token < num_tokens; ++token)
        slots[static_cast<size_t>(token)] =
            (num_blocks - 1 - token / block_size) * block_size + token % block_size;
    return slots;
}

}  // namespace

MMX_BENCH(kv_store) {
    for (const bench::Case& c : b.cases("kv_cache", "kv_store"))
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
            const int64_t num_tokens = c["num_tokens"], num_kv_heads = c["num_kv_heads"];
            const int64_t head_dim = c["head_dim"], block_size = c["block_size"];
            const int64_t num_blocks = ceil_div(num_tokens, block_size), row = num_kv_heads * head_dim;
            const bench::Buffer slots = b.upload(make_slots(num_tokens, num_blocks, block_size));
            const bench::Buffer k = b.randn(dtype, num_tokens * row), v = b.randn(dtype, num_tokens * row);
            const bench::Buffer k_cache = b.empty(dtype, num_blocks * block_size * row);
            const bench::Buffer v_cache = b.empty(dtype, num_blocks * block_size * row);
            const KvStoreParams p{.k_cache = k_cache.as(),
                                  .v_cache = v_cache.as(),
                                  .k = k.as(),
                                  .v = v.as(),
                                  .slot_mapping = slots.as<int64_t>(),
                                  .k_scale = nullptr,
                                  .v_scale = nullptr,
                                  .num_tokens = num_tokens,
                                  .num_kv_heads = num_kv_heads,
                                  .head_dim = head_dim,
                                  .num_blocks = num_blocks,
                                  .block_size = block_size,
                                  .k_token_stride = row,
                                  .k_head_stride = head_dim,
                                  .v_token_stride = row,
                                  .v_head_stride = head_dim,
                                  .k_cache_block_stride = block_size * row,
                                  .v_cache_block_stride = block_size * row,
                                  .dtype = dtype,
                                  .cache_dtype = dtype};
            b.run("kv_store", c, dtype,
                  {.bytes = 4.0 * static_cast<double>(k.bytes()),
                   .out = &k_cache,
                   .baseline = "copy of k and v",
                   .baseline_run =
                       [&] {
                           b.backend().copy(k_cache.as(), k.as(), k.bytes());
                           b.backend().copy(v_cache.as(), v.as(), v.bytes());
                       }},
                  b.ops().kv_store, p);
        }
}

MMX_BENCH(index_k_store) {
    for (const bench::Case& c : b.cases("kv_cache", "index_k_store"))
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
            const int64_t num_tokens = c["num_tokens"], index_dim = c["index_dim"];
            const int64_t block_size = c["block_size"], num_blocks = ceil_div(num_tokens, block_size);
            const bench::Buffer slots = b.upload(make_slots(num_tokens, num_blocks, block_size));
            const bench::Buffer index_k = b.randn(dtype, num_tokens * index_dim);
            const bench::Buffer cache = b.empty(dtype, num_blocks * block_size * index_dim);
            const IndexKStoreParams p{.index_k_cache = cache.as(),
                                      .index_k = index_k.as(),
                                      .slot_mapping = slots.as<int64_t>(),
                                      .num_tokens = num_tokens,
                                      .index_dim = index_dim,
                                      .num_blocks = num_blocks,
                                      .block_size = block_size,
                                      .index_k_stride = index_dim,
                                      .cache_block_stride = block_size * index_dim,
                                      .dtype = dtype,
                                      .cache_dtype = dtype};
            b.run("index_k_store", c, dtype,
                  {.bytes = 2.0 * static_cast<double>(index_k.bytes()),
                   .out = &cache,
                   .baseline = "copy",
                   .baseline_run = [&] { b.backend().copy(cache.as(), index_k.as(), index_k.bytes()); }},
                  b.ops().index_k_store, p);
        }
}
