#pragma once

#include "cuda/common/batch.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/quantize.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/kernels/attention/sm90_pages.cuh"

/// What the decode kernels share: a ring of pages that one warp feeds, softmax over them by eight warps, and
/// the merge of partial results.
namespace mmx::cuda::sm90 {

// Eight warps share a page twice over: each scores 16 of its keys, then adds up 16 of its dimensions. One
// more warp feeds the ring.
inline constexpr int kWarps = 8, kWorkers = kWarps * 32, kDecodeThreads = kWorkers + 32;
inline constexpr int kWeightStride = kPage * 2 + 16;  // bytes; spreads the rows of a fragment over the banks
inline constexpr int kQueryBytes = kRows * kQueryStride;

/// Queries of a unit, as fragments are loaded from them.
struct Queries {
    alignas(16) char rows[kQueryBytes];
    float factor[kRows];  // what fragments must be multiplied by to be the queries
};

/// K and V of a page take a slot of the ring each.
template <class C, int kSlots>
struct PageRing {
    alignas(1024) char slots[kSlots][kPageBytes<C>];
    alignas(16) char weights[kRows * kWeightStride];
    Queries queries;
    alignas(16) float row_max[kRows][kWarps];
    uint64_t full[kSlots], empty[kSlots];
};

struct Maps {
    CUtensorMap k, v;  // (dimension, slot, head, page)
};

inline Maps make_page_maps(const PagedAttentionParams& p) {
    const bool codes = p.cache_dtype == DType::kE4M3;
    const auto map = [&](const void* cache, int64_t block_stride) {
        return make_tensor_map<4>(cache, {kDim, kPage, p.num_kv_heads, p.num_blocks},
                                  {kDim, kPage * kDim, block_stride}, {codes ? 128 : 64, kPage, 1, 1},
                                  codes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                  CU_TENSOR_MAP_L2_PROMOTION_NONE);
    };
    return {map(p.k_cache, p.k_cache_block_stride), map(p.v_cache, p.v_cache_block_stride)};
}

struct Unit {
    int token, kv_head, group;
    int seq;  // -1 for a token of no sequence
    int position;
};

/// By a whole warp.
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
template <class C, int kSlots>
__device__ __forceinline__ void init(PageRing<C, kSlots>& ring, const Maps& maps) {
    if (threadIdx.x % 32 != 0) return;
    ptx::prefetch_map(maps.k);
    ptx::prefetch_map(maps.v);
    for (uint64_t& barrier : ring.full) ptx::barrier_init(barrier, 1);
    for (uint64_t& barrier : ring.empty) ptx::barrier_init(barrier, kWarps);
    ptx::barrier_init_done();
}

/// A place in the ring; `parity` is the one that is waited for.
template <int kSlots>
struct RingPlace {
    int at = 0, parity;

