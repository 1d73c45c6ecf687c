#include <algorithm>

#include "cpp/core/math.h"
#include "cuda/common/copy.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kRun = 4;

/// One tensor to store; strides and lengths count elements, of the copy's type where pages get copies.
struct Source {
    void* cache;         // [num_blocks, num_heads, block_size, width]
    const void* x;       // [num_tokens, num_heads, width]
    const float* scale;  // [num_heads] of e4m3 pages, null = 1
    int64_t cache_block_stride, x_token_stride, x_head_stride;
};

struct Store {
    Source sources[2];
    const int64_t* slot_mapping;  // [num_tokens]
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

/// Codes of e4m3 for kRun neighbours a thread.
template <class T>
__global__ void __launch_bounds__(kThreads) encode_kernel(Store p, bool packable) {
    const int64_t token = blockIdx.x, slot = p.slot_mapping[token];
    if (slot < 0) return;
    const Source& source = p.sources[blockIdx.z];
    const T* x = static_cast<const T*>(source.x) + token * source.x_token_stride;
    e4m3* page = static_cast<e4m3*>(source.cache) + slot / p.block_size * source.cache_block_stride;
    const int64_t offset = slot % p.block_size, step = static_cast<int64_t>(gridDim.y) * kThreads;
    const int64_t runs = ceil_div(p.width, int64_t{kRun});
    for (int64_t i = blockIdx.y * kThreads + threadIdx.x; i < p.num_heads * runs; i += step) {
        const int64_t head = i / runs, first = i % runs * kRun;
        float values[kRun];
        load_run(values, x + head * source.x_head_stride + first, p.width - first, packable);
        if (source.scale) {
            const float divisor = source.scale[head];
#pragma unroll
            for (float& value : values) value = __fdiv_rn(value, divisor);
        }
        store_run(page + (head * p.block_size + offset) * p.width + first, values, p.width - first, packable);
    }
}

void launch_encode(const char* op, const Store& p, unsigned num_sources, int64_t num_tokens, DType dtype,
                   Stream stream) {
    const int64_t work = p.num_heads * ceil_div(p.width, int64_t{kRun});
    const int64_t blocks = std::clamp<int64_t>(ceil_div(work, kThreads), 1, 64);
    const Launch launch{op,
                        dim3(static_cast<unsigned>(num_tokens), static_cast<unsigned>(blocks), num_sources),
                        kThreads, 0, stream};
    dispatch_float(dtype, [&](auto t) {
        using T = decltype(t);
        bool packable = true;
        for (unsigned i = 0; i < num_sources; ++i) {
            const Source& s = p.sources[i];
            packable = packable && is_packable<T, kRun>(s.x, {s.x_token_stride, s.x_head_stride, p.width}) &&
                       is_packable<e4m3, kRun>(s.cache, {s.cache_block_stride});
        }
        launch(encode_kernel<T>, p, packable);
    });
}

void launch_store(const char* op, Store p, unsigned num_sources, int64_t num_tokens, DType dtype,
                  DType cache_dtype, Stream stream) {
    if (cache_dtype == DType::kE4M3) return launch_encode(op, p, num_sources, num_tokens, dtype, stream);
    const int64_t element_bytes = dtype_bytes(dtype);
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
    launch_store(
        "kv_store",
        {.sources = {{p.k_cache, p.k, p.k_scale, p.k_cache_block_stride, p.k_token_stride, p.k_head_stride},
                     {p.v_cache, p.v, p.v_scale, p.v_cache_block_stride, p.v_token_stride, p.v_head_stride}},
         .slot_mapping = p.slot_mapping,
         .num_heads = p.num_kv_heads,
         .block_size = p.block_size,
         .width = p.head_dim},
        2, p.num_tokens, p.dtype, p.cache_dtype, stream);
}

void index_k_store(const IndexKStoreParams& p, Stream stream) {
    launch_store(
        "index_k_store",
        {.sources = {{p.index_k_cache, p.index_k, nullptr, p.cache_block_stride, p.index_k_stride, 0}, {}},
         .slot_mapping = p.slot_mapping,
         .num_heads = 1,
         .block_size = p.block_size,
         .width = p.index_dim},
        1, p.num_tokens, p.dtype, p.cache_dtype, stream);
}

}  // namespace mmx::cuda
