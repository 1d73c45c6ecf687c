#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/paged.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/ptx/wgmma.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/kernels/attention/choose.h"
#include "cuda/kernels/attention/sm90.h"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kPage = 128, kDim = 128, kHeads = 16;
constexpr float kLog2e = 1.4426950408889634f;
constexpr unsigned kFull = 0xFFFFFFFFu;

/// Everything that the kernels of one call share.
struct Job {
    SparseAttentionParams p;
    PrefillPlan plan;

    template <class T>
    __device__ __forceinline__ T* at(int64_t offset) const {
        return reinterpret_cast<T*>(static_cast<char*>(p.base.workspace) + offset);
    }
    __device__ __forceinline__ int slab_of(int token) const {
        return token / static_cast<int>(plan.slab_tokens);
    }
};

// ---- plan: which queries chose each block ---------------------------------------------------------

constexpr int kEntryThreads = 256, kScanThreads = 1024;
constexpr int kEntryTokenShift =
    6;  // an entry of a list: token << 6 | place in the token's own list of blocks
static_assert(kDecodeMaxTopk <= 1 << kEntryTokenShift);

/// f(index, token, place in the token's list, slab, bucket) of this thread's choice. 32 bits: choices are
/// fewer than 2^31.
template <class F>
__device__ __forceinline__ void for_my_choice(const Job& job, F&& f) {
    const SparseAttentionParams& p = job.p;
    const int topk = static_cast<int>(p.topk), num_heads = static_cast<int>(p.base.num_kv_heads);
    const int i = static_cast<int>(blockIdx.x) * kEntryThreads + static_cast<int>(threadIdx.x),
              row = i / topk;
    if (row >= static_cast<int>(p.base.num_tokens) * num_heads) return;
    const int token = row / num_heads, block = p.block_ids[i];
    if (block < 0) return;
    const TokenPlace place = place_of(token, p.base.cu_seqlens_q, p.base.seq_lens, p.base.num_seqs);
    if (place.seq < 0) return;
    const int slab = job.slab_of(token), head = row - token * num_heads;
    const int bucket = (head * static_cast<int>(p.base.num_seqs) + static_cast<int>(place.seq)) *
                           static_cast<int>(p.base.max_blocks_per_seq) +
                       block;
    f(i, token, i - row * topk, slab, slab * job.plan.slab_buckets + bucket);
}

/// Counts the choices of each bucket; a choice's rank in its list is the count it found.
__global__ void __launch_bounds__(kEntryThreads) count_kernel(Job job) {
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    for_my_choice(job, [&](int i, int, int, int, int64_t bucket) {
        job.at<int>(job.plan.ranks)[i] = atomicAdd(job.at<int>(job.plan.counts) + bucket, 1);
    });
}

/// One block per slab: where each bucket's list starts, its padding, and the items.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(Job job) {
    __shared__ uint64_t warp_total[kScanThreads / 32];
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const SparseAttentionParams& p = job.p;
    const PrefillPlan& plan = job.plan;
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    const int64_t slab = blockIdx.x;
    const int* counts = job.at<int>(plan.counts) + slab * plan.slab_buckets;
    int* starts = job.at<int>(plan.starts) + slab * plan.slab_buckets;
    int* list = job.at<int>(plan.lists) + slab * plan.slab_entries;
    PrefillItem* items = job.at<PrefillItem>(plan.items) + slab * plan.slab_items;
    uint64_t base = 0;  // row tiles in the high half, items in the low one
    for (int64_t first = 0; first < plan.slab_buckets; first += kScanThreads) {
        const int64_t bucket = first + tid;
        const int count = bucket < plan.slab_buckets ? counts[bucket] : 0;
        const int num_tiles = (count + kTileQueries - 1) / kTileQueries;
        const int num_items = (num_tiles + kRunTiles - 1) / kRunTiles;
        const uint64_t mine = static_cast<uint64_t>(num_tiles) << 32 | static_cast<unsigned>(num_items);
        uint64_t sum = mine;
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            const uint64_t other = __shfl_up_sync(kFull, sum, offset);
            if (lane_idx >= offset) sum += other;
        }
        if (lane_idx == 31) warp_total[warp_idx] = sum;
        __syncthreads();
        uint64_t before = base + sum - mine;
        for (int w = 0; w < kScanThreads / 32; ++w) {
            if (w < warp_idx) before += warp_total[w];
            base += warp_total[w];
        }
        __syncthreads();
        if (count == 0) continue;
        const int first_tile = static_cast<int>(before >> 32);
        starts[bucket] = first_tile * kTileQueries;
        for (int i = count; i < num_tiles * kTileQueries; ++i) list[first_tile * kTileQueries + i] = -1;
        const int64_t block = bucket % p.base.max_blocks_per_seq;
        const int64_t seq = bucket / p.base.max_blocks_per_seq % p.base.num_seqs;
        const int64_t head = bucket / p.base.max_blocks_per_seq / p.base.num_seqs;
        const int seq_len = p.base.seq_lens[seq];
        const int page = p.base.block_table[seq * p.base.block_table_stride + block];
        for (int i = 0; i < num_items; ++i) {
            const int begin = num_tiles * i / num_items, end = num_tiles * (i + 1) / num_items;
            items[static_cast<unsigned>(before) + i] = {
                page, first_tile + begin,
                static_cast<int>(block) * kPage - (seq_len - p.base.cu_seqlens_q[seq + 1]),
                static_cast<uint16_t>((end - begin) | static_cast<int>(head) << 8),
                static_cast<uint16_t>(min(kPage, seq_len - static_cast<int>(block) * kPage))};
        }
    }
    if (tid == 0) job.at<int>(plan.num_items)[slab] = static_cast<int>(static_cast<unsigned>(base));
}

