#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/kernels/attention/choose.h"
#include "cuda/kernels/attention/sm90.h"
#include "cuda/kernels/attention/sm90_decode.cuh"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kRowItems = kRows * kDim / 4;  // a row tile in pieces of 16 bytes

/// Block x takes `chunk_pages` pages from page x * chunk_pages on of its sequence; partial results go to the
/// workspace unless there is one chunk. Token = first_token + blockIdx.z.
template <class C, int kSlots>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    paged_decode_kernel(const __grid_constant__ PagedAttentionParams p, const __grid_constant__ Maps maps,
                        int chunk_pages, int first_token) {
    extern __shared__ __align__(1024) char raw[];
    auto& ring = *reinterpret_cast<PageRing<C, kSlots>*>(raw);
    const bool feeds = threadIdx.x >= kWorkers;
    const int lane_idx = static_cast<int>(threadIdx.x % 32), num_splits = static_cast<int>(gridDim.x);
    const int token = first_token + static_cast<int>(blockIdx.z);
    const int first_page = static_cast<int>(blockIdx.x) * chunk_pages;
    if (feeds) init(ring, maps);
    touch(p);
    __syncthreads();
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const Unit unit = make_unit(p, token, static_cast<int>(blockIdx.y));
    const int count = min(chunk_pages, unit.position / kPage + 1 - first_page);
    if (unit.seq < 0 || count <= 0) return;
    if (feeds) {
        const int32_t* table = p.block_table + unit.seq * p.block_table_stride + first_page;
        const int page = lane_idx < count ? table[lane_idx] : 0;
        RingPlace<kSlots> place(1);
        feed(ring, place, maps, unit.kv_head, count, ptx::kEvictNormal,
             [&](int i) { return __shfl_sync(kFull, page, i); });
        return;
    }
    uint32_t q[8][4];
    float scale_log2[2];
    load_queries(ring, p, unit, q, scale_log2);
    RingPlace<kSlots> place(0);
    const Rows rows = attend(ring, place, q, scale_log2, count,
                             [&](int i) { return unit.position + 1 - (first_page + i) * kPage; });
    if (num_splits == 1) return store_rows<C>(p, unit, rows);
    float* partial =
        static_cast<float*>(p.workspace) +
        ((static_cast<int64_t>(blockIdx.z) * p.num_kv_heads + unit.kv_head) * num_splits + blockIdx.x) *
            kDecodePartialFloats;
    const int warp_idx = static_cast<int>(threadIdx.x / 32);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int head = lane_idx / 4 + 8 * row;
        Pages<C>::for_each_run(rows.o, row, warp_idx, [&](int d, float x, float y, auto... more) {
            *reinterpret_cast<float2*>(partial + head * kDim + d) = make_float2(x, y);
            if constexpr (sizeof...(more) > 0)
                *reinterpret_cast<float2*>(partial + head * kDim + d + 2) = make_float2(more...);
        });
        if (warp_idx == 0 && lane_idx % 4 == 0) {
            partial[kRows * kDim + head] = rows.max[row];
            partial[kRows * kDim + kRows + head] = rows.sum(row);
        }
    }
}

/// Sums the partial results of one (token, KV head) in chunk order.
__global__ void __launch_bounds__(kRowItems)
    paged_decode_merge_kernel(PagedAttentionParams p, int chunk_pages, int num_splits, int first_token) {
    ptx::let_successors_start();
    const int item = static_cast<int>(threadIdx.x), head = item / (kDim / 4);
    const Unit unit = make_unit(p, first_token + static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x));
    const int used = (unit.position / kPage + chunk_pages) / chunk_pages;
    const float* partial = static_cast<const float*>(p.workspace) +
                           (static_cast<int64_t>(blockIdx.y) * p.num_kv_heads + unit.kv_head) * num_splits *
                               kDecodePartialFloats;
    ptx::wait_for_predecessors();
    if (unit.seq < 0) return;
    Piece all;
    for (int first = 0; first < used; first += 8) {
        const Piece some = merge<8>([&](int i) {
            const float* x = partial + (first + i) * kDecodePartialFloats;
            if (first + i >= used) return Piece{};
            return Piece{reinterpret_cast<const float4*>(x)[item], x[kRows * kDim + head],
                         x[kRows * kDim + kRows + head]};
        });
        const Piece before = all;
        all = merge<2>([&](int i) { return i == 0 ? before : some; });
    }
    store_piece(p, unit, head, item % (kDim / 4) * 4, all);
}

template <class C>
void launch_paged(const PagedAttentionParams& p, Stream stream) {
    constexpr int kSlots = 6 / static_cast<int>(sizeof(C));
    const auto chunk_pages = static_cast<int>(paged_decode_chunk(p)),
               splits = static_cast<int>(paged_decode_splits(p));
    const int64_t most = paged_decode_tokens(p);
    const auto heads = static_cast<unsigned>(p.num_kv_heads);
    for (int64_t first = 0; first < p.num_tokens; first += most) {
        const auto tokens = static_cast<unsigned>(std::min(most, p.num_tokens - first));
        const auto first_token = static_cast<int>(first);
        const LaunchChain launch{"paged_attention", dim3(static_cast<unsigned>(splits), heads, tokens),
                                 kDecodeThreads, sizeof(PageRing<C, kSlots>), stream};
        launch(paged_decode_kernel<C, kSlots>, p, make_page_maps(p), chunk_pages, first_token);
        if (splits == 1) continue;
        const LaunchChain merge_all{"paged_attention", dim3(heads, tokens), kRowItems, 0, stream};
        merge_all(paged_decode_merge_kernel, p, chunk_pages, splits, first_token);
    }
}

}  // namespace

void paged_decode(const PagedAttentionParams& p, Stream stream) {
    p.cache_dtype == DType::kE4M3 ? launch_paged<e4m3>(p, stream) : launch_paged<bf16>(p, stream);
}

}  // namespace mmx::cuda::sm90
