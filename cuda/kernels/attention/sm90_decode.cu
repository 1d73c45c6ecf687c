#include "cpp/core/math.h"
#include "cuda/common/batch.cuh"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/cluster.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/kernels/attention/choose.h"
#include "cuda/kernels/attention/sm90.h"
#include "cuda/kernels/attention/sm90_pages.cuh"

namespace mmx::cuda::sm90 {

namespace {

// Eight warps share a page twice over: each scores 16 of its keys, then adds up 16 of its dimensions. One
// more warp feeds the ring.
constexpr int kWarps = 8, kWorkers = kWarps * 32, kThreads = kWorkers + 32;
constexpr int kWeightStride = kPage * 2 + 16;  // bytes; spreads the rows of a fragment over the banks
constexpr int kRowItems = kRows * kDim / 4;    // a row tile in pieces of 16 bytes
constexpr float kLog2e = 1.4426950408889634f;
constexpr unsigned kFull = 0xFFFFFFFFu;

/// K and V of a page take a slot of the ring each.
template <class C, int kSlots>
struct Shared {
    alignas(1024) char ring[kSlots][kPageBytes<C>];
    alignas(16) char weights[kRows * kWeightStride];
    alignas(16) float row_max[kRows][kWarps];
    // What the blocks of the cluster push here: this block's part of the rows from each of them, in rank
    // order, with their maxima and sums.
    alignas(16) float received[kRows * kDim];
    float2 received_stats[kRows];
    uint64_t full[kSlots], empty[kSlots], received_all;
};

struct Maps {
    CUtensorMap k, v;  // (dimension, slot, head, page)
};

struct Unit {
    int token, kv_head, group;
    int seq;  // -1 for a token of no sequence
    int position;
};

__device__ __forceinline__ Unit make_unit(const PagedAttentionParams& p, int token, int kv_head) {
    const TokenPlace place = warp_place_of(token, p.cu_seqlens_q, p.seq_lens, static_cast<int>(p.num_seqs));
    return {token, kv_head, static_cast<int>(p.num_heads) / static_cast<int>(p.num_kv_heads),
            static_cast<int>(place.seq), static_cast<int>(place.position)};
}

/// Fetches the parameters of a launch, each line of which costs a miss, before the wait instead of behind it.
__device__ __forceinline__ void touch(const PagedAttentionParams& p) {
    asm volatile("" ::"l"(p.out), "l"(p.q), "l"(p.num_tokens), "l"(p.num_blocks), "l"(p.out_token_stride),
                 "l"(p.q_head_stride), "l"(p.block_table_stride), "l"(p.k_scale), "f"(p.scale));
}

/// By the feeding warp, before the block's first barrier.
template <class S>
__device__ __forceinline__ void init(S& shared, const Maps& maps) {
    if (threadIdx.x % 32 != 0) return;
    ptx::prefetch_map(maps.k);
    ptx::prefetch_map(maps.v);
    for (uint64_t& barrier : shared.full) ptx::barrier_init(barrier, 1);
    for (uint64_t& barrier : shared.empty) ptx::barrier_init(barrier, kWarps);
    ptx::barrier_init(shared.received_all, 1);
    ptx::barrier_init_done();
    ptx::barrier_arrive_expect(shared.received_all, sizeof(shared.received) + sizeof(shared.received_stats));
}

template <class C>
__device__ __forceinline__ void load_page(char* slot, const CUtensorMap& map, uint64_t& full, int kv_head,
                                          int page, uint64_t policy) {
    ptx::barrier_arrive_expect(full, kPageBytes<C>);
    ptx::tma_load_4d(slot, map, full, 0, 0, kv_head, page, policy);
    if (sizeof(C) == 2) ptx::tma_load_4d(slot + kPage * 128, map, full, 64, 0, kv_head, page, policy);
}

/// By the feeding warp: K and V of pages page_of(0) to page_of(count - 1), a call of the whole warp each.
template <class C, int kSlots, class F>
__device__ __forceinline__ void feed(Shared<C, kSlots>& shared, const Maps& maps, int kv_head, int count,
                                     uint64_t policy, F&& page_of) {
    for (int i = 0; i < count; ++i) {
        const int page = page_of(i);
        if (threadIdx.x % 32 != 0) continue;
        for (int use = 2 * i; use < 2 * i + 2; ++use) {
            const int slot = use % kSlots;
            if (use >= kSlots) ptx::barrier_wait(shared.empty[slot], (use / kSlots & 1) ^ 1);
            load_page<C>(shared.ring[slot], use % 2 ? maps.v : maps.k, shared.full[slot], kv_head, page,
                         policy);
        }
    }
}

/// What a worker holds in the end of rows g and g + 8: the weighted sums of its warp's 16 dimensions, the
/// sums of weights, and the rows' maxima (base 2).
struct Rows {
    float o[3][4] = {};
    float max[2] = {-INFINITY, -INFINITY};

