#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/ptx/wgmma_n.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/attention/sm90.h"
#include "cuda/kernels/attention/sm90_rows.cuh"
#include "cuda/kernels/attention/sm90_sparse_job.cuh"
#include "cuda/kernels/attention/sm90_tiles.h"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kPage = 128, kDim = 128, kHeads = 16;
constexpr float kLog2e = 1.4426950408889634f;
constexpr unsigned kFull = 0xFFFFFFFFu;

/// Memory of one slab. Why from the host: kernel arguments cost no registers.
struct Slab {
    const PrefillItem* items;
    const int* num_items;
    int* next_item;
    const int* list;
    uint4* partials;
    float2* max_sums;
    int first_token;

    Slab(const SparseJob& job, int64_t slab)
        : items(job.at<PrefillItem>(job.plan.items) + slab * job.plan.slab_items),
          num_items(job.at<int>(job.plan.num_items) + slab),
          next_item(job.at<int>(job.plan.next_item) + slab),
          list(job.at<int>(job.plan.lists) + slab * job.plan.slab_entries),
          partials(job.at<uint4>(job.plan.partials)),
          max_sums(job.at<float2>(job.plan.max_sums)),
          first_token(static_cast<int>(slab * job.plan.slab_tokens)) {}
};

// ---- partial attention of each (query, block) -----------------------------------------------------

constexpr int kConsumers = 2, kThreads = (1 + kConsumers) * 128;
constexpr int kQSlots = 6, kStages = 2;
constexpr int kHalfPageBytes = kPage * 128;  // 64 of the 128 dimensions
constexpr int kHalfTileBytes = 64 * 128;
static_assert(kQSlots % kConsumers == 0);

struct Shared {
    alignas(1024) char k[kStages][2 * kHalfPageBytes];
    alignas(1024) char v[kStages][2 * kHalfPageBytes];
    alignas(1024) char q[kQSlots][2 * kHalfTileBytes];
    uint64_t kv_full[kStages], kv_empty[kStages], q_full[kQSlots], q_empty[kQSlots];
    uint64_t item_full[kStages], codes_full[kStages];
    PrefillItem item[kStages];  // no row tiles: the end
};

struct Maps {
    CUtensorMap q;     // (dimension, head, token)
    CUtensorMap k, v;  // (dimension, slot, head, page)
};

/// 16 e4m3 codes as bf16, exactly.
__device__ __forceinline__ void widen(const uint4& codes, uint4& low, uint4& high) {
    const auto pair = [](uint32_t halves) {
        float x, y;
        asm("{\n.reg .f16 a, b;\nmov.b32 {a, b}, %2;\ncvt.f32.f16 %0, a;\ncvt.f32.f16 %1, b;\n}"
            : "=f"(x), "=f"(y)
            : "r"(halves));
        return ptx::pack_bf16(x, y);
    };
    const auto four = [&](uint32_t word, uint32_t& a, uint32_t& b) {
        ptx::decode_e4m3(word, a, b);
        a = pair(a), b = pair(b);
    };
    four(codes.x, low.x, low.y);
    four(codes.y, low.z, low.w);
    four(codes.z, high.x, high.y);
    four(codes.w, high.z, high.w);
}

/// Key `key` of a page: its 128 codes, which the copy engine left in the second half of `page`, become its
/// row in both halves. In place: a thread reads a code before it writes there, and nobody else reads that
/// row.
__device__ __forceinline__ void widen_key(char* page, int key, bool wanted) {
    char *first = page + key * 128, *second = first + kHalfPageBytes;
#pragma unroll
    for (int chunk = 0; chunk < 8; ++chunk) {
        uint4 low{}, high{};
        if (wanted) widen(*reinterpret_cast<const uint4*>(second + ((chunk ^ key % 8) << 4)), low, high);
        char* out = chunk < 4 ? first : second;
        *reinterpret_cast<uint4*>(out + ((chunk % 4 * 2 ^ key % 8) << 4)) = low;
        *reinterpret_cast<uint4*>(out + ((chunk % 4 * 2 + 1 ^ key % 8) << 4)) = high;
    }
}

