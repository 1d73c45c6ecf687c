#include <cooperative_groups.h>

#include "cpp/core/math.h"
#include "cuda/common/batch.cuh"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/kernels/attention/choose.h"
#include "cuda/kernels/attention/sm90.h"

namespace mmx::cuda::sm90 {

namespace {

namespace cg = cooperative_groups;

constexpr int kPage = 128, kDim = 128, kRows = 16;
constexpr int kStageKeys = 64;                // half a page: 16 keys for each warp of a group
constexpr int kHalfBytes = kStageKeys * 128;  // 64 of the 128 dimensions
constexpr int kStageBytes = 4 * kHalfBytes;   // K and V
constexpr int kRowFloats = kDim + 8;          // spreads the rows of a fragment over the banks
constexpr int kRowItems = kRows * kDim / 4;   // a thread block's result in pieces of 16 bytes
constexpr int kMaxSplits = 16;
constexpr float kLog2e = 1.4426950408889634f;
constexpr unsigned kFull = 0xFFFFFFFFu;

/// kGroups groups of four warps take the stages in turn; one more warp feeds the ring.
template <int kGroups>
struct Shared {
    static constexpr int kWarps = kGroups * 4, kThreads = kWarps * 32 + 32;
    // A multiple of the groups, so that a stage is always one group's. One group: 192 KB in flight by two
    // blocks.
    static constexpr int kStages = kGroups == 1 ? 3 : 4;
    union {
        alignas(1024) char ring[kStages][kStageBytes];  // K, then V, each as two halves of the dimensions
        float out[kWarps][kRows][kRowFloats];           // the warps' results, once the ring is empty
    };
    // What the other blocks of the cluster push here: this block's part of the rows, from each of them.
    float4 received[kRowItems];
    float received_max[kMaxSplits][kRows], received_sum[kMaxSplits][kRows];
    float row_max[kWarps][kRows], row_sum[kWarps][kRows];
    int first_position[kDecodeMaxTopk];
    int num_listed;
    uint64_t full[kStages], empty[kStages];
};
static_assert(sizeof(Shared<1>) <= 113 * 1024, "two thread blocks must fit a multiprocessor");

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
    return {token, kv_head, static_cast<int>(p.num_heads / p.num_kv_heads), static_cast<int>(place.seq),
            static_cast<int>(place.position)};
}

/// Half pages [begin, end) of a list of pages; lane i of the feeding warp holds pages i and i + 32.
struct Halves {
    int begin, end, page0, page1;
};

template <int kGroups>
__device__ __forceinline__ void feed(Shared<kGroups>& shared, const Maps& maps, const Halves& halves,
                                     int kv_head, int from, int to) {
    constexpr int kStages = Shared<kGroups>::kStages;
    for (int i = from; i < to; ++i) {
        const int index = (halves.begin + i) / 2, stage = i % kStages;
        const int low = __shfl_sync(kFull, halves.page0, index % 32);
        const int high = __shfl_sync(kFull, halves.page1, index % 32);
        if (threadIdx.x % 32 != 0) continue;
        if (i >= kStages) ptx::barrier_wait(shared.empty[stage], (i / kStages & 1) ^ 1);
        ptx::barrier_arrive_expect(shared.full[stage], kStageBytes);
        const int page = index < 32 ? low : high, slot = (halves.begin + i) % 2 * kStageKeys;
        for (int half = 0; half < 2; ++half)
            ptx::tma_load_4d(shared.ring[stage] + half * kHalfBytes, maps.k, shared.full[stage], half * 64,
                             slot, kv_head, page);
        for (int half = 0; half < 2; ++half)
            ptx::tma_load_4d(shared.ring[stage] + (2 + half) * kHalfBytes, maps.v, shared.full[stage],
                             half * 64, slot, kv_head, page);
    }
}

/// A warp's running softmax over tiles of 16 heads x 16 keys.
struct Attend {
    uint32_t q[8][4];
    float o[16][4] = {};
    float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {0, 0};
    float scale_log2;
    int lane_idx, t;

    __device__ __forceinline__ Attend(const PagedAttentionParams& p, const Unit& unit)
        : scale_log2(p.scale * kLog2e), lane_idx(static_cast<int>(threadIdx.x % 32)), t(lane_idx % 4) {
        const bf16* rows = static_cast<const bf16*>(p.q) + unit.token * p.q_token_stride +
                           static_cast<int64_t>(unit.kv_head) * unit.group * p.q_head_stride + 2 * t;
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const int head = lane_idx / 4 + 8 * row;
            const bf16* x = rows + head * p.q_head_stride;
#pragma unroll
            for (int step = 0; step < 8; ++step)
#pragma unroll
                for (int high = 0; high < 2; ++high)
                    q[step][2 * high + row] =
                        head < unit.group ? *reinterpret_cast<const uint32_t*>(x + step * 16 + high * 8) : 0;
        }
    }