__global__ void __launch_bounds__(kEntryThreads) scatter_kernel(Job job) {
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    for_my_choice(job, [&](int i, int token, int place, int slab, int64_t bucket) {
        const int at = job.at<int>(job.plan.starts)[bucket] + job.at<int>(job.plan.ranks)[i];
        job.at<int>(job.plan.lists)[slab * job.plan.slab_entries + at] = token << kEntryTokenShift | place;
    });
}

// ---- partial attention of each (query, block) -----------------------------------------------------

constexpr int kConsumers = 3, kThreads = (1 + kConsumers) * 128;
constexpr int kQSlots = 6, kStages = 2;
constexpr int kHalfPageBytes = kPage * 128;  // 64 of the 128 dimensions
constexpr int kHalfTileBytes = 64 * 128;

struct Shared {
    alignas(1024) char k[kStages][2 * kHalfPageBytes];
    alignas(1024) char v[kStages][2 * kHalfPageBytes];
    alignas(1024) char q[kQSlots][2 * kHalfTileBytes];
    uint64_t kv_full[kStages], kv_empty[kStages], q_full[kQSlots], q_empty[kQSlots];
};

struct Maps {
    CUtensorMap q;     // (dimension, head, token)
    CUtensorMap k, v;  // (dimension, slot, head, page)
};

/// Four warps feed the ring: each a quarter of K and V of the next item, while this one is worked on, and one
/// of the four gathered queries of each row tile. One warp alone would issue its loads too slowly.
__device__ __forceinline__ void produce(const Job& job, const Maps& maps, Shared& shared, int slab) {
    const PrefillPlan& plan = job.plan;
    const int warp_idx = static_cast<int>(threadIdx.x / 32), lane_idx = static_cast<int>(threadIdx.x % 32);
    const int half = warp_idx % 2;
    const int num_items = job.at<int>(plan.num_items)[slab];
    const PrefillItem* items = job.at<PrefillItem>(plan.items) + slab * plan.slab_items;
    const int* list = job.at<int>(plan.lists) + slab * plan.slab_entries + warp_idx;
    static_assert(kRunTiles <= 32);
    const auto load_entry = [&](const PrefillItem& item) {
        return lane_idx < (item.num_tiles_and_head & 0xFF)
                   ? list[(static_cast<int64_t>(item.first_tile) + lane_idx) * kTileQueries]
                   : -1;
    };
    const int step = static_cast<int>(gridDim.x);
    int i = static_cast<int>(blockIdx.x), num_done = 0, slot = 0, slot_parity = 1;
    if (i >= num_items) return;
    PrefillItem item = items[i], next = items[min(i + step, num_items - 1)];
    int entries = load_entry(item);
    for (; i < num_items; i += step, ++num_done) {
        const PrefillItem after_next = items[min(i + 2 * step, num_items - 1)];
        const int next_entries = load_entry(next);
        const int stage = num_done % kStages, num_tiles = item.num_tiles_and_head & 0xFF;
        const int head = item.num_tiles_and_head >> 8;
        if (lane_idx == 0) {
            ptx::barrier_wait(shared.kv_empty[stage], (num_done / kStages & 1) ^ 1);
            ptx::barrier_arrive_expect(shared.kv_full[stage], kHalfPageBytes);
            char* page = (warp_idx < 2 ? shared.k[stage] : shared.v[stage]) + half * kHalfPageBytes;
            ptx::tma_load_4d(page, warp_idx < 2 ? maps.k : maps.v, shared.kv_full[stage], half * 64, 0, head,
                             item.page);
        }
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
        item = next;
        next = after_next;
        entries = next_entries;
    }
}