/// Four warps feed the ring: each a quarter of K and V of the next item, while this one is worked on, and one
/// of the four gathered queries of each row tile. One warp alone would issue its loads too slowly. The first
/// one draws the items. They also widen e4m3 pages.
template <class C>
__device__ __forceinline__ void produce(const Slab& slab, const Maps& maps, Shared& shared) {
    const int warp_idx = static_cast<int>(threadIdx.x / 32), lane_idx = static_cast<int>(threadIdx.x % 32);
    const int half = warp_idx % 2;
    const int num_items = *slab.num_items;
    static_assert(kRunTiles <= 32);
    const auto draw = [&] {
        const int i = atomicAdd(slab.next_item, 1);
        return i < num_items ? slab.items[i] : PrefillItem{};
    };
    PrefillItem drawn{};
    if (threadIdx.x == 0) drawn = draw();
    int stage = 0, parity = 0, slot = 0, slot_parity = 1;
    for (;;) {
        if (threadIdx.x == 0) {
            ptx::barrier_wait(shared.kv_empty[stage], parity ^ 1);
            shared.item[stage] = drawn;
            ptx::barrier_arrive(shared.item_full[stage]);
            drawn = draw();
        }
        if (lane_idx == 0) ptx::barrier_wait(shared.item_full[stage], parity);
        __syncwarp();
        const PrefillItem item = shared.item[stage];
        const int num_tiles = item.num_tiles_and_head & 0xFF, head = item.num_tiles_and_head >> 8;
        if (num_tiles == 0) {
            if (lane_idx == 0) ptx::barrier_arrive(shared.kv_full[stage]);
            return;
        }
        const int entries =
            lane_idx < num_tiles
                ? slab.list[(static_cast<int64_t>(item.first_tile) + lane_idx) * kTileQueries + warp_idx]
                : -1;
        __syncwarp();  // all lanes have read the item
        if constexpr (sizeof(C) == 2) {
            if (lane_idx == 0) {
                ptx::barrier_arrive_expect(shared.kv_full[stage], kHalfPageBytes);
                char* page = (warp_idx < 2 ? shared.k[stage] : shared.v[stage]) + half * kHalfPageBytes;
                ptx::tma_load_4d(page, warp_idx < 2 ? maps.k : maps.v, shared.kv_full[stage], half * 64, 0,
                                 head, item.page);
            }
        } else {
            if (threadIdx.x == 0) {
                ptx::barrier_arrive_expect(shared.codes_full[stage], 2 * kHalfPageBytes);
                ptx::tma_load_4d(shared.k[stage] + kHalfPageBytes, maps.k, shared.codes_full[stage], 0, 0,
                                 head, item.page);
                ptx::tma_load_4d(shared.v[stage] + kHalfPageBytes, maps.v, shared.codes_full[stage], 0, 0,
                                 head, item.page);
            }
            const int key = static_cast<int>(threadIdx.x);
            ptx::barrier_wait(shared.codes_full[stage], parity);
            widen_key(shared.k[stage], key, true);
            // Unused slots may hold NaN, and 0 x NaN is NaN.
            widen_key(shared.v[stage], key, key < item.num_keys);
            ptx::fence_async_proxy();
            __syncwarp();
            if (lane_idx == 0) ptx::barrier_arrive(shared.kv_full[stage]);
        }
        if (++stage == kStages) stage = 0, parity ^= 1;
        for (int tile = 0; tile < num_tiles; ++tile) {
            const int entry = __shfl_sync(kFull, entries, tile);
            if (lane_idx == 0) {
                ptx::barrier_wait(shared.q_empty[slot], slot_parity);
                if (entry < 0) {
                    ptx::barrier_arrive(shared.q_full[slot]);
                } else {
                    ptx::barrier_arrive_expect(shared.q_full[slot], 2 * kHeads * 128);
                    char* rows = shared.q[slot] + warp_idx * kHeads * 128;
                    const int token = entry >> kEntryTokenShift;
                    ptx::tma_load_3d(rows, maps.q, shared.q_full[slot], 0, head * kHeads, token);
                    ptx::tma_load_3d(rows + kHalfTileBytes, maps.q, shared.q_full[slot], 64, head * kHeads,
                                     token);
                }
            }
            if (++slot == kQSlots) slot = 0, slot_parity ^= 1;
        }
    }
}