    __device__ __forceinline__ float sum(int row) const { return o[2][2 * row]; }
};

/// By the workers: softmax over `count` pages of which visible_of(i) keys may be seen, a call of the whole
/// warp each.
template <class C, int kSlots, class F>
__device__ __forceinline__ Rows attend(Shared<C, kSlots>& shared, const PagedAttentionParams& p,
                                       const Unit& unit, int count, F&& visible_of) {
    const int warp_idx = static_cast<int>(threadIdx.x / 32), lane_idx = static_cast<int>(threadIdx.x % 32);
    const int g = lane_idx / 4, t = lane_idx % 4;
    const auto sync = [] {
        __syncwarp();  // Why: a warp that comes to the barrier in two parts counts twice.
        ptx::named_barrier(1, kWorkers);
    };
    const auto release = [&](uint64_t& empty, float result) {
        __syncwarp();
        if (lane_idx == 0) ptx::barrier_arrive_after(empty, result);
    };
    uint32_t q[8][4];
    float scale_log2[2];
    Pages<C>::load_queries(q, scale_log2,
                           static_cast<const bf16*>(p.q) + unit.token * p.q_token_stride +
                               static_cast<int64_t>(unit.kv_head) * unit.group * p.q_head_stride,
                           p.q_head_stride, unit.group);
    const float k_scale = p.k_scale ? p.k_scale[unit.kv_head] : 1.0f;
#pragma unroll
    for (float& factor : scale_log2) factor *= p.scale * kLog2e * k_scale;

    Rows rows;
    for (int i = 0; i < count; ++i) {
        const int k_slot = 2 * i % kSlots, v_slot = (2 * i + 1) % kSlots, visible = visible_of(i);
        float s[2][4] = {};
        ptx::barrier_wait(shared.full[k_slot], 2 * i / kSlots & 1);
        Pages<C>::score(s, q, ptx::smem_address(shared.ring[k_slot]), warp_idx * 16);
        release(shared.empty[k_slot], s[0][0]);
        if (visible < kPage) {
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (warp_idx * 16 + n * 8 + 2 * t + j % 2 >= visible) s[n][j] = -INFINITY;
        }
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float best =
                fmaxf(fmaxf(s[0][2 * row], s[0][2 * row + 1]), fmaxf(s[1][2 * row], s[1][2 * row + 1]));
            best = fmaxf(best, __shfl_xor_sync(kFull, best, 1));
            best = fmaxf(best, __shfl_xor_sync(kFull, best, 2));
            if (t == 0) shared.row_max[g + 8 * row][warp_idx] = best;
        }
        sync();
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const float4* found = reinterpret_cast<const float4*>(shared.row_max[g + 8 * row]);
            const float4 a = found[0], b = found[1];
            const float best =
                fmaxf(fmaxf(fmaxf(a.x, a.y), fmaxf(a.z, a.w)), fmaxf(fmaxf(b.x, b.y), fmaxf(b.z, b.w))) *
                scale_log2[row];
            const float next = fmaxf(rows.max[row], best), shift = next == -INFINITY ? 0.0f : next;
            const float correction = ptx::exp2_approx(rows.max[row] - shift);
            rows.max[row] = next;
#pragma unroll
            for (int n = 0; n < 3; ++n) {
                rows.o[n][2 * row] *= correction;
                rows.o[n][2 * row + 1] *= correction;
            }
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const float x = ptx::exp2_approx(s[n][2 * row] * scale_log2[row] - shift);
                const float y = ptx::exp2_approx(s[n][2 * row + 1] * scale_log2[row] - shift);
                *reinterpret_cast<uint32_t*>(shared.weights + (g + 8 * row) * kWeightStride +
                                             (warp_idx * 16 + n * 8 + 2 * t) * 2) = Pages<C>::pack(x, y);
            }
        }
        ptx::barrier_wait(shared.full[v_slot], (2 * i + 1) / kSlots & 1);
        if (visible < kPage) {
            // An unused slot may hold NaN, and 0 x NaN is NaN.
            constexpr int kRowPieces = kDim * static_cast<int>(sizeof(C)) / 16;
            for (int j = visible * kRowPieces + static_cast<int>(threadIdx.x); j < kPage * kRowPieces;
                 j += kWorkers) {
                const int key = j / kRowPieces, piece = j % kRowPieces;
                *reinterpret_cast<uint4*>(shared.ring[v_slot] + piece / 8 * (kPage * 128) + key * 128 +
                                          piece % 8 * 16) = make_uint4(0, 0, 0, 0);
            }
            ptx::fence_async_proxy();
        }
        sync();
        Pages<C>::add_values(rows.o, ptx::smem_address(shared.weights), kWeightStride,
                             ptx::smem_address(shared.ring[v_slot]), warp_idx);
        release(shared.empty[v_slot], rows.o[0][0]);
    }
    return rows;
}

