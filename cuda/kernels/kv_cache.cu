#include <algorithm>

#include "cpp/core/math.h"
#include "cuda/common/copy.cuh"
#include "cuda/common/launch.h"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

constexpr int kThreads = 128;

/// One tensor to store; strides and lengths count elements of the copy's type.
struct Source {
    void* cache;    // [num_blocks, num_heads, block_size, width]
    const void* x;  // [num_tokens, num_heads, width]
    int64_t cache_block_stride, x_token_stride, x_head_stride;
};

struct Store {
    Source sources[2];
    const int64_t* slot_mapping;
    int64_t num_heads, block_size, width;
};

template <class U>
__global__ void __launch_bounds__(kThreads) store_kernel(Store p) {
    const int64_t token = blockIdx.x, slot = p.slot_mapping[token];
    if (slot < 0) return;
    const Source& source = p.sources[blockIdx.z];
    const U* x = static_cast<const U*>(source.x) + token * source.x_token_stride;
    U* page = static_cast<U*>(source.cache) + slot / p.block_size * source.cache_block_stride;
    const int64_t offset = slot % p.block_size, step = static_cast<int64_t>(gridDim.y) * kThreads;
    for (int64_t i = blockIdx.y * kThreads + threadIdx.x; i < p.num_heads * p.width; i += step) {
        const int64_t head = i / p.width, element = i % p.width;
        page[(head * p.block_size + offset) * p.width + element] = x[head * source.x_head_stride + element];
    }
}

void launch_store(const char* op, Store p, unsigned num_sources, int64_t num_tokens, int64_t element_bytes,
                  Stream stream) {
    uint64_t bits = static_cast<uint64_t>(p.width * element_bytes);
    for (unsigned i = 0; i < num_sources; ++i) {
        const Source& s = p.sources[i];
        bits |= address(s.cache) | address(s.x) |
                static_cast<uint64_t>((s.cache_block_stride | s.x_token_stride | s.x_head_stride) *
                                      element_bytes);
    }
    dispatch_copy_width({bits}, [&](auto u) {
        const int64_t elements = static_cast<int64_t>(sizeof(u)) / element_bytes;
        p.width /= elements;
        for (Source& s : p.sources) {
            s.cache_block_stride /= elements;
            s.x_token_stride /= elements;
            s.x_head_stride /= elements;
        }
        const int64_t blocks = std::clamp<int64_t>(ceil_div(p.num_heads * p.width, kThreads), 1, 64);
        const Launch launch{
            op, dim3(static_cast<unsigned>(num_tokens), static_cast<unsigned>(blocks), num_sources), kThreads,
            0, stream};
        launch(store_kernel<decltype(u)>, p);
    });
}

}  // namespace

void kv_store(const KvStoreParams& p, Stream stream) {
    launch_store("kv_store",
                 {.sources = {{p.k_cache, p.k, p.k_cache_block_stride, p.k_token_stride, p.k_head_stride},
                              {p.v_cache, p.v, p.v_cache_block_stride, p.v_token_stride, p.v_head_stride}},
                  .slot_mapping = p.slot_mapping,
                  .num_heads = p.num_kv_heads,
                  .block_size = p.block_size,
                  .width = p.head_dim},
                 2, p.num_tokens, dtype_bytes(p.dtype), stream);
}

void index_k_store(const IndexKStoreParams& p, Stream stream) {
    launch_store("index_k_store",
                 {.sources = {{p.index_k_cache, p.index_k, p.cache_block_stride, p.index_k_stride, 0}, {}},
                  .slot_mapping = p.slot_mapping,
                  .num_heads = 1,
                  .block_size = p.block_size,
                  .width = p.index_dim},
                 1, p.num_tokens, dtype_bytes(p.dtype), stream);
}

}  // namespace mmx::cuda
