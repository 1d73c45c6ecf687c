#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/cluster.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/multicast.cuh"
#include "cuda/kernels/attention/choose.h"
#include "cuda/kernels/attention/sm90.h"
#include "cuda/kernels/attention/sm90_decode.cuh"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kTableEntries = 512;  // longer rows of the page table are not fetched on a guess

/// Rows of each head that a block of the cluster owns.
template <int kSplits>
constexpr int kOwn = (kRows + kSplits - 1) / kSplits;

template <class C, int kSlots, int kSplits>
struct Shared {
    PageRing<C, kSlots> ring;
    // What the blocks of the cluster push here: this block's part of the rows from each of them, in rank
    // order, with their maxima and sums.
    alignas(16) float received[kSplits == 1 ? 1 : kSplits * kOwn<kSplits>][kDim];
    float2 received_stats[kSplits == 1 ? 1 : kSplits * kOwn<kSplits>];
    uint64_t received_all;
    int table[kTableEntries];
};

/// A token's list of blocks, a lane each of its first and second 32.
struct Choice {
    int id0, id1;

    __device__ __forceinline__ Choice(const SparseAttentionParams& p, int token, int kv_head) {
        const int topk = static_cast<int>(p.topk), lane_idx = static_cast<int>(threadIdx.x % 32);
        const int32_t* ids =
            p.block_ids + (static_cast<int64_t>(token) * p.base.num_kv_heads + kv_head) * topk;
        id0 = lane_idx < topk ? ids[lane_idx] : -1;
        id1 = lane_idx + 32 < topk ? ids[lane_idx + 32] : -1;
    }
    __device__ __forceinline__ int size() const {
        return __popc(__ballot_sync(kFull, id0 >= 0)) + __popc(__ballot_sync(kFull, id1 >= 0));
    }
};

/// Value i of two registers of the lanes.
__device__ __forceinline__ int pick(int low, int high, int i) {
    const int from_low = __shfl_sync(kFull, low, i % 32), from_high = __shfl_sync(kFull, high, i % 32);
    return i < 32 ? from_low : from_high;
}

/// By the feeding warp: the pages of a token's blocks in place of their ids. In a decode batch the token's
/// row of the page table is known at once and fetched beside the ids.
__device__ __forceinline__ Unit look_up(const SparseAttentionParams& p, int token, int kv_head,
                                        Choice& choice, int* table) {
    const PagedAttentionParams& b = p.base;
    const int lane_idx = static_cast<int>(threadIdx.x % 32),
              num_entries = static_cast<int>(b.max_blocks_per_seq);
    const bool guess = token < b.num_seqs && num_entries <= kTableEntries;
    if (guess)
        for (int i = lane_idx; i < num_entries; i += 32)
            ptx::copy_async_4(ptx::smem_address(table + i), b.block_table + token * b.block_table_stride + i);
    const Unit unit = make_unit(b, token, kv_head);
    ptx::commit_copies();
    ptx::wait_for_copies<0>();
    __syncwarp();
    if (unit.seq < 0) return unit;
    const auto page_of = [&](int id) {
        if (id < 0) return 0;
        return guess && unit.seq == token ? table[id] : b.block_table[unit.seq * b.block_table_stride + id];
    };
    choice.id0 = page_of(choice.id0);
    choice.id1 = page_of(choice.id1);
    __syncwarp();  // all lanes have read the table
    return unit;
}

/// By the workers: each row goes to the block that owns it, which sums the parts in rank order.
template <class C, int kSlots, int kSplits>
__device__ __forceinline__ void merge_splits(Shared<C, kSlots, kSplits>& shared,
                                             const PagedAttentionParams& p, const Unit& unit,
                                             const Rows& rows, int split) {
    constexpr int kMine = kOwn<kSplits>;
    const int tid = static_cast<int>(threadIdx.x), lane_idx = tid % 32, g = lane_idx / 4;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int head = g + 8 * row, owner = head / kMine, place = split * kMine + head % kMine;
        const auto address = [&](const void* here) {
            return ptx::cluster_address(ptx::smem_address(here), owner);
        };
        const uint32_t barrier = address(&shared.received_all), received = address(shared.received[place]);
        Pages<C>::for_each_run(rows.o, row, tid / 32, [&](int d, auto... values) {
            ptx::store_remote(received + d * static_cast<int>(sizeof(float)), values..., barrier);
        });
        if (tid / 32 == 0 && lane_idx % 4 == 0)
            ptx::store_remote(address(&shared.received_stats[place]), rows.max[row], rows.sum(row), barrier);
    }
    // Four dimensions of a row are summed by so many neighbouring lanes.
    constexpr int kLanes = kSplits >= 8 ? 4 : kSplits >= 4 ? 2 : 1, kParts = (kSplits + kLanes - 1) / kLanes;
    static_assert(kMine * (kDim / 4) * kLanes <= kWorkers);
    const int item = tid / kLanes, part = tid % kLanes, own = item / (kDim / 4), d = item % (kDim / 4) * 4;
    const int head = split * kMine + own;
    const float v_scale = v_scale_of(p, unit);
    ptx::barrier_wait(shared.received_all, 0);
    if (own >= kMine) return;
    Piece all = merge<kParts>([&](int i) {
        const int from = part * kParts + i, place = from * kMine + own;
        if (from >= kSplits || head >= kRows) return Piece{};
        const float2 stats = shared.received_stats[place];
        return Piece{*reinterpret_cast<const float4*>(&shared.received[place][d]), stats.x, stats.y};
    });
    float best = all.max;