/// What is left to do for a row tile when its product with V is there.
struct Partial {
    int place;              // of the warp's partial result in the slab; -1: padding
    float best[2], sum[2];  // maximum and sum of weights of the thread's two rows
};

/// Scores become weights, key c of the page visible iff c <= last_key.
__device__ __forceinline__ void weigh(float (&s)[64], Partial& partial, float scale_log2, int last_key,
                                      int t) {
    if (last_key < kPage - 1) {
#pragma unroll
        for (int j = 0; j < 16; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (8 * j + 2 * t + e % 2 > last_key) s[4 * j + e] = -INFINITY;
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        float best = -INFINITY, sum = 0;
#pragma unroll
        for (int j = 0; j < 16; ++j) best = fmaxf(best, fmaxf(s[4 * j + 2 * row], s[4 * j + 2 * row + 1]));
        best = fmaxf(best, __shfl_xor_sync(kFull, best, 1));
        best = fmaxf(best, __shfl_xor_sync(kFull, best, 2)) * scale_log2;
        const float shift = best == -INFINITY ? 0 : best;
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            float* pair = s + 4 * j + 2 * row;
            pair[0] = ptx::exp2_approx(fmaf(pair[0], scale_log2, -shift));
            pair[1] = ptx::exp2_approx(fmaf(pair[1], scale_log2, -shift));
            sum += pair[0] + pair[1];
        }
        partial.best[row] = best;
        partial.sum[row] = sum;
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        partial.sum[row] += __shfl_xor_sync(kFull, partial.sum[row], 1);
        partial.sum[row] += __shfl_xor_sync(kFull, partial.sum[row], 2);
    }
}