    __device__ __forceinline__ explicit RingPlace(int first_parity) : parity(first_parity) {}
    __device__ __forceinline__ RingPlace next() const {
        RingPlace place = *this;
        if (++place.at == kSlots) place.at = 0, place.parity ^= 1;
        return place;
    }
};

/// By the feeding warp: K and V of `count` pages, which page_of(i, kv_head) gives, a call of the whole warp
/// each.
template <class C, int kSlots, class F>
__device__ __forceinline__ void feed_pages(PageRing<C, kSlots>& ring, RingPlace<kSlots>& place,
                                           const Maps& maps, int count, uint64_t policy, F&& page_of) {
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
        int kv_head = 0;
        const int page = page_of(i, kv_head);
#pragma unroll
        for (int matrix = 0; matrix < 2; ++matrix) {
            if (threadIdx.x % 32 == 0) {
                char* slot = ring.slots[place.at];
                uint64_t& full = ring.full[place.at];
                const CUtensorMap& map = matrix ? maps.v : maps.k;
                ptx::barrier_wait(ring.empty[place.at], place.parity);
                ptx::barrier_arrive_expect(full, kPageBytes<C>);
                ptx::tma_load_4d(slot, map, full, 0, 0, kv_head, page, policy);
                if (sizeof(C) == 2)
                    ptx::tma_load_4d(slot + kPage * 128, map, full, 64, 0, kv_head, page, policy);
            }
            place = place.next();
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

/// By the workers: a thread's 16 bytes of the queries of a unit, of which place_queries makes fragments.
__device__ __forceinline__ const uint4* queries_of(const PagedAttentionParams& p, int token, int kv_head) {
    const int tid = static_cast<int>(threadIdx.x), head = tid / 16;
    const int group = static_cast<int>(p.num_heads) / static_cast<int>(p.num_kv_heads);
    static_assert(kRows * 16 == kWorkers);
    if (head >= group) return nullptr;
    const bf16* row = static_cast<const bf16*>(p.q) + token * p.q_token_stride +
                      (static_cast<int64_t>(kv_head) * group + head) * p.q_head_stride;
    return reinterpret_cast<const uint4*>(row) + tid % 16;
}

__device__ __forceinline__ uint4 fetch(const uint4* from) { return from ? *from : make_uint4(0, 0, 0, 0); }

/// What makes base-2 scores of products with K.
__device__ __forceinline__ float score_scale(const PagedAttentionParams& p, int kv_head) {
    return p.scale * ptx::kLog2e * (p.k_scale ? p.k_scale[kv_head] : 1.0f);
}

/// By the workers: what they fetched, for all of them behind their next barrier.
template <class C>
__device__ __forceinline__ void place_queries(Queries& queries, const uint4& fetched) {
    const float factor = Pages<C>::place_queries(queries.rows, fetched);
    if (threadIdx.x % 16 == 0) queries.factor[threadIdx.x / 16] = factor;
}

/// By the workers, behind a barrier since the queries were placed: softmax over `count` pages of which
/// visible_of(i) keys may be seen, a call of the whole warp each. kAhead: values become fragments beside the
/// exponentials, for which registers have to be free.
template <bool kAhead, class C, int kSlots, class F>
__device__ __forceinline__ Rows attend(PageRing<C, kSlots>& ring, RingPlace<kSlots>& place,
                                       const Queries& queries, float scale, int count, F&& visible_of) {
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    const int g = lane_idx / 4, t = lane_idx % 4;
    const auto sync = [] {
        __syncwarp();  // Why: a warp that comes to the barrier in two parts counts twice.
        ptx::named_barrier(1, kWorkers);
    };
    const auto release = [&](uint64_t& empty, float result) {
        __syncwarp();
        if (lane_idx == 0) ptx::barrier_arrive_after(empty, result);
    };
    Rows rows;
    uint32_t q[8][4];
    float scale_log2[2];
    load_queries(q, queries.rows);
#pragma unroll
    for (int row = 0; row < 2; ++row) scale_log2[row] = queries.factor[g + 8 * row] * scale;
    for (int i = 0; i < count; ++i) {
        const int visible = visible_of(i);
        float s[2][4] = {};
        ptx::barrier_wait(ring.full[place.at], place.parity);
        Pages<C>::score(s, q, ptx::smem_address(ring.slots[place.at]), warp_idx * 16);
        release(ring.empty[place.at], s[0][0]);
        place = place.next();
        char* values = ring.slots[place.at];
        if (visible < kPage) {
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (warp_idx * 16 + n * 8 + 2 * t + j % 2 >= visible) s[n][j] = -INFINITY;
        }
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float best = -INFINITY;
#pragma unroll
            for (int n = 0; n < 2; ++n) best = fmaxf(best, fmaxf(s[n][2 * row], s[n][2 * row + 1]));
            best = fmaxf(best, __shfl_xor_sync(kFull, best, 1));
            best = fmaxf(best, __shfl_xor_sync(kFull, best, 2));
            if (t == 0) ring.row_max[g + 8 * row][warp_idx] = best;
        }
        if (visible < kPage) {
            ptx::barrier_wait(ring.full[place.at], place.parity);
            // An unused slot may hold NaN, and 0 x NaN is NaN.
            constexpr int kRowPieces = kDim * static_cast<int>(sizeof(C)) / 16;
            for (int j = visible * kRowPieces + tid; j < kPage * kRowPieces; j += kWorkers) {
                const int key = j / kRowPieces, piece = j % kRowPieces;
                *reinterpret_cast<uint4*>(values + piece / 8 * (kPage * 128) + key * 128 + piece % 8 * 16) =
                    make_uint4(0, 0, 0, 0);
            }
            ptx::fence_async_proxy();
        }
        sync();
        uint32_t v[8][4];
        const auto load_values = [&] {
            ptx::barrier_wait(ring.full[place.at], place.parity);
            Pages<C>::load_values(v, ptx::smem_address(values), warp_idx);
        };
        if (kAhead) load_values();
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const float4* found = reinterpret_cast<const float4*>(ring.row_max[g + 8 * row]);
            const float4 a = found[0], b = found[1];
            const float best =
                fmaxf(fmaxf(fmaxf(a.x, a.y), fmaxf(a.z, a.w)), fmaxf(fmaxf(b.x, b.y), fmaxf(b.z, b.w))) *
                scale_log2[row];
            const float next = fmaxf(rows.max[row], best), shift = next == -INFINITY ? 0.0f : next;
            const float correction = ptx::exp2_approx(rows.max[row] - shift);
            rows.max[row] = next;
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const float x = ptx::exp2_approx(s[n][2 * row] * scale_log2[row] - shift);
                const float y = ptx::exp2_approx(s[n][2 * row + 1] * scale_log2[row] - shift);
                *reinterpret_cast<uint32_t*>(ring.weights + (g + 8 * row) * kWeightStride +
                                             (warp_idx * 16 + n * 8 + 2 * t) * 2) = Pages<C>::pack(x, y);
            }
#pragma unroll
            for (int n = 0; n < 3; ++n) {
                rows.o[n][2 * row] *= correction;
                rows.o[n][2 * row + 1] *= correction;
            }
        }
        sync();
        if (!kAhead) load_values();
        add_values<C>(rows.o,
                      ptx::smem_address(ring.weights) + lane_idx % 16 * kWeightStride + lane_idx / 16 * 16,
                      32, v);
        release(ring.empty[place.at], rows.o[0][0]);
        place = place.next();
    }
    return rows;
}