/// A warpgroup takes every third row tile; a warp is one query with its 16 heads.
__device__ __forceinline__ void consume(const Job& job, Shared& shared, int slab, int group) {
    const PrefillPlan& plan = job.plan;
    const SparseAttentionParams& p = job.p;
    const int tid = static_cast<int>(threadIdx.x) % 128, warp_idx = tid / 32, lane_idx = tid % 32;
    const int g = lane_idx / 4, t = lane_idx % 4;
    const int num_items = job.at<int>(plan.num_items)[slab];
    const PrefillItem* items = job.at<PrefillItem>(plan.items) + slab * plan.slab_items;
    const int* list = job.at<int>(plan.lists) + slab * plan.slab_entries;
    const int slab_begin = slab * static_cast<int>(plan.slab_tokens);
    const float scale_log2 = p.base.scale * kLog2e;
    const int step = static_cast<int>(gridDim.x);
    int i = static_cast<int>(blockIdx.x);
    if (i >= num_items) return;
    PrefillItem next = items[i];
    int num_done = 0, turn = 0, slot = group, slot_parity = 0;  // turn: whose row tile comes next
    for (; i < num_items; i += step, ++num_done) {
        const PrefillItem item = next;
        next = items[min(i + step, num_items - 1)];
        const int stage = num_done % kStages, num_tiles = item.num_tiles_and_head & 0xFF;
        const int head = item.num_tiles_and_head >> 8;
        ptx::barrier_wait(shared.kv_full[stage], num_done / kStages & 1);
        if (item.num_keys < kPage) {
            // Unused slots may hold NaN, and 0 x NaN is NaN. Every group writes the same zeros.
            for (int b = tid; b < (kPage - item.num_keys) * 16; b += 128) {
                const int key = item.num_keys + b / 16, half = b / 8 % 2;
                *reinterpret_cast<uint4*>(shared.v[stage] + half * kHalfPageBytes + key * 128 + b % 8 * 16) =
                    make_uint4(0, 0, 0, 0);
            }
            ptx::fence_async_proxy();
            ptx::named_barrier(1 + group, 128);
        }
        for (int tile = (group - turn + kConsumers) % kConsumers; tile < num_tiles; tile += kConsumers) {
            const int entry = list[(static_cast<int64_t>(item.first_tile) + tile) * kTileQueries + warp_idx];
            ptx::barrier_wait(shared.q_full[slot], slot_parity);
            float s[64];
            const uint64_t q = ptx::wgmma_operand(ptx::smem_address(shared.q[slot]));
            const uint64_t k = ptx::wgmma_operand(ptx::smem_address(shared.k[stage]));
            ptx::wgmma_begin();
#pragma unroll
            for (int step = 0; step < 8; ++step)
                ptx::wgmma_64x128(s, q + ((step / 4 * kHalfTileBytes + step % 4 * 32) >> 4),
                                  k + ((step / 4 * kHalfPageBytes + step % 4 * 32) >> 4), step > 0);
            ptx::wgmma_commit();
            ptx::wgmma_wait<0>();
            if (lane_idx == 0) ptx::barrier_arrive(shared.q_empty[slot]);
            slot += kConsumers;
            if (slot >= kQSlots) slot -= kQSlots, slot_parity ^= 1;

            const int token = entry >> kEntryTokenShift, last_key = token - item.token_at_zero;
            if (last_key < kPage - 1) {
#pragma unroll
                for (int j = 0; j < 16; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        if (8 * j + 2 * t + e % 2 > last_key) s[4 * j + e] = -INFINITY;
            }
            float best[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
            for (int j = 0; j < 16; ++j)
#pragma unroll
                for (int row = 0; row < 2; ++row)
                    best[row] = fmaxf(best[row], fmaxf(s[4 * j + 2 * row], s[4 * j + 2 * row + 1]));
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                best[row] = fmaxf(best[row], __shfl_xor_sync(kFull, best[row], 1));
                best[row] = fmaxf(best[row], __shfl_xor_sync(kFull, best[row], 2)) * scale_log2;
                if (best[row] == -INFINITY) best[row] = 0;
            }
            uint32_t weights[8][4];
#pragma unroll
            for (int j = 0; j < 16; ++j)
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    const float a = ptx::exp2_approx(s[4 * j + 2 * row] * scale_log2 - best[row]);
                    const float b = ptx::exp2_approx(s[4 * j + 2 * row + 1] * scale_log2 - best[row]);
                    sum[row] += a + b;
                    weights[j / 2][j % 2 * 2 + row] = ptx::pack_bf16(a, b);
                }
            float o[64];
            const uint64_t v = ptx::wgmma_operand(ptx::smem_address(shared.v[stage]), kHalfPageBytes);
            ptx::wgmma_begin();
#pragma unroll
            for (int step = 0; step < 8; ++step)
                ptx::wgmma_64x128_transposed(o, weights[step], v + ((step * 16 * 128) >> 4), step > 0);
            ptx::wgmma_commit();
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                sum[row] += __shfl_xor_sync(kFull, sum[row], 1);
                sum[row] += __shfl_xor_sync(kFull, sum[row], 2);
            }
            ptx::wgmma_wait<0>();
            if (entry < 0) continue;

            const int64_t place =
                (static_cast<int64_t>(token - slab_begin) * p.base.num_kv_heads + head) * p.topk +
                entry % (1 << kEntryTokenShift);
            uint4* out = job.at<uint4>(plan.partials) + place * (kPartialBytes / 16) + lane_idx;
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                const float inverse = sum[row] == 0 ? 0.0f : 1.0f / sum[row];
                if (t == 0)
                    job.at<float>(plan.lse)[place * kHeads + g + 8 * row] = best[row] + __log2f(sum[row]);
#pragma unroll
                for (int j = 0; j < 16; j += 4) {
                    const auto pair = [&](int n) {
                        return ptx::pack_bf16(o[4 * n + 2 * row] * inverse, o[4 * n + 2 * row + 1] * inverse);
                    };
                    out[(row * 4 + j / 4) * 32] = make_uint4(pair(j), pair(j + 1), pair(j + 2), pair(j + 3));
                }
            }
        }
        turn = (turn + num_tiles) % kConsumers;
        if (lane_idx == 0) ptx::barrier_arrive(shared.kv_empty[stage]);
    }
}

