#include "cpp/core/math.h"
#include "cuda/common/batch.cuh"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/search.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/selector/choose.h"
#include "cuda/kernels/selector/sm90.h"

namespace mmx::cuda::sm90 {

namespace {

// Eight warps score 16 keys of a page each; one more feeds the ring.
constexpr int kWarps = 8, kWorkers = kWarps * 32, kThreads = kWorkers + 32;
constexpr int kPage = 128, kDim = 128;
constexpr int kQueryStride = kDim * 2 + 16;  // bytes; spreads the rows of a fragment over the banks

template <class C>
constexpr int kPageBytes = kPage * kDim * static_cast<int>(sizeof(C));
template <class C>
constexpr int kSlots = 6 / static_cast<int>(sizeof(C));

template <class C, int kTiles>
struct Shared {
    static constexpr int kColumns = kTiles * 8;
    alignas(1024) char ring[kSlots<C>][kPageBytes<C>];
    alignas(16) char queries[kColumns * kQueryStride];
    float best[2][kWarps][kColumns];
    int warp_total[kThreads / 32];
    int4 first;  // of the block's first unit: sequence, pages that must be scored, first token, query tokens
    int cu_units[kSelectMaxSeqs + 1];
    uint64_t full[kSlots<C>], empty[kSlots<C>];
};

/// Sequences, tiles of their query tokens and pages as one list of units: within a sequence all pages of the
/// first tile come first. Lengths are read past the L1 and kept within bounds, because a block also looks at
/// them before its predecessors are done.
struct Plan {
    const SelectBlocksParams& p;
    int tile_tokens;

    __device__ __forceinline__ SeqLens read(int seq) const {
        return peek_lens(p.cu_seqlens_q, p.seq_lens, seq);
    }
    /// Pages of a sequence that must be scored, and its query tokens.
    struct Lens {
        int pages, first_token, q_len;
    };
    __device__ __forceinline__ Lens lens_of(const SeqLens& stored) const {
        const int last_block = min((stored.len - 1) / kPage, static_cast<int>(p.max_blocks_per_seq) - 1);
        return {last_block >= static_cast<int>(p.topk) ? last_block : 0, stored.begin,
                min(max(stored.end - stored.begin, 0), static_cast<int>(p.num_tokens))};
    }
    __device__ __forceinline__ Lens lens_of(int seq) const { return lens_of(read(seq)); }
    __device__ __forceinline__ int units_of(const Lens& lens) const {
        return lens.pages * ((lens.q_len + tile_tokens - 1) / tile_tokens);
    }
};

/// Fills cu_units, by the whole block; returns the number of units. `last`: what the thread read.
__device__ __forceinline__ int count_units(const Plan& plan, int* cu_units, int* warp_total, SeqLens& last) {
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    const int num_seqs = static_cast<int>(plan.p.num_seqs);
    int total = 0;
    if (tid == 0) cu_units[0] = 0;
    for (int first = 0; first < num_seqs; first += kThreads) {
        const int s = first + tid;
        int sum = 0;
        if (s < num_seqs) {
            last = plan.read(s);
            sum = plan.units_of(plan.lens_of(last));
        }
        sum = warp_prefix_sum(sum);
        if (lane_idx == 31) warp_total[warp_idx] = sum;
        __syncthreads();
        int before = total;
#pragma unroll
        for (int w = 0; w < kThreads / 32; ++w) {
            if (w < warp_idx) before += warp_total[w];
            total += warp_total[w];
        }
        if (s < num_seqs) cu_units[s + 1] = before + sum;
        __syncthreads();
    }
    return total;
}

/// By one warp: a query, 4 dimensions a lane, as row `column` of the B operand. For e4m3 pages rows become
/// f16, scaled by a power of two to at most 2^15 (every bf16 that matters beside the largest one is exact;
/// the order of its scores does not change), and the dimensions of a k16 step are ordered as the codes of a
/// lane decode.
template <class C, int kTiles>
__device__ __forceinline__ void stage_query(Shared<C, kTiles>& shared, int column, const uint2& v) {
    const int lane_idx = static_cast<int>(threadIdx.x % 32);
    char* row = shared.queries + column * kQueryStride;
    if constexpr (sizeof(C) == 2) {
        *reinterpret_cast<uint2*>(row + 8 * lane_idx) = v;
    } else {
        uint32_t largest = __vmaxu2(v.x & 0x7FFF7FFF, v.y & 0x7FFF7FFF);
        largest = __reduce_max_sync(kFull, max(largest & 0xFFFF, largest >> 16));
        const uint32_t exponent = max(largest >> 7, 15u);
        const float shrink = __uint_as_float((268 - exponent) << 23);  // 2^(14 - (exponent - 127))
        const auto pack = [&](uint32_t pair) {
            return ptx::pack_f16(__uint_as_float(pair << 16) * shrink,
                                 __uint_as_float(pair & 0xFFFF0000u) * shrink);
        };
        uint32_t* step = reinterpret_cast<uint32_t*>(row) + lane_idx / 4 * 8 + lane_idx % 4;
        step[0] = pack(v.x);
        step[4] = pack(v.y);
    }
}

/// best[n] of this lane: the largest product of column 2t (and 2t + 1) of tile n with the warp's 16 keys.
/// kChains 1 sums in the order of the prefill kernel, whose tensor core products then have the same bits
/// (checked on an H200: also with the dimensions of a k16 step in another order); 2 is faster.
template <class C, int kTiles, int kChains>
__device__ __forceinline__ void score_keys(float2 (&best)[kTiles], const Shared<C, kTiles>& shared,
                                           uint32_t page, int first_key) {
    const int lane_idx = static_cast<int>(threadIdx.x % 32);
    const int key = first_key + lane_idx % 16;
    const uint32_t queries =
        ptx::smem_address(shared.queries) + lane_idx % 8 * kQueryStride + lane_idx / 8 * 16;
    float acc[kTiles][kChains][4] = {};
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        uint32_t a[2][4];
        if constexpr (sizeof(C) == 2) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int chunk = (pair * 2 + i) % 4 * 2 + lane_idx / 16;
                ptx::load_matrices(a[i],
                                   page + pair / 2 * (kPage * 128) + key * 128 + ((chunk ^ key % 8) << 4));
            }
        } else {
            uint32_t codes[4];
            ptx::load_matrices(codes, page + key * 128 + (((pair * 2 + lane_idx / 16) ^ key % 8) << 4));
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                ptx::decode_e4m3(codes[2 * i], a[i][0], a[i][2]);
                ptx::decode_e4m3(codes[2 * i + 1], a[i][1], a[i][3]);
            }
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
            uint32_t b[4];
            ptx::load_matrices(b, queries + n * 8 * kQueryStride + pair * 64);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if constexpr (sizeof(C) == 2)
                    ptx::mma_16x8x16(acc[n][i % kChains], a[i][0], a[i][1], a[i][2], a[i][3], b[2 * i],
                                     b[2 * i + 1]);
                else
                    ptx::mma_16x8x16_f16(acc[n][i % kChains], a[i][0], a[i][1], a[i][2], a[i][3], b[2 * i],
                                         b[2 * i + 1]);
            }
        }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
        // fmaxf drops NaN: a NaN score counts as -infinity.
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            x[i] = kChains == 1 ? acc[n][0][i] : acc[n][0][i] + acc[n][kChains - 1][i];
        best[n].x = fmaxf(fmaxf(x[0], x[2]), -INFINITY);
        best[n].y = fmaxf(fmaxf(x[1], x[3]), -INFINITY);