    /// Address of this lane's row in the swizzled tile of 16 keys from `first_key` on; `chunk`: which 16
    /// bytes.
    __device__ __forceinline__ uint32_t row_address(uint32_t tile, int key, int chunk) const {
        return tile + chunk / 8 * kHalfBytes + key * 128 + ((chunk % 8 ^ key % 8) << 4);
    }

    __device__ __forceinline__ void add_tile(uint32_t k_tile, uint32_t v_tile, int first_key,
                                             int last_visible) {
        float s[2][4] = {};
#pragma unroll
        for (int step = 0; step < 8; ++step) {
            uint32_t k[4];
            ptx::load_matrices(k, row_address(k_tile, first_key + lane_idx / 16 * 8 + lane_idx % 8,
                                              step * 2 + lane_idx / 8 % 2));
#pragma unroll
            for (int n = 0; n < 2; ++n)
                ptx::mma_16x8x16(s[n], q[step][0], q[step][1], q[step][2], q[step][3], k[2 * n],
                                 k[2 * n + 1]);
        }
        if (last_visible < 15) {
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (n * 8 + 2 * t + i % 2 > last_visible) s[n][i] = -INFINITY;
        }
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float best =
                fmaxf(fmaxf(s[0][2 * row], s[0][2 * row + 1]), fmaxf(s[1][2 * row], s[1][2 * row + 1]));
            best = fmaxf(best, __shfl_xor_sync(kFull, best, 1));
            best = fmaxf(best, __shfl_xor_sync(kFull, best, 2)) * scale_log2;
            const float next = fmaxf(row_max[row], best);
            const float shift = next == -INFINITY ? 0.0f : next;
            const float correction = ptx::exp2_approx(row_max[row] - shift);
            row_max[row] = next;
            float sum = 0;
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int i = 2 * row; i < 2 * row + 2; ++i) {
                    s[n][i] = ptx::exp2_approx(s[n][i] * scale_log2 - shift);
                    sum += s[n][i];
                }
            row_sum[row] = row_sum[row] * correction + sum;
            if (__any_sync(kFull, correction != 1.0f)) {
#pragma unroll
                for (int i = 0; i < 16; ++i) {
                    o[i][2 * row] *= correction;
                    o[i][2 * row + 1] *= correction;
                }
            }
        }
        const uint32_t a0 = ptx::pack_bf16(s[0][0], s[0][1]), a1 = ptx::pack_bf16(s[0][2], s[0][3]);
        const uint32_t a2 = ptx::pack_bf16(s[1][0], s[1][1]), a3 = ptx::pack_bf16(s[1][2], s[1][3]);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            uint32_t v[4];
            ptx::load_matrices_transposed(
                v,
                row_address(v_tile, first_key + lane_idx / 8 % 2 * 8 + lane_idx % 8, i * 2 + lane_idx / 16));
#pragma unroll
            for (int n = 0; n < 2; ++n)
                ptx::mma_16x8x16(o[2 * i + n], a0, a1, a2, a3, v[2 * n], v[2 * n + 1]);
        }
    }
};