/// A warpgroup takes every second row tile; a warp is one query with its 16 heads. While the weights of a
/// tile are made, the product of the tile before with V runs.
template <class C>
__device__ __forceinline__ void consume(const SparseAttentionParams& p, const Slab& slab, Shared& shared,
                                        int group) {
    const int tid = static_cast<int>(threadIdx.x) % 128, warp_idx = tid / 32, lane_idx = tid % 32;
    const int g = lane_idx / 4, t = lane_idx % 4;
    const int num_heads = static_cast<int>(p.base.num_kv_heads), topk = static_cast<int>(p.topk);
    float scale_log2 = p.base.scale * kLog2e;
    const auto release = [&](uint64_t& barrier) {
        __syncwarp();  // all lanes have read
        if (lane_idx == 0) ptx::barrier_arrive(barrier);
    };

    PrefillItem item;
    int stage = 0, parity = 0, slot = group, slot_parity = 0;
    int turn = 0, tile = 0, num_tiles = 0;  // turn: whose row tile comes next
    const auto enter_item = [&] {
        ptx::barrier_wait(shared.kv_full[stage], parity);
        item = shared.item[stage];
        num_tiles = item.num_tiles_and_head & 0xFF;
        tile = (group - turn + kConsumers) % kConsumers;
        turn = (turn + num_tiles) % kConsumers;
        if (sizeof(C) == 1 && p.base.k_scale)
            scale_log2 = p.base.scale * kLog2e * p.base.k_scale[item.num_tiles_and_head >> 8];
        if (sizeof(C) == 2 && num_tiles > 0 && item.num_keys < kPage) {
            // Unused slots may hold NaN, and 0 x NaN is NaN. Both groups write the same zeros.
            for (int b = tid; b < (kPage - item.num_keys) * 16; b += 128) {
                const int key = item.num_keys + b / 16, half = b / 8 % 2;
                *reinterpret_cast<uint4*>(shared.v[stage] + half * kHalfPageBytes + key * 128 + b % 8 * 16) =
                    make_uint4(0, 0, 0, 0);
            }
            ptx::fence_async_proxy();
            ptx::named_barrier(1 + group, 128);
        }
    };
    const auto leave_item = [&] {
        if (++stage == kStages) stage = 0, parity ^= 1;
    };

    float s[64], o[64];
    uint32_t weights[8][4];
    const auto multiply_keys = [&] {
        const ptx::UniformOperand a(ptx::smem_address(shared.q[slot]));
        const ptx::UniformOperand b(ptx::smem_address(shared.k[stage]));
        ptx::wgmma_begin();
#pragma unroll
        for (int step = 0; step < 8; ++step)
            ptx::Wgmma<128>::bf16(s, a + (step / 4 * kHalfTileBytes + step % 4 * 32),
                                  b + (step / 4 * kHalfPageBytes + step % 4 * 32), step > 0);
        ptx::wgmma_commit();
    };
    const auto multiply_values = [&](int at) {
        const ptx::UniformOperand b(ptx::smem_address(shared.v[at]), kHalfPageBytes);
        ptx::wgmma_begin();
#pragma unroll
        for (int step = 0; step < 8; ++step)
            ptx::wgmma_transposed_bf16(o, weights[step], b + step * 16 * 128, step > 0);
        ptx::wgmma_commit();
    };
    const auto load_entry = [&] {
        return slab.list[(static_cast<int64_t>(item.first_tile) + tile) * kTileQueries + warp_idx];
    };
    const auto leave_queries = [&] {
        release(shared.q_empty[slot]);
        slot += kConsumers;
        if (slot >= kQSlots) slot -= kQSlots, slot_parity ^= 1;
    };
    const auto weigh_tile = [&](int entry) {
        Partial partial;
        const int token = entry >> kEntryTokenShift;
        partial.place =
            entry < 0 ? -1
                      : ((token - slab.first_token) * num_heads + (item.num_tiles_and_head >> 8)) * topk +
                            entry % (1 << kEntryTokenShift);
        weigh(s, partial, scale_log2, token - item.token_at_zero, t);
        return partial;
    };
    const auto pack_weights = [&] {
#pragma unroll
        for (int j = 0; j < 16; ++j)
#pragma unroll
            for (int row = 0; row < 2; ++row)
                weights[j / 2][j % 2 * 2 + row] = ptx::pack_bf16(s[4 * j + 2 * row], s[4 * j + 2 * row + 1]);
    };
    const auto store = [&](const Partial& partial) {
        if (partial.place < 0) return;
        uint4* out = slab.partials + static_cast<int64_t>(partial.place) * (kPartialBytes / 16) + lane_idx;
        float2* max_sum = slab.max_sums + static_cast<int64_t>(partial.place) * kHeads + g;
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            if (t == 0) max_sum[8 * row] = make_float2(partial.best[row], partial.sum[row]);
#pragma unroll
            for (int j = 0; j < 16; j += 4) {
                const auto pair = [&](int n) {
                    return ptx::pack_bf16(o[4 * n + 2 * row], o[4 * n + 2 * row + 1]);
                };
                out[(row * 4 + j / 4) * 32] = make_uint4(pair(j), pair(j + 1), pair(j + 2), pair(j + 3));
            }
        }
    };

    enter_item();
    for (;;) {
        while (tile >= num_tiles) {
            if (num_tiles == 0) return;
            release(shared.kv_empty[stage]);
            leave_item();
            enter_item();
        }
        int entry = load_entry();
        ptx::barrier_wait(shared.q_full[slot], slot_parity);
        multiply_keys();
        ptx::wgmma_wait<0>();
        ptx::keep_registers(s);
        leave_queries();
        Partial partial = weigh_tile(entry);
        pack_weights();
        int last_stage = stage;
        for (;;) {
            tile += kConsumers;
            if (tile >= num_tiles) {
                leave_item();
                enter_item();
                // The product with V must be done before another item is waited for.
                if (tile >= num_tiles) break;
            }
            entry = load_entry();
            ptx::barrier_wait(shared.q_full[slot], slot_parity);
            multiply_keys();
            multiply_values(last_stage);
            ptx::wgmma_wait<1>();
            ptx::keep_registers(s);
            leave_queries();
            const Partial next = weigh_tile(entry);
            ptx::wgmma_wait_after(next.sum[0] + next.sum[1]);
            ptx::keep_registers(o);
            if (stage != last_stage) release(shared.kv_empty[last_stage]);
            pack_weights();
            store(partial);
            partial = next;
            last_stage = stage;
        }
        multiply_values(last_stage);
        ptx::wgmma_wait<0>();
        ptx::keep_registers(o);
        release(shared.kv_empty[last_stage]);
        store(partial);
    }
}