#pragma unroll
        for (int offset = 4; offset < 32; offset *= 2) {
            best[n].x = fmaxf(best[n].x, __shfl_xor_sync(kFull, best[n].x, offset));
            best[n].y = fmaxf(best[n].y, __shfl_xor_sync(kFull, best[n].y, offset));
        }
    }
}

/// Keys on M, (query token, head) pairs of a tile on N: one read of K serves all of them. The blocks take
/// equal shares of the list of units, whatever the lengths are.
template <class C, int kTiles, int kChains>
__global__ void __launch_bounds__(kThreads, 2)
    select_decode_scores_kernel(const __grid_constant__ SelectBlocksParams p,
                                const __grid_constant__ CUtensorMap map, float* scores, int64_t score_stride,
                                int num_kept) {
    extern __shared__ __align__(1024) char raw[];
    auto& shared = *reinterpret_cast<Shared<C, kTiles>*>(raw);
    constexpr int kRing = kSlots<C>;
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    if (tid == kWorkers) {
        ptx::prefetch_map(map);
        for (uint64_t& barrier : shared.full) ptx::barrier_init(barrier, 1);
        for (uint64_t& barrier : shared.empty) ptx::barrier_init(barrier, kWarps);
        ptx::barrier_init_done();
    }
    const int num_seqs = static_cast<int>(p.num_seqs), num_heads = static_cast<int>(p.num_index_heads);
    const Plan plan{p, kTiles * 8 / num_heads};
    SeqLens stored{};  // of the thread's sequence
    int total = 0, begin = 0, count = 0;
    // The unit that the workers are at.
    int seq = 0, tile = 0, page = 0;
    Plan::Lens at{};
    const auto share = [&] {
        total = count_units(plan, shared.cu_units, shared.warp_total, stored);
        const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
        const int each = total / blocks, extra = total - each * blocks;
        count = each + (block < extra ? 1 : 0);
        begin = each * block + min(block, extra);
        if (num_seqs <= kThreads) {
            // The thread that read a sequence says what it is, so that nobody need read it again.
            if (tid < num_seqs && shared.cu_units[tid] <= begin && begin < shared.cu_units[tid + 1]) {
                const Plan::Lens lens = plan.lens_of(stored);
                shared.first = make_int4(tid, lens.pages, lens.first_token, lens.q_len);
            }
            __syncthreads();
            if (count == 0) return;
            const int4 first = shared.first;
            seq = first.x;
            at = {first.y, first.z, first.w};
        } else if (count > 0) {
            seq = place_in(shared.cu_units, num_seqs, begin);
            at = plan.lens_of(seq);
        }
        if (count == 0) return;
        const int in_seq = begin - shared.cu_units[seq];
        tile = in_seq / at.pages;
        page = in_seq - tile * at.pages;
    };
    /// Where the page table has unit begin + i.
    const auto entry_of = [&](int i) {
        const int unit = min(begin + i, total - 1);
        int of = seq, pages = at.pages;
        if (unit >= shared.cu_units[seq + 1]) {
            of = place_in(shared.cu_units, num_seqs, unit);
            pages = plan.lens_of(of).pages;
        }
        return p.block_table + of * p.block_table_stride + (unit - shared.cu_units[of]) % pages;
    };
    const auto fetch_queries = [&](uint2(&v)[kTiles]) {
        const int first_token = at.first_token + tile * plan.tile_tokens;
        const int rows = min(plan.tile_tokens, at.q_len - tile * plan.tile_tokens) * num_heads;
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
            const int row = i * kWarps + warp_idx, token = first_token + row / num_heads;
            const int readable = min(max(token, 0), static_cast<int>(p.num_tokens) - 1);
            v[i] = make_uint2(0, 0);
            if (row < rows)
                v[i] = *reinterpret_cast<const uint2*>(
                    static_cast<const bf16*>(p.index_q) + readable * p.index_q_token_stride +
                    row % num_heads * p.index_q_head_stride + 4 * lane_idx);
        }
    };
    const auto stage_queries = [&](const uint2(&v)[kTiles]) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) stage_query(shared, i * kWarps + warp_idx, v[i]);
    };
    int page_of_lane = 0;  // of 32 units in a row, a lane each
    const auto find_pages = [&](int i) { page_of_lane = __ldcg(entry_of(i + lane_idx)); };
    const auto load = [&](int i, int slot, bool filled_before, int parity) {
        const int page_id = __shfl_sync(kFull, page_of_lane, i % 32);
        if (lane_idx != 0) return;
        if (filled_before) ptx::barrier_wait(shared.empty[slot], parity);
        const uint64_t policy = begin + i < num_kept ? ptx::kEvictNormal : ptx::kEvictFirst;
        ptx::barrier_arrive_expect(shared.full[slot], kPageBytes<C>);
        ptx::tma_load_3d(shared.ring[slot], map, shared.full[slot], 0, 0, page_id, policy);
        if (sizeof(C) == 2)
            ptx::tma_load_3d(shared.ring[slot] + kPage * 128, map, shared.full[slot], 64, 0, page_id, policy);
    };

    // By lengths and page tables as they are now: the first pages are asked for as soon as the wait ends, and
    // what was read is read again meanwhile. If it has changed, those pages are thrown away.
    share();
    const bool feeds = warp_idx == kWarps;
    const int early =
        num_seqs > kThreads || count == 0 ? 0 : min(min(count, kRing), shared.cu_units[seq + 1] - begin);
    // A lane's page of the early ones.
    const int32_t* entry = p.block_table + seq * p.block_table_stride +
                           (count == 0                   ? 0
                            : page + lane_idx < at.pages ? page + lane_idx
                                                         : (page + lane_idx) % at.pages);
    if (feeds && early > 0) page_of_lane = __ldcg(entry);
    // Fetched and computed before the wait instead of behind it.
    asm volatile("" ::"l"(p.index_q), "l"(p.index_q_token_stride), "l"(scores), "l"(score_stride), "l"(entry),
                 "r"(page_of_lane));
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    // Why not all threads: every block asks one place of the L2.
    SeqLens again = stored;
    if (tid < num_seqs) again = plan.read(tid);
    bool stale = num_seqs > kThreads;
    if (feeds) {
        if (early > 0) {
            const int page_again = __ldcg(entry);
            for (int i = 0; i < early; ++i) load(i, i, false, 0);
            stale |= page_again != page_of_lane;
        }
    } else if (count > 0) {
        uint2 v[kTiles];
        fetch_queries(v);
        stage_queries(v);
    }
    stale |= again != stored;
    int skipped = 0;  // slots of the ring that were filled in vain
    if (__syncthreads_or(stale)) {
        skipped = early;
        if (!feeds)
            for (int i = 0; i < early; ++i) {
                ptx::barrier_wait(shared.full[i], 0);
                __syncwarp();
                if (lane_idx == 0) ptx::barrier_arrive(shared.empty[i]);
            }
        share();
        if (!feeds && count > 0) {
            uint2 v[kTiles];
            fetch_queries(v);
            stage_queries(v);
        }
        __syncthreads();
    }
    if (count == 0) return;

    if (feeds) {
        const int done = skipped ? 0 : early;
        for (int i = done; i < count; ++i) {
            if (i == done || i % 32 == 0) find_pages(i / 32 * 32);
            const int turn = i + skipped;
            load(i, turn % kRing, turn >= kRing, (turn / kRing & 1) ^ 1);
        }
        return;
    }

    const auto sync = [] {
        __syncwarp();  // Why: a warp that comes to the barrier in two parts counts twice.
        ptx::named_barrier(1, kWorkers);
    };
    for (int i = 0; i < count; ++i) {
        bool staged = true;
        if (begin + i >= shared.cu_units[seq + 1]) {
            do ++seq;
            while (begin + i >= shared.cu_units[seq + 1]);
            at = plan.lens_of(seq);
            tile = page = 0;
            staged = false;
        } else if (page == at.pages) {
            ++tile;
            page = 0;
            staged = false;
        }
        if (!staged) {
            sync();
            uint2 v[kTiles];
            fetch_queries(v);
            stage_queries(v);
            sync();
        }
        const int turn = i + skipped, slot = turn % kRing;
        float2 best[kTiles];
        ptx::barrier_wait(shared.full[slot], turn / kRing & 1);
        score_keys<C, kTiles, kChains>(best, shared, ptx::smem_address(shared.ring[slot]), warp_idx * 16);
        __syncwarp();
        if (lane_idx == 0) ptx::barrier_arrive_after(shared.empty[slot], best[0].x);
        auto& found = shared.best[i % 2];
        if (lane_idx < 4)
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
                *reinterpret_cast<float2*>(&found[warp_idx][n * 8 + lane_idx * 2]) = best[n];
        sync();
        const int num_rows = min(plan.tile_tokens, at.q_len - tile * plan.tile_tokens) * num_heads;
        if (tid < num_rows) {
            float x = found[0][tid];
#pragma unroll
            for (int w = 1; w < kWarps; ++w) x = fmaxf(x, found[w][tid]);
            const int64_t first_row =
                static_cast<int64_t>(at.first_token + tile * plan.tile_tokens) * num_heads;
            scores[(first_row + tid) * score_stride + page] = x;
        }
        ++page;
    }
}