#pragma unroll
    for (int other = 1; other < kLanes; other *= 2) best = fmaxf(best, __shfl_xor_sync(kFull, best, other));
    const float weight = ptx::exp2_approx(all.max - (best == -INFINITY ? 0.0f : best));
    float sums[5] = {all.x.x * weight, all.x.y * weight, all.x.z * weight, all.x.w * weight,
                     all.sum * weight};
#pragma unroll
    for (int other = 1; other < kLanes; other *= 2)
#pragma unroll
        for (float& sum : sums) sum += __shfl_xor_sync(kFull, sum, other);
    if (part != 0 || head >= unit.group) return;
    const float factor = sums[4] == 0 ? 0.0f : v_scale / sums[4];
    *reinterpret_cast<uint2*>(out_of(p, unit, head) + d) =
        make_uint2(ptx::pack_bf16(sums[0] * factor, sums[1] * factor),
                   ptx::pack_bf16(sums[2] * factor, sums[3] * factor));
}

/// The blocks of a cluster share the pages of one (token, KV head); a block on its own takes units in turn.
template <class C, int kSlots, int kSplits>
__global__ void __launch_bounds__(kDecodeThreads, 1)
    sparse_decode_kernel(const __grid_constant__ SparseAttentionParams p, const __grid_constant__ Maps maps,
                         int kept_units) {
    extern __shared__ __align__(1024) char raw[];
    auto& shared = *reinterpret_cast<Shared<C, kSlots, kSplits>*>(raw);
    const bool feeds = threadIdx.x >= kWorkers;
    const int split = static_cast<int>(blockIdx.x) % kSplits;
    if (feeds) {
        if (kSplits > 1 && threadIdx.x % 32 == 0) {
            const int rows = max(0, min(kOwn<kSplits>, kRows - split * kOwn<kSplits>));
            ptx::barrier_init(shared.received_all, 1);
            ptx::barrier_arrive_expect(
                shared.received_all,
                rows * kSplits * static_cast<int>(sizeof(shared.received[0]) + sizeof(float2)));
        }
        init(shared.ring, maps);
    }
    touch(p.base);
    asm volatile("" ::"l"(p.block_ids), "l"(p.topk));
    __syncthreads();
    if (kSplits > 1) ptx::cluster_arrive();
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int num_heads = static_cast<int>(p.base.num_kv_heads);
    const int num_units = static_cast<int>(p.base.num_tokens) * num_heads;
    const int first_unit = static_cast<int>(blockIdx.x) / kSplits,
              step = static_cast<int>(gridDim.x) / kSplits;
    RingPlace<kSlots> place(feeds);
    for (int i = first_unit; i < num_units; i += step) {
        const int token = i / num_heads, kv_head = i - token * num_heads;
        Choice choice(p, token, kv_head);
        if (feeds) {
            const int listed = choice.size();
            const Unit unit = look_up(p, token, kv_head, choice, shared.table);
            if (unit.seq < 0) continue;
            const int begin = listed * split / kSplits, count = listed * (split + 1) / kSplits - begin;
            feed(shared.ring, place, maps, kv_head, count,
                 i < kept_units ? ptx::kEvictNormal : ptx::kEvictFirst,
                 [&](int k) { return pick(choice.id0, choice.id1, begin + k); });
            continue;
        }
        const Unit unit = make_unit(p.base, token, kv_head);
        if (unit.seq < 0) continue;
        uint32_t q[8][4];
        float scale_log2[2];
        load_queries(shared.ring, p.base, unit, q, scale_log2);
        if (kSplits > 1) ptx::cluster_wait();
        const int listed = choice.size();
        const int begin = listed * split / kSplits, count = listed * (split + 1) / kSplits - begin;
        const Rows rows = attend(shared.ring, place, q, scale_log2, count, [&](int k) {
            return unit.position + 1 - pick(choice.id0, choice.id1, begin + k) * kPage;
        });
        if constexpr (kSplits == 1) {
            store_rows<C>(p.base, unit, rows);
        } else {
            merge_splits(shared, p.base, unit, rows, split);
        }
    }
}

template <class C, int kSlots, int kSplits>
void launch(const SparseAttentionParams& p, Stream stream) {
    const int64_t units = p.base.num_tokens * p.base.num_kv_heads;
    const int64_t blocks = kSplits == 1 ? std::min(units, num_multiprocessors()) : units * kSplits;
    const LaunchChain run{"sparse_attention",
                          dim3(static_cast<unsigned>(blocks)),
                          kDecodeThreads,
                          sizeof(Shared<C, kSlots, kSplits>),
                          stream,
                          kSplits};
    run(sparse_decode_kernel<C, kSlots, kSplits>, p, make_page_maps(p.base),
        static_cast<int>(sparse_kept_units(p)));
}

/// Slots as measured: more than these make the first page arrive later.
template <class C>
void launch_splits(const SparseAttentionParams& p, int64_t splits, Stream stream) {
    constexpr bool kCodes = sizeof(C) == 1;
    switch (splits) {
        case 16: return launch<C, 2, 16>(p, stream);
        case 8: return launch<C, 2, 8>(p, stream);
        case 6: return launch<C, kCodes ? 6 : 4, 6>(p, stream);
        case 4: return launch<C, 4, 4>(p, stream);
        case 3: return launch<C, kCodes ? 4 : 3, 3>(p, stream);
        case 2: return launch<C, kCodes ? 5 : 3, 2>(p, stream);
        default: return launch<C, kCodes ? 6 : 4, 1>(p, stream);
    }
}

}  // namespace

void sparse_decode(const SparseAttentionParams& p, Stream stream) {
    const int64_t splits = sparse_decode_splits(p, num_multiprocessors());
    p.base.cache_dtype == DType::kE4M3 ? launch_splits<e4m3>(p, splits, stream)
                                       : launch_splits<bf16>(p, splits, stream);
}

}  // namespace mmx::cuda::sm90