/// A sum of weighted rows: 4 dimensions of one head, the maximum (base 2) and the sum of weights.
struct Piece {
    float4 x = {0, 0, 0, 0};
    float max = -INFINITY, sum = 0;
};

/// Merges `count` pieces, which `load(i)` gives, in their order.
template <int kCount, class F>
__device__ __forceinline__ Piece merge(F&& load) {
    Piece parts[kCount], all;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        parts[i] = load(i);
        all.max = fmaxf(all.max, parts[i].max);
    }
    const float shift = all.max == -INFINITY ? 0.0f : all.max;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const float weight = ptx::exp2_approx(parts[i].max - shift);
        all.x.x += parts[i].x.x * weight;
        all.x.y += parts[i].x.y * weight;
        all.x.z += parts[i].x.z * weight;
        all.x.w += parts[i].x.w * weight;
        all.sum += parts[i].sum * weight;
    }
    return all;
}

__device__ __forceinline__ bf16* out_of(const PagedAttentionParams& p, const Unit& unit, int head) {
    return static_cast<bf16*>(p.out) + unit.token * p.out_token_stride +
           (unit.kv_head * unit.group + head) * p.out_head_stride;
}

/// What sums of codes and their sum of weights must be multiplied by and divided by.
__device__ __forceinline__ float v_scale_of(const PagedAttentionParams& p, const Unit& unit) {
    return p.v_scale ? p.v_scale[unit.kv_head] : 1.0f;
}

__device__ __forceinline__ void store_piece(const PagedAttentionParams& p, const Unit& unit, int head, int d,
                                            const Piece& piece) {
    if (head >= unit.group) return;
    const float factor = v_scale_of(p, unit) / piece.sum;
    *reinterpret_cast<uint2*>(out_of(p, unit, head) + d) =
        make_uint2(ptx::pack_bf16(piece.x.x * factor, piece.x.y * factor),
                   ptx::pack_bf16(piece.x.z * factor, piece.x.w * factor));
}

/// By the workers: rows that nobody else has a part of.
template <class C>
__device__ __forceinline__ void store_rows(const PagedAttentionParams& p, const Unit& unit,
                                           const Rows& rows) {
    const int slice = static_cast<int>(threadIdx.x / 32), g = static_cast<int>(threadIdx.x % 32 / 4);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int head = g + 8 * row;
        if (head >= unit.group) continue;
        const float factor = v_scale_of(p, unit) / rows.sum(row);
        bf16* out = out_of(p, unit, head);
        Pages<C>::for_each_run(rows.o, row, slice, [&](int d, float x, float y, auto... more) {
            *reinterpret_cast<uint32_t*>(out + d) = ptx::pack_bf16(x * factor, y * factor);
            if constexpr (sizeof...(more) > 0)
                *reinterpret_cast<uint32_t*>(out + d + 2) = ptx::pack_bf16((more * factor)...);
        });
    }
}