template <class C, int kTiles, int kChains>
void launch_scores(const SelectBlocksParams& p, Stream stream) {
    const bool codes = sizeof(C) == 1;
    const CUtensorMap map =
        make_tensor_map<3>(p.index_k_cache, {kDim, kPage, p.num_blocks}, {kDim, p.cache_block_stride},
                           {codes ? 128 : 64, kPage, 1},
                           codes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                           CU_TENSOR_MAP_L2_PROMOTION_NONE);
    const LaunchChain launch{"select_blocks", dim3(static_cast<unsigned>(2 * num_multiprocessors())),
                             kThreads, sizeof(Shared<C, kTiles>), stream};
    launch(select_decode_scores_kernel<C, kTiles, kChains>, p, map, static_cast<float*>(p.workspace),
           select_score_stride(p), static_cast<int>(select_kept_units(p)));
}

template <class C, int kChains>
void launch_scores(const SelectBlocksParams& p, Stream stream) {
    const int64_t columns = p.max_seqlen_q * p.num_index_heads;
    if (columns <= 8) return launch_scores<C, 1, kChains>(p, stream);
    if (columns <= 16) return launch_scores<C, 2, kChains>(p, stream);
    launch_scores<C, 4, kChains>(p, stream);
}

template <class C>
void launch_scores(const SelectBlocksParams& p, Stream stream) {
    p.fixed_split ? launch_scores<C, 1>(p, stream) : launch_scores<C, 2>(p, stream);
}

}  // namespace

void select_decode_scores(const SelectBlocksParams& p, Stream stream) {
    p.cache_dtype == DType::kE4M3 ? launch_scores<e4m3>(p, stream) : launch_scores<bf16>(p, stream);
}

}  // namespace mmx::cuda::sm90