/// Partial results, normalised, in the order of the accumulator fragments; base-2 log of each row's sum.
__global__ void __launch_bounds__(kThreads, 1)
    sparse_prefill_kernel(const __grid_constant__ Job job, const __grid_constant__ Maps maps, int slab) {
    extern __shared__ char raw[];
    Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
    if (threadIdx.x == 0) {
        for (int i = 0; i < kStages; ++i) {
            ptx::barrier_init(shared.kv_full[i], 4);
            ptx::barrier_init(shared.kv_empty[i], kConsumers * 4);
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
    if (group == 0) {
        ptx::release_registers<32>();
        produce(job, maps, shared, slab);
    } else {
        ptx::take_registers<160>();
        consume(job, shared, slab, group - 1);
    }
}

// ---- combine --------------------------------------------------------------------------------------

constexpr int kCombineWarps = 4;

/// Lane t of a quad gets register t of each of its lanes, in lane order.
__device__ __forceinline__ void quad_transpose(uint32_t (&r)[4], int t) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & bit) continue;
            const bool upper = (t & bit) != 0;
            const uint32_t got = __shfl_xor_sync(kFull, upper ? r[i] : r[i | bit], bit);
            (upper ? r[i] : r[i | bit]) = got;
        }
}

/// A warp per (token, KV head) weighs the partial results by their sums, in ascending order of blocks.
__global__ void __launch_bounds__(kCombineWarps * 32, 4)
    combine_kernel(const __grid_constant__ Job job, int slab) {
    __shared__ float weights[kCombineWarps][kDecodeMaxTopk][kHeads];
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const SparseAttentionParams& p = job.p;
    const int warp_idx = static_cast<int>(threadIdx.x / 32), lane_idx = static_cast<int>(threadIdx.x % 32);
    const int g = lane_idx / 4, t = lane_idx % 4;
    const int num_heads = static_cast<int>(p.base.num_kv_heads);
    const int place = static_cast<int>(blockIdx.x) * kCombineWarps + warp_idx;
    const int64_t token = slab * job.plan.slab_tokens + place / num_heads;
    const int head = place % num_heads;
    if (place >= job.plan.slab_tokens * num_heads || token >= p.base.num_tokens ||
        token >= p.base.cu_seqlens_q[p.base.num_seqs])
        return;
    const int32_t* ids = p.block_ids + (token * num_heads + head) * p.topk;
    int used = 0;
    for (int first = 0; first < p.topk; first += 32)
        used += __popc(__ballot_sync(kFull, first + lane_idx < p.topk && ids[first + lane_idx] >= 0));
    {
        const float* lse = job.at<float>(job.plan.lse) + place * p.topk * kHeads + lane_idx % kHeads;
        float best = -INFINITY, sum = 0;
#pragma unroll 8
        for (int k = lane_idx / kHeads; k < used; k += 2) best = fmaxf(best, lse[k * kHeads]);
        best = fmaxf(best, __shfl_xor_sync(kFull, best, 16));
        if (best == -INFINITY) best = 0;
        for (int k = lane_idx / kHeads; k < used; k += 2) {
            const float weight = ptx::exp2_approx(lse[k * kHeads] - best);
            weights[warp_idx][k][lane_idx % kHeads] = weight;
            sum += weight;
        }
        sum += __shfl_xor_sync(kFull, sum, 16);
        const float inverse = 1.0f / sum;
        for (int k = lane_idx / kHeads; k < used; k += 2) weights[warp_idx][k][lane_idx % kHeads] *= inverse;
        __syncwarp();
    }
    const uint4* partial =
        job.at<uint4>(job.plan.partials) + place * p.topk * (kPartialBytes / 16) + lane_idx;
    float o[2][32] = {};
#pragma unroll 2
    for (int k = 0; k < used; ++k, partial += kPartialBytes / 16) {
        uint4 x[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = __ldcs(partial + i * 32);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const float weight = weights[warp_idx][k][g + 8 * row];
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const uint4& y = x[row * 4 + i / 4];
                const uint32_t pair = i % 4 == 0 ? y.x : i % 4 == 1 ? y.y : i % 4 == 2 ? y.z : y.w;
                o[row][2 * i] += weight * __uint_as_float(pair << 16);
                o[row][2 * i + 1] += weight * __uint_as_float(pair & 0xFFFF0000u);
            }
        }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        bf16* out = static_cast<bf16*>(p.base.out) + token * p.base.out_token_stride +
                    (head * kHeads + g + 8 * row) * p.base.out_head_stride + 8 * t;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t pairs[4];
#pragma unroll
            for (int j = 0; j < 4; ++j)
                pairs[j] = ptx::pack_bf16(o[row][8 * i + 2 * j], o[row][8 * i + 2 * j + 1]);
            quad_transpose(pairs, t);
            *reinterpret_cast<uint4*>(out + 32 * i) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    }
}