/// kSplits blocks of one cluster share the pages of (token, KV head) = blockIdx (z, y). Each pushes its rows
/// to the block that owns them; the owner sums them in rank order.
template <class C, int kSlots, int kSplits>
__global__ void __launch_bounds__(kThreads, sizeof(Shared<C, kSlots>) <= 113 * 1024 ? 2 : 1)
    sparse_decode_kernel(const __grid_constant__ SparseAttentionParams p, const __grid_constant__ Maps maps,
                         uint64_t policy) {
    extern __shared__ __align__(1024) char raw[];
    auto& shared = *reinterpret_cast<Shared<C, kSlots>*>(raw);
    const bool feeds = threadIdx.x >= kWorkers;
    if (feeds) init(shared, maps);
    touch(p.base);
    asm volatile("" ::"l"(p.block_ids), "l"(p.topk));
    __syncthreads();
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int lane_idx = static_cast<int>(threadIdx.x % 32), split = static_cast<int>(blockIdx.x);
    const int topk = static_cast<int>(p.topk);
    const auto kv_head = static_cast<int>(blockIdx.y), token = static_cast<int>(blockIdx.z);
    const int32_t* ids = p.block_ids + (static_cast<int64_t>(token) * p.base.num_kv_heads + kv_head) * topk;
    const int id0 = lane_idx < topk ? ids[lane_idx] : -1;
    const int id1 = lane_idx + 32 < topk ? ids[lane_idx + 32] : -1;
    // In a decode batch the token's row of the page table is known at once: fetch it beside the ids, into the
    // place of the weights.
    constexpr int kRowEntries = kRows * kWeightStride / 4, kLoads = ceil_div(kRowEntries, kThreads);
    int* table_row = reinterpret_cast<int*>(shared.weights);
    const int row_entries =
        token < p.base.num_seqs ? min(kRowEntries, static_cast<int>(p.base.max_blocks_per_seq)) : 0;
    int entries[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
        const int place = i * kThreads + static_cast<int>(threadIdx.x);
        if (place < row_entries) entries[i] = p.base.block_table[token * p.base.block_table_stride + place];
    }
    const Unit unit = make_unit(p.base, token, kv_head);
    if (unit.seq < 0) return;
    if (kSplits > 1) ptx::cluster_arrive();
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
        const int place = i * kThreads + static_cast<int>(threadIdx.x);
        if (place < row_entries) table_row[place] = entries[i];
    }
    __syncthreads();
    const int listed = __popc(__ballot_sync(kFull, id0 >= 0)) + __popc(__ballot_sync(kFull, id1 >= 0));
    const int begin = listed * split / kSplits, count = listed * (split + 1) / kSplits - begin;
    const auto pick = [&](int low, int high, int i) {
        const int from_low = __shfl_sync(kFull, low, i % 32), from_high = __shfl_sync(kFull, high, i % 32);
        return i < 32 ? from_low : from_high;
    };
    if (feeds) {
        const int32_t* table = p.base.block_table + unit.seq * p.base.block_table_stride;
        const auto page_of = [&](int id) {
            if (id < 0) return 0;
            return unit.seq == token && id < row_entries ? table_row[id] : table[id];
        };
        const int page0 = page_of(id0), page1 = page_of(id1);
        __syncwarp();
        feed(shared, maps, kv_head, count, ptx::kEvictFirst,
             [&](int i) { return pick(page0, page1, begin + i); });
        if (kSplits > 1) ptx::cluster_wait();
        return;
    }
    const Rows rows = attend(shared, p.base, unit, count,
                             [&](int i) { return unit.position + 1 - pick(id0, id1, begin + i) * kPage; });
    if constexpr (kSplits == 1) {
        store_rows<C>(p.base, unit, rows);
    } else {
        constexpr int kOwn = kRows / kSplits;
        const int tid = static_cast<int>(threadIdx.x), g = lane_idx / 4;
        ptx::cluster_wait();
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const int head = g + 8 * row, owner = head / kOwn, place = split * kOwn + head % kOwn;
            const auto address = [&](const void* here) {
                return ptx::cluster_address(ptx::smem_address(here), owner);
            };
            const uint32_t barrier = address(&shared.received_all);
            const uint32_t received = address(shared.received + place * kDim);
            Pages<C>::for_each_run(rows.o, row, tid / 32, [&](int d, auto... values) {
                ptx::store_remote(received + d * static_cast<int>(sizeof(float)), values..., barrier);
            });
            if (tid / 32 == 0 && lane_idx % 4 == 0)
                ptx::store_remote(address(&shared.received_stats[place]), rows.max[row], rows.sum(row),
                                  barrier);
        }
        ptx::barrier_wait(shared.received_all, 0);
        for (int i = tid; i < kOwn * (kDim / 4); i += kWorkers) {
            const int own = i / (kDim / 4), d = i % (kDim / 4) * 4;
            store_piece(p.base, unit, split * kOwn + own, d, merge<kSplits>([&](int r) {
                            const float2 stats = shared.received_stats[r * kOwn + own];
                            return Piece{*reinterpret_cast<const float4*>(shared.received +
                                                                          (r * kOwn + own) * kDim + d),
                                         stats.x, stats.y};
                        }));
        }
    }
}