/// Works off `num_halves` half pages, of which the first is half `first_half` of the list, and leaves each
/// warp's rows, maxima (base 2) and sums in shared memory, behind a barrier of the whole block.
template <int kGroups>
__device__ __forceinline__ void attend_halves(Shared<kGroups>& shared, const PagedAttentionParams& p,
                                              const Unit& unit, int first_half, int num_halves) {
    const int warp_idx = static_cast<int>(threadIdx.x / 32), lane_idx = static_cast<int>(threadIdx.x % 32);
    constexpr int kStages = Shared<kGroups>::kStages;
    const bool works = warp_idx < Shared<kGroups>::kWarps;
    Attend a(p, unit);
    if (works) {
        const int first_key = warp_idx % 4 * 16;
        for (int i = warp_idx / 4; i < num_halves; i += kGroups) {
            const int stage = i % kStages, half = first_half + i;
            const int last_visible =
                unit.position - shared.first_position[half / 2] - half % 2 * kStageKeys - first_key;
            ptx::barrier_wait(shared.full[stage], i / kStages & 1);
            const uint32_t k_tile = ptx::smem_address(shared.ring[stage]);
            if (last_visible >= 0) {
                if (last_visible < 15) {
                    // An unused slot may hold NaN, and 0 x NaN is NaN.
                    for (int b = lane_idx; b < (15 - last_visible) * 16; b += 32) {
                        const int key = first_key + last_visible + 1 + b / 16;
                        *reinterpret_cast<uint4*>(shared.ring[stage] + (2 + b / 8 % 2) * kHalfBytes +
                                                  key * 128 + b % 8 * 16) = make_uint4(0, 0, 0, 0);
                    }
                    ptx::fence_async_proxy();
                    __syncwarp();
                }
                a.add_tile(k_tile, k_tile + 2 * kHalfBytes, first_key, last_visible);
            }
            __syncwarp();
            if (lane_idx == 0) ptx::barrier_arrive(shared.empty[stage]);
        }
    }
    __syncthreads();
    if (works) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float sum = a.row_sum[row];
            sum += __shfl_xor_sync(kFull, sum, 1);
            sum += __shfl_xor_sync(kFull, sum, 2);
            const int head = lane_idx / 4 + row * 8;
            if (a.t == 0) {
                shared.row_max[warp_idx][head] = a.row_max[row];
                shared.row_sum[warp_idx][head] = sum;
            }
#pragma unroll
            for (int n = 0; n < 16; ++n)
                *reinterpret_cast<float2*>(&shared.out[warp_idx][head][n * 8 + 2 * a.t]) =
                    make_float2(a.o[n][2 * row], a.o[n][2 * row + 1]);
        }
    }
    __syncthreads();
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

template <int kGroups>
__device__ __forceinline__ Piece merge_warps(const Shared<kGroups>& shared, int item) {
    const int head = item / (kDim / 4), d = item % (kDim / 4) * 4;
    return merge<Shared<kGroups>::kWarps>([&](int w) {
        return Piece{*reinterpret_cast<const float4*>(&shared.out[w][head][d]), shared.row_max[w][head],
                     shared.row_sum[w][head]};
    });
}

__device__ __forceinline__ void store_out(const PagedAttentionParams& p, const Unit& unit, int item,
                                          const Piece& piece) {
    const int head = item / (kDim / 4), d = item % (kDim / 4) * 4;
    if (head >= unit.group) return;
    const float inverse = 1.0f / piece.sum;
    *reinterpret_cast<uint2*>(static_cast<bf16*>(p.out) + unit.token * p.out_token_stride +
                              (unit.kv_head * unit.group + head) * p.out_head_stride + d) =
        make_uint2(ptx::pack_bf16(piece.x.x * inverse, piece.x.y * inverse),
                   ptx::pack_bf16(piece.x.z * inverse, piece.x.w * inverse));
}

/// By the feeding warp, before the block's first barrier.
template <int kGroups>
__device__ __forceinline__ void init_ring(Shared<kGroups>& shared) {
    if (threadIdx.x % 32 == 0) {
        for (int i = 0; i < Shared<kGroups>::kStages; ++i) {
            ptx::barrier_init(shared.full[i], 1);
            ptx::barrier_init(shared.empty[i], 4);
        }
        ptx::barrier_init_done();
    }
    __syncwarp();
}