/// Partial results, in the order of the accumulator fragments, with each row's maximum and sum of weights.
template <class C>
__global__ void __launch_bounds__(kThreads, 1)
    sparse_prefill_kernel(const __grid_constant__ SparseJob job, const __grid_constant__ Maps maps,
                          const __grid_constant__ Slab slab) {
    extern __shared__ char raw[];
    Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
    if (threadIdx.x == 0) {
        for (int i = 0; i < kStages; ++i) {
            ptx::barrier_init(shared.kv_full[i], 4);
            ptx::barrier_init(shared.kv_empty[i], kConsumers * 4);
            ptx::barrier_init(shared.item_full[i], 1);
            ptx::barrier_init(shared.codes_full[i], 1);
        }
        for (int i = 0; i < kQSlots; ++i) {
            ptx::barrier_init(shared.q_full[i], 4);
            ptx::barrier_init(shared.q_empty[i], 4);
        }
        ptx::barrier_init_done();
    }
    __syncthreads();
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int group = static_cast<int>(threadIdx.x) / 128;
    constexpr bool kCodes = sizeof(C) == 1;  // whose feeding warps widen them
    if (group == 0) {
        ptx::release_registers<kCodes ? 56 : 40>();
        produce<C>(slab, maps, shared);
    } else {
        ptx::take_registers<kCodes ? 224 : 232>();
        consume<C>(job.p, slab, shared, group - 1);
    }
}

// ---- combine --------------------------------------------------------------------------------------

constexpr int kCombineWarps = 4;

/// A warp per (token, KV head) weighs the partial results by their sums, in ascending order of blocks.
__global__ void __launch_bounds__(kCombineWarps * 32, 4)
    combine_kernel(const __grid_constant__ SparseJob job, const __grid_constant__ Slab slab) {
    __shared__ float all_weights[kCombineWarps][kDecodeMaxTopk][kHeads];
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    if (*slab.num_items == 0) return;
    const int warp_idx = static_cast<int>(threadIdx.x / 32);
    auto& weights = all_weights[warp_idx];
    const int place = static_cast<int>(blockIdx.x) * kCombineWarps + warp_idx;
    const SparseAttentionParams& p = job.p;
    const int lane_idx = static_cast<int>(threadIdx.x % 32), g = lane_idx / 4, t = lane_idx % 4;
    const int num_heads = static_cast<int>(p.base.num_kv_heads), head = place % num_heads;
    const int64_t token = slab.first_token + place / num_heads;
    if (place >= job.plan.slab_tokens * num_heads || token >= p.base.num_tokens ||
        token >= p.base.cu_seqlens_q[p.base.num_seqs] || job.in_union(static_cast<int>(token), head))
        return;
    const int32_t* ids = p.block_ids + (token * num_heads + head) * p.topk;
    int used = 0;
    for (int first = 0; first < p.topk; first += 32)
        used += __popc(__ballot_sync(kFull, first + lane_idx < p.topk && ids[first + lane_idx] >= 0));
    {
        const float2* max_sum = slab.max_sums + place * p.topk * kHeads + lane_idx % kHeads;
        float best = -INFINITY, sum = 0;
#pragma unroll 8
        for (int k = lane_idx / kHeads; k < used; k += 2) best = fmaxf(best, max_sum[k * kHeads].x);
        best = fmaxf(best, __shfl_xor_sync(kFull, best, 16));
        if (best == -INFINITY) best = 0;
#pragma unroll 8
        for (int k = lane_idx / kHeads; k < used; k += 2) {
            const float2 part = max_sum[k * kHeads];
            const float weight = ptx::exp2_approx(part.x - best);
            weights[k][lane_idx % kHeads] = weight;
            sum += weight * part.y;
        }
        sum += __shfl_xor_sync(kFull, sum, 16);
        const float v_scale = p.base.v_scale ? p.base.v_scale[head] : 1.0f;
        const float inverse = sum == 0 ? 0.0f : v_scale / sum;
        for (int k = lane_idx / kHeads; k < used; k += 2) weights[k][lane_idx % kHeads] *= inverse;
        __syncwarp();
    }
    const uint4* partial = slab.partials + place * p.topk * (kPartialBytes / 16) + lane_idx;
    float o[64] = {};
#pragma unroll 2
    for (int k = 0; k < used; ++k, partial += kPartialBytes / 16) {
        uint4 x[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = __ldcs(partial + i * 32);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const float weight = weights[k][g + 8 * row];
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const uint4& y = x[row * 4 + i / 4];
                const uint32_t pair = i % 4 == 0 ? y.x : i % 4 == 1 ? y.y : i % 4 == 2 ? y.z : y.w;
                o[4 * i + 2 * row] += weight * __uint_as_float(pair << 16);
                o[4 * i + 2 * row + 1] += weight * __uint_as_float(pair & 0xFFFF0000u);
            }
        }
    }
    bf16* out = static_cast<bf16*>(p.base.out) + token * p.base.out_token_stride +
                (head * kHeads + g) * p.base.out_head_stride;