/// A sum of weighted rows: 4 dimensions of one head, the maximum (base 2) and the sum of weights.
struct Piece {
    float4 x = {0, 0, 0, 0};
    float max = -INFINITY, sum = 0;
};

/// Merges kCount pieces, which `load(i)` gives, in their order.
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

/// What sums of weighted codes must be multiplied by; 1 for pages without a scale.
__device__ __forceinline__ float v_scale_of(const PagedAttentionParams& p, const Unit& unit) {
    return p.v_scale ? p.v_scale[unit.kv_head] : 1.0f;
}

/// By the warp of a head: what fp8_quantize makes of its result, 4 dimensions a lane.
__device__ __forceinline__ void store_codes(const PagedAttentionParams& p, const Unit& unit, int head,
                                            uint2 result) {
    const float values[4] = {__uint_as_float(result.x << 16), __uint_as_float(result.x & 0xFFFF0000u),
                             __uint_as_float(result.y << 16), __uint_as_float(result.y & 0xFFFF0000u)};
    const int64_t at = (unit.token * p.num_heads + unit.kv_head * unit.group + head) * kDim;
    quantize_group(static_cast<e4m3*>(p.codes) + at + threadIdx.x % 32 * 4, p.codes_scale + at / kFp8Group,
                   values, true);
}

/// By the warp of a head, 4 dimensions a lane.
__device__ __forceinline__ void store_piece(const PagedAttentionParams& p, const Unit& unit, int head,
                                            const Piece& piece) {
    const float factor = piece.sum == 0 ? 0.0f : __fdividef(v_scale_of(p, unit), piece.sum);
    const uint2 result = make_uint2(ptx::pack_bf16(piece.x.x * factor, piece.x.y * factor),
                                    ptx::pack_bf16(piece.x.z * factor, piece.x.w * factor));
    *reinterpret_cast<uint2*>(out_of(p, unit, head) + threadIdx.x % 32 * 4) = result;
    if (p.codes) store_codes(p, unit, head, result);
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
        const float factor = rows.sum(row) == 0 ? 0.0f : __fdividef(v_scale_of(p, unit), rows.sum(row));
        bf16* out = out_of(p, unit, head);
        Pages<C>::for_each_run(rows.o, row, slice, [&](int d, float x, float y, auto... more) {
            *reinterpret_cast<uint32_t*>(out + d) = ptx::pack_bf16(x * factor, y * factor);
            if constexpr (sizeof...(more) > 0)
                *reinterpret_cast<uint32_t*>(out + d + 2) = ptx::pack_bf16((more * factor)...);
        });
    }
}

}  // namespace mmx::cuda::sm90