/// kSplits blocks of one cluster share the pages of (token, KV head) = blockIdx (z, y). Each pushes its rows
/// to the block that owns them, in distributed shared memory; the owner sums them in rank order.
template <int kGroups, int kSplits>
__global__ void __launch_bounds__(Shared<kGroups>::kThreads, kGroups == 1 ? 2 : 1)
    sparse_decode_kernel(const __grid_constant__ SparseAttentionParams p, const __grid_constant__ Maps maps) {
    extern __shared__ __align__(1024) char raw[];
    auto& shared = *reinterpret_cast<Shared<kGroups>*>(raw);
    const bool feeds = threadIdx.x >= Shared<kGroups>::kWarps * 32;
    if (feeds) init_ring(shared);
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int lane_idx = static_cast<int>(threadIdx.x % 32), split = static_cast<int>(blockIdx.x);
    const int topk = static_cast<int>(p.topk);
    const auto kv_head = static_cast<int>(blockIdx.y), token = static_cast<int>(blockIdx.z);
    const int32_t* ids = p.block_ids + (static_cast<int64_t>(token) * p.base.num_kv_heads + kv_head) * topk;
    const int id0 = feeds && lane_idx < topk ? ids[lane_idx] : -1;
    const int id1 = feeds && lane_idx + 32 < topk ? ids[lane_idx + 32] : -1;
    const Unit unit = make_unit(p.base, token, kv_head);
    if (unit.seq < 0) return;
    cg::cluster_group cluster = cg::this_cluster();
    if (kSplits > 1) cluster.barrier_arrive();
    Halves halves{};
    if (feeds) {
        const int32_t* table = p.base.block_table + unit.seq * p.base.block_table_stride;
        if (id0 >= 0) halves.page0 = table[id0], shared.first_position[lane_idx] = id0 * kPage;
        if (id1 >= 0) halves.page1 = table[id1], shared.first_position[lane_idx + 32] = id1 * kPage;
        // Only the last block can have a second half that nothing of is visible.
        const bool unseen = max(id0, id1) * kPage + kStageKeys > unit.position;
        const int num_halves =
            2 * (__popc(__ballot_sync(kFull, id0 >= 0)) + __popc(__ballot_sync(kFull, id1 >= 0))) -
            (__any_sync(kFull, unseen) ? 1 : 0);
        if (lane_idx == 0) shared.num_listed = num_halves;
        halves.begin = num_halves * split / kSplits;
        halves.end = num_halves * (split + 1) / kSplits;
        feed(shared, maps, halves, kv_head, 0, min(Shared<kGroups>::kStages, halves.end - halves.begin));
    }
    __syncthreads();
    const int begin = shared.num_listed * split / kSplits, end = shared.num_listed * (split + 1) / kSplits;
    if (feeds) feed(shared, maps, halves, kv_head, Shared<kGroups>::kStages, end - begin);
    attend_halves(shared, p.base, unit, begin, end - begin);

    const int tid = static_cast<int>(threadIdx.x);
    if constexpr (kSplits == 1) {
        for (int i = tid; i < kRowItems; i += Shared<kGroups>::kThreads)
            store_out(p.base, unit, i, merge_warps(shared, i));
    } else {
        constexpr int kOwn = kRowItems / kSplits;  // items of the rows that a block owns
        cluster.barrier_wait();
        for (int i = tid; i < kRowItems; i += Shared<kGroups>::kThreads) {
            const Piece piece = merge_warps(shared, i);
            Shared<kGroups>& owner = *cluster.map_shared_rank(&shared, i / kOwn);
            owner.received[split * kOwn + i % kOwn] = piece.x;
            if (i % (kDim / 4) == 0) {
                owner.received_max[split][i / (kDim / 4)] = piece.max;
                owner.received_sum[split][i / (kDim / 4)] = piece.sum;
            }
        }
        cluster.sync();
        for (int i = tid; i < kOwn; i += Shared<kGroups>::kThreads) {
            const int item = split * kOwn + i, head = item / (kDim / 4);
            store_out(p.base, unit, item, merge<kSplits>([&](int r) {
                          return Piece{shared.received[r * kOwn + i], shared.received_max[r][head],
                                       shared.received_sum[r][head]};
                      }));
        }
    }
}

/// Block x takes `chunk_pages` pages from page x * chunk_pages on of its sequence; partial results go to the
/// workspace unless there is one chunk.
__global__ void __launch_bounds__(Shared<1>::kThreads, 2)
    paged_decode_kernel(const __grid_constant__ PagedAttentionParams p, const __grid_constant__ Maps maps,
                        int chunk_pages) {
    extern __shared__ __align__(1024) char raw[];
    auto& shared = *reinterpret_cast<Shared<1>*>(raw);
    const bool feeds = threadIdx.x >= Shared<1>::kWarps * 32;
    if (feeds) init_ring(shared);
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int lane_idx = static_cast<int>(threadIdx.x % 32), num_splits = static_cast<int>(gridDim.x);
    const Unit unit = make_unit(p, static_cast<int>(blockIdx.z), static_cast<int>(blockIdx.y));
    const int first_page = static_cast<int>(blockIdx.x) * chunk_pages;
    const int num_halves = min(2 * chunk_pages, unit.position / kStageKeys + 1 - 2 * first_page);
    if (unit.seq < 0 || num_halves <= 0) return;
    Halves halves{0, num_halves, 0, 0};
    if (feeds) {
        const int32_t* table = p.block_table + unit.seq * p.block_table_stride + first_page;
        if (2 * lane_idx < num_halves) halves.page0 = table[lane_idx];
        if (2 * (lane_idx + 32) < num_halves) halves.page1 = table[lane_idx + 32];
        shared.first_position[lane_idx] = (first_page + lane_idx) * kPage;
        shared.first_position[lane_idx + 32] = (first_page + lane_idx + 32) * kPage;
        feed(shared, maps, halves, unit.kv_head, 0, min(Shared<1>::kStages, num_halves));
    }
    __syncthreads();
    if (feeds) feed(shared, maps, halves, unit.kv_head, Shared<1>::kStages, num_halves);
    attend_halves(shared, p, unit, 0, num_halves);

    float* partial =
        static_cast<float*>(p.workspace) +
        ((static_cast<int64_t>(unit.token) * p.num_kv_heads + unit.kv_head) * num_splits + blockIdx.x) *
            kDecodePartialFloats;
    for (int i = static_cast<int>(threadIdx.x); i < kRowItems; i += Shared<1>::kThreads) {
        const Piece piece = merge_warps(shared, i);
        if (num_splits == 1) {
            store_out(p, unit, i, piece);
            continue;
        }
        reinterpret_cast<float4*>(partial)[i] = piece.x;
        if (i % (kDim / 4) == 0) {
            partial[kRows * kDim + i / (kDim / 4)] = piece.max;
            partial[kRows * kDim + kRows + i / (kDim / 4)] = piece.sum;
        }
    }
}