#pragma unroll
    for (int row = 0; row < 2; ++row)
        store_row_bf16(out + 8 * row * p.base.out_head_stride, o, row, 1.0f, t, true);
}

CUtensorMap page_map(const PagedAttentionParams& p, const void* cache, int64_t block_stride) {
    const bool codes = p.cache_dtype == DType::kE4M3;
    return make_tensor_map<4>(cache, {kDim, kPage, p.num_kv_heads, p.num_blocks},
                              {kDim, kPage * kDim, block_stride}, {codes ? 128 : 64, kPage, 1, 1},
                              codes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
}

}  // namespace

void sparse_prefill(const SparseAttentionParams& p, Stream stream) {
    constexpr const char* kOp = "sparse_attention";
    const PagedAttentionParams& b = p.base;
    const SparseJob job{p, make_prefill_plan(p)};
    const PrefillPlan& plan = job.plan;
    const Maps maps{make_tensor_map<3>(b.q, {kDim, b.num_heads, b.num_tokens},
                                       {b.q_head_stride, b.q_token_stride}, {64, kHeads, 1}),
                    page_map(b, b.k_cache, b.k_cache_block_stride),
                    page_map(b, b.v_cache, b.v_cache_block_stride)};
    list_choices(job, stream);
    listed_prefill(kOp, b,
                   {.num_tiles = job.at<int>(plan.counters),
                    .next_unit = job.at<int>(plan.counters) + 1,
                    .tiles = job.at<RowTile>(plan.union_tiles),
                    .pages = job.at<TilePage>(plan.union_pages)},
                   stream);
    const LaunchChain attend{kOp, dim3(static_cast<unsigned>(num_multiprocessors())), kThreads,
                             sizeof(Shared) + 1024, stream};
    const dim3 rows(static_cast<unsigned>(ceil_div(plan.slab_tokens * b.num_kv_heads, kCombineWarps)));
    const LaunchChain combine{kOp, rows, kCombineWarps * 32, 0, stream};
    const auto kernel =
        b.cache_dtype == DType::kE4M3 ? sparse_prefill_kernel<e4m3> : sparse_prefill_kernel<bf16>;
    for (int64_t i = 0; i < plan.num_slabs; ++i) {
        const Slab slab(job, i);
        attend(kernel, job, maps, slab);
        combine(combine_kernel, job, slab);
    }
}

}  // namespace mmx::cuda::sm90
