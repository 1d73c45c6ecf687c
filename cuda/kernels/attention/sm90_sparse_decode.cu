#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/multicast.cuh"
#include "cuda/kernels/attention/choose.h"
#include "cuda/kernels/attention/sm90.h"
#include "cuda/kernels/attention/sm90_decode.cuh"
#include "cuda/kernels/attention/sm90_splits.cuh"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kTableEntries = 512;  // longer rows of the page table are not fetched on a guess

template <class C, int kSlots, int kSplits>
struct Shared {
    PageRing<C, kSlots> ring;
    Parts<kSplits> parts;
    uint64_t parts_there;
    alignas(16) int table[kTableEntries];
};

/// A token's list of blocks, a lane each of its first and second 32.
struct Choice {
    int id0, id1;

    __device__ __forceinline__ Choice(const int32_t* ids, int topk) {
        const int lane_idx = static_cast<int>(threadIdx.x % 32);
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

/// Entries of a token's row of the page table that are fetched beside its ids: in a decode batch the row is
/// known at once. `guess` is made before the wait, so lengths may still change; entries behind it are read
/// when they are asked for.
__device__ __forceinline__ int guess_entries(const PagedAttentionParams& p, int token) {
    if (token >= p.num_seqs) return 0;
    const int pages = (__ldcg(p.seq_lens + token) + kPage - 1) / kPage;
    return min(min(max(pages, 1), static_cast<int>(p.max_blocks_per_seq)), kTableEntries);
}

/// By the feeding warp: the pages of a token's blocks in place of their ids; returns how many, or -1 for a
/// token of no sequence. Nothing may ask for the ids before all loads are on their way.
__device__ __forceinline__ int look_up(const PagedAttentionParams& p, int token, int kv_head, int guess,
                                       Choice& choice, int* table) {
    const int lane_idx = static_cast<int>(threadIdx.x % 32);
    const int32_t* row = p.block_table + token * p.block_table_stride;
    int copied = 0;
    if (reinterpret_cast<uintptr_t>(row) % 16 == 0) {
        copied = guess / 4 * 4;
#pragma unroll 1
        for (int i = lane_idx * 4; i < copied; i += 128)
            ptx::copy_async_16(ptx::smem_address(table + i), row + i);
    }
#pragma unroll 1
    for (int i = copied + lane_idx; i < guess; i += 32)
        ptx::copy_async_4(ptx::smem_address(table + i), row + i);
    const Unit unit = make_unit(p, token, kv_head);
    ptx::commit_copies();
    const int listed = choice.size();
    ptx::wait_for_copies<0>();
    __syncwarp();
    if (unit.seq < 0) return -1;
    const auto page_of = [&](int id) {
        if (id < 0) return 0;
        return id < guess && unit.seq == token ? table[id]
                                               : p.block_table[unit.seq * p.block_table_stride + id];
    };
    choice.id0 = page_of(choice.id0);
    choice.id1 = page_of(choice.id1);
    __syncwarp();  // all lanes have read the table
    return listed;
}

/// The blocks of a cluster share the pages of one (token, KV head); a block on its own takes units in turn.
template <class C, int kSlots, int kSplits, int kPerMultiprocessor>
__global__ void __launch_bounds__(kDecodeThreads, kPerMultiprocessor)
    sparse_decode_kernel(const __grid_constant__ SparseAttentionParams p, const __grid_constant__ Maps maps,
                         int kept_units) {
    extern __shared__ __align__(1024) char raw[];
    auto& shared = *reinterpret_cast<Shared<C, kSlots, kSplits>*>(raw);
    const bool feeds = threadIdx.x >= kWorkers;
    const int split = static_cast<int>(blockIdx.x) % kSplits;
    if (feeds) {
        if (kSplits > 1 && threadIdx.x % 32 == 0) {
            ptx::barrier_init(shared.parts_there, 1);
            expect_parts<kSplits>(shared.parts_there, split);
        }
        init(shared.ring, maps);
    }
    touch(p.base);
    asm volatile("" ::"l"(p.block_ids), "l"(p.topk));  // the same of these
    const int num_heads = static_cast<int>(p.base.num_kv_heads), topk = static_cast<int>(p.topk);
    const int num_tokens = static_cast<int>(p.base.num_tokens);
    int token = static_cast<int>(kSplits > 1 ? blockIdx.z : blockIdx.x / num_heads),
        kv_head = static_cast<int>(kSplits > 1 ? blockIdx.y : blockIdx.x % num_heads);
    int guess = feeds ? guess_entries(p.base, token) : 0;
    // Why as operands: the addresses of the first loads should be there when the wait ends.
    const int32_t* ids = p.block_ids + (static_cast<int64_t>(token) * num_heads + kv_head) * topk;
    const uint4* queries = queries_of(p.base, token, kv_head);
    asm volatile("" ::"l"(ids), "l"(queries), "r"(guess));
    __syncthreads();
    if (kSplits > 1) ptx::cluster_arrive();
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    RingPlace<kSlots> place(feeds);
    while (token < num_tokens) {
        Choice choice(ids, topk);
        if (feeds) {
            const int listed = look_up(p.base, token, kv_head, guess, choice, shared.table);
            if (listed >= 0) {
                const int begin = listed * split / kSplits, count = listed * (split + 1) / kSplits - begin;
                feed_pages(shared.ring, place, maps, count,
                           token * num_heads + kv_head < kept_units ? ptx::kEvictNormal : ptx::kEvictFirst,
                           [&](int k, int& head) {
                               head = kv_head;
                               return pick(choice.id0, choice.id1, begin + k);
                           });
            }
        } else {
            const uint4 fetched = fetch(queries);
            const float scale = score_scale(p.base, kv_head);
            const Unit unit = make_unit(p.base, token, kv_head);
            if (unit.seq >= 0) {
                place_queries<C>(shared.ring.queries, fetched);
                ptx::named_barrier(1, kWorkers);
                if (kSplits > 1) ptx::cluster_wait();
                const int listed = choice.size();
                const int begin = listed * split / kSplits, count = listed * (split + 1) / kSplits - begin;
                const Rows rows = attend<kPerMultiprocessor == 1>(
                    shared.ring, place, shared.ring.queries, scale, count, [&](int k) {
                        return unit.position + 1 - pick(choice.id0, choice.id1, begin + k) * kPage;
                    });
                if constexpr (kSplits == 1) {
                    store_rows<C>(p.base, unit, rows);
                } else {
                    push_parts<C>(shared.parts, shared.parts_there, rows.o, rows.max,
                                  {rows.sum(0), rows.sum(1)}, split);
                    merge_parts(shared.parts, shared.parts_there, p.base, unit, split,
                                v_scale_of(p.base, unit));
                }
            }
        }
        if (kSplits > 1) return;
        kv_head += static_cast<int>(gridDim.x);
        token += kv_head / num_heads;
        kv_head %= num_heads;
        if (token >= num_tokens) return;
        ids = p.block_ids + (static_cast<int64_t>(token) * num_heads + kv_head) * topk;
        queries = queries_of(p.base, token, kv_head);
        if (feeds) guess = guess_entries(p.base, token);
    }
}

template <class C, int kSlots, int kSplits, int kPerMultiprocessor = 1>
void launch(const SparseAttentionParams& p, Stream stream) {
    const int64_t units = p.base.num_tokens * p.base.num_kv_heads;
    const LaunchChain run{"sparse_attention",
                          kSplits == 1 ? dim3(static_cast<unsigned>(std::min(units, num_multiprocessors())))
                                       : dim3(kSplits, static_cast<unsigned>(p.base.num_kv_heads),
                                              static_cast<unsigned>(p.base.num_tokens)),
                          kDecodeThreads,
                          sizeof(Shared<C, kSlots, kSplits>),
                          stream,
                          kSplits};
    run(sparse_decode_kernel<C, kSlots, kSplits, kPerMultiprocessor>, p, make_page_maps(p.base),
        static_cast<int>(sparse_kept_units(p)));
}

/// Slots as measured: more than these make the first page arrive later.
template <class C>
void launch_split(const SparseAttentionParams& p, const SparseSplit& split, Stream stream) {
    constexpr bool kCodes = sizeof(C) == 1;
    if (split.per_multiprocessor == 2) return launch<C, kCodes ? 4 : 2, 6, 2>(p, stream);
    switch (split.blocks) {
        case 16: return launch<C, 2, 16>(p, stream);
        case 8: return launch<C, 2, 8>(p, stream);
        case 6: return launch<C, kCodes ? 6 : 4, 6>(p, stream);
        case 4: return launch<C, 4, 4>(p, stream);
        case 2: return launch<C, kCodes ? 5 : 3, 2>(p, stream);
        default: return launch<C, kCodes ? 6 : 4, 1>(p, stream);
    }
}

}  // namespace

void sparse_decode(const SparseAttentionParams& p, Stream stream) {
    if (fills_rows(p) && p.base.fixed_split) return sparse_decode_fixed(p, stream);
    const SparseSplit split = sparse_decode_split(p, num_multiprocessors());
    if (few_pages(p, split)) return sparse_decode_few(p, split.blocks, stream);
    p.base.cache_dtype == DType::kE4M3 ? launch_split<e4m3>(p, split, stream)
                                       : launch_split<bf16>(p, split, stream);
}

}  // namespace mmx::cuda::sm90