/// Sums the partial results of one (token, KV head) in chunk order.
__global__ void __launch_bounds__(kRowItems)
    paged_decode_merge_kernel(PagedAttentionParams p, int chunk_pages, int num_splits) {
    ptx::let_successors_start();
    const int item = static_cast<int>(threadIdx.x), head = item / (kDim / 4);
    const Unit unit = make_unit(p, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x));
    const int used = (unit.position / kPage + chunk_pages) / chunk_pages;
    const float* partial = static_cast<const float*>(p.workspace) +
                           (static_cast<int64_t>(unit.token) * p.num_kv_heads + unit.kv_head) * num_splits *
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
    store_out(p, unit, item, all);
}

Maps make_maps(const PagedAttentionParams& p) {
    const auto map = [&](const void* cache, int64_t block_stride) {
        return make_tensor_map<4>(cache, {kDim, kPage, p.num_kv_heads, p.num_blocks},
                                  {kDim, kPage * kDim, block_stride}, {64, kStageKeys, 1, 1});
    };
    return {map(p.k_cache, p.k_cache_block_stride), map(p.v_cache, p.v_cache_block_stride)};
}

template <int kGroups, int kSplits>
void launch_sparse(const SparseAttentionParams& p, Stream stream) {
    const dim3 grid(kSplits, static_cast<unsigned>(p.base.num_kv_heads),
                    static_cast<unsigned>(p.base.num_tokens));
    const LaunchChain launch{"sparse_attention",      grid,   Shared<kGroups>::kThreads,
                             sizeof(Shared<kGroups>), stream, kSplits};
    launch(sparse_decode_kernel<kGroups, kSplits>, p, make_maps(p.base));
}

}  // namespace

void sparse_decode(const SparseAttentionParams& p, Stream stream) {
    // Twice the warps where a thread block has little to do and a multiprocessor for itself.
    switch (sparse_decode_splits(p, num_multiprocessors())) {
        case 16: return launch_sparse<2, 16>(p, stream);
        case 8: return launch_sparse<2, 8>(p, stream);
        case 4: return launch_sparse<1, 4>(p, stream);
        case 2: return launch_sparse<1, 2>(p, stream);
        default: return launch_sparse<1, 1>(p, stream);
    }
}

void paged_decode(const PagedAttentionParams& p, Stream stream) {
    const auto chunk_pages = static_cast<int>(paged_decode_chunk(p)),
               splits = static_cast<int>(paged_decode_splits(p));
    const auto heads = static_cast<unsigned>(p.num_kv_heads), tokens = static_cast<unsigned>(p.num_tokens);
    const LaunchChain launch{"paged_attention", dim3(static_cast<unsigned>(splits), heads, tokens),
                             Shared<1>::kThreads, sizeof(Shared<1>), stream};
    launch(paged_decode_kernel, p, make_maps(p), chunk_pages);
    if (splits == 1) return;
    const LaunchChain merge_all{"paged_attention", dim3(heads, tokens), kRowItems, 0, stream};
    merge_all(paged_decode_merge_kernel, p, chunk_pages, splits);
}

}  // namespace mmx::cuda::sm90