CUtensorMap page_map(const PagedAttentionParams& p, const void* cache, int64_t block_stride) {
    return make_tensor_map<4>(cache, {kDim, kPage, p.num_kv_heads, p.num_blocks},
                              {kDim, kPage * kDim, block_stride}, {64, kPage, 1, 1});
}

}  // namespace

void sparse_prefill(const SparseAttentionParams& p, Stream stream) {
    constexpr const char* kOp = "sparse_attention";
    const PagedAttentionParams& b = p.base;
    const Job job{p, make_prefill_plan(p)};
    const Maps maps{make_tensor_map<3>(b.q, {kDim, b.num_heads, b.num_tokens},
                                       {b.q_head_stride, b.q_token_stride}, {64, kHeads, 1}),
                    page_map(b, b.k_cache, b.k_cache_block_stride),
                    page_map(b, b.v_cache, b.v_cache_block_stride)};
    MMX_CUDA_CHECK(cudaMemsetAsync(static_cast<char*>(b.workspace) + job.plan.counts, 0,
                                   static_cast<size_t>(job.plan.num_slabs * job.plan.slab_buckets * 4),
                                   to_cuda(stream)));
    const dim3 entries(
        static_cast<unsigned>(ceil_div(b.num_tokens * b.num_kv_heads * p.topk, kEntryThreads)));
    Launch{kOp, entries, kEntryThreads, 0, stream}(count_kernel, job);
    LaunchChain{kOp, dim3(static_cast<unsigned>(job.plan.num_slabs)), kScanThreads, 0, stream}(scan_kernel,
                                                                                               job);
    LaunchChain{kOp, entries, kEntryThreads, 0, stream}(scatter_kernel, job);
    const LaunchChain attend{kOp, dim3(static_cast<unsigned>(num_multiprocessors())), kThreads,
                             sizeof(Shared) + 1024, stream};
    const dim3 rows(static_cast<unsigned>(ceil_div(job.plan.slab_tokens * b.num_kv_heads, kCombineWarps)));
    const LaunchChain combine{kOp, rows, kCombineWarps * 32, 0, stream};
    for (int slab = 0; slab < static_cast<int>(job.plan.num_slabs); ++slab) {
        attend(sparse_prefill_kernel, job, maps, slab);
        combine(combine_kernel, job, slab);
    }
}

}  // namespace mmx::cuda::sm90