/// Block x takes `chunk_pages` pages from page x * chunk_pages on of its sequence; partial results go to the
/// workspace unless there is one chunk. Token = first_token + blockIdx.z.
template <class C, int kSlots>
__global__ void __launch_bounds__(kThreads, 2)
    paged_decode_kernel(const __grid_constant__ PagedAttentionParams p, const __grid_constant__ Maps maps,
                        int chunk_pages, int first_token) {
    extern __shared__ __align__(1024) char raw[];
    auto& shared = *reinterpret_cast<Shared<C, kSlots>*>(raw);
    const bool feeds = threadIdx.x >= kWorkers;
    const int lane_idx = static_cast<int>(threadIdx.x % 32), num_splits = static_cast<int>(gridDim.x);
    const int token = first_token + static_cast<int>(blockIdx.z);
    const int first_page = static_cast<int>(blockIdx.x) * chunk_pages;
    if (feeds) init(shared, maps);
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
        feed(shared, maps, unit.kv_head, count, ptx::kEvictNormal,
             [&](int i) { return __shfl_sync(kFull, page, i); });
        return;
    }
    const Rows rows =
        attend(shared, p, unit, count, [&](int i) { return unit.position + 1 - (first_page + i) * kPage; });
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

Maps make_maps(const PagedAttentionParams& p) {
    const bool codes = p.cache_dtype == DType::kE4M3;
    const auto map = [&](const void* cache, int64_t block_stride) {
        return make_tensor_map<4>(cache, {kDim, kPage, p.num_kv_heads, p.num_blocks},
                                  {kDim, kPage * kDim, block_stride}, {codes ? 128 : 64, kPage, 1, 1},
                                  codes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
    };
    return {map(p.k_cache, p.k_cache_block_stride), map(p.v_cache, p.v_cache_block_stride)};
}

template <class C, int kSlots, int kSplits>
void launch_sparse(const SparseAttentionParams& p, Stream stream) {
    const dim3 grid(kSplits, static_cast<unsigned>(p.base.num_kv_heads),
                    static_cast<unsigned>(p.base.num_tokens));
    const LaunchChain launch{"sparse_attention", grid, kThreads, sizeof(Shared<C, kSlots>), stream, kSplits};
    const int64_t pages = 2 * p.base.num_tokens * p.base.num_kv_heads * p.topk;
    launch(sparse_decode_kernel<C, kSlots, kSplits>, p, make_maps(p.base),
           ptx::stream_policy(pages * kPageBytes<C>));
}

/// Slots: as many as the loads of a block's pages where it has a multiprocessor to itself, else what two
/// blocks can hold. Why fewer for codes: the next launch then finds room beside this one.
void launch_sparse_bf16(const SparseAttentionParams& p, int64_t splits, Stream stream) {
    switch (splits) {
        case 16: return launch_sparse<bf16, 2, 16>(p, stream);
        case 8: return launch_sparse<bf16, 4, 8>(p, stream);
        case 4:
            if (p.base.fixed_split) return launch_sparse<bf16, 3, 4>(p, stream);
            return launch_sparse<bf16, 6, 4>(p, stream);
        case 2: return launch_sparse<bf16, 6, 2>(p, stream);
        default: return launch_sparse<bf16, 3, 1>(p, stream);
    }
}

void launch_sparse_e4m3(const SparseAttentionParams& p, int64_t splits, Stream stream) {
    switch (splits) {
        case 16: return launch_sparse<e4m3, 2, 16>(p, stream);
        case 8: return launch_sparse<e4m3, 2, 8>(p, stream);
        case 4:
            if (p.base.fixed_split) return launch_sparse<e4m3, 6, 4>(p, stream);
            return launch_sparse<e4m3, 2, 4>(p, stream);
        case 2: return launch_sparse<e4m3, 6, 2>(p, stream);
        default: return launch_sparse<e4m3, 6, 1>(p, stream);
    }
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
                                 kThreads, sizeof(Shared<C, kSlots>), stream};
        launch(paged_decode_kernel<C, kSlots>, p, make_maps(p), chunk_pages, first_token);
        if (splits == 1) continue;
        const LaunchChain merge_all{"paged_attention", dim3(heads, tokens), kRowItems, 0, stream};
        merge_all(paged_decode_merge_kernel, p, chunk_pages, splits, first_token);
    }
}

}  // namespace

void sparse_decode(const SparseAttentionParams& p, Stream stream) {
    const int64_t splits = sparse_decode_splits(p, num_multiprocessors());
    p.base.cache_dtype == DType::kE4M3 ? launch_sparse_e4m3(p, splits, stream)
                                       : launch_sparse_bf16(p, splits, stream);
}

void paged_decode(const PagedAttentionParams& p, Stream stream) {
    p.cache_dtype == DType::kE4M3 ? launch_paged<e4m3>(p, stream) : launch_paged<bf16>(p, stream);
}

}  // namespace mmx::cuda::sm90
