#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/reduce.cuh"
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
constexpr unsigned kFull = 0xFFFFFFFFu;

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
    int cu_units[kSelectMaxSeqs + 1];
    uint64_t full[kSlots<C>], empty[kSlots<C>];
};

/// Sequences, tiles of their query tokens and pages as one list of units: within a sequence all pages of the
/// first tile come first. Lengths are read past the L1 and kept within bounds, because a block
/// also looks at them before its predecessors are done.
struct Plan {
    const SelectBlocksParams& p;
    int tile_tokens;

    /// Pages of a sequence that must be scored, and its query tokens.
    struct Lens {
        int pages, q_len;
        bool operator==(const Lens&) const = default;
    };
    __device__ __forceinline__ Lens lens_of(int seq) const {
        const int q_len = __ldcg(p.cu_seqlens_q + seq + 1) - __ldcg(p.cu_seqlens_q + seq);
        const int last_block =
            min((__ldcg(p.seq_lens + seq) - 1) / kPage, static_cast<int>(p.max_blocks_per_seq) - 1);
        return {last_block >= p.topk ? last_block : 0, min(max(q_len, 0), static_cast<int>(p.num_tokens))};
    }
    __device__ __forceinline__ int units_of(const Lens& lens) const {
        return lens.pages * ((lens.q_len + tile_tokens - 1) / tile_tokens);
    }
};

/// Fills cu_units, by the whole block; returns the number of units. `last`: what the thread read.
__device__ __forceinline__ int count_units(const Plan& plan, int* cu_units, int* warp_total,
                                           Plan::Lens& last) {
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    const int num_seqs = static_cast<int>(plan.p.num_seqs);
    int total = 0;
    if (tid == 0) cu_units[0] = 0;
    for (int first = 0; first < num_seqs; first += kThreads) {
        const int s = first + tid;
        int sum = 0;
        if (s < num_seqs) {
            last = plan.lens_of(s);
            sum = plan.units_of(last);
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

/// The sequence that a unit belongs to.
__device__ __forceinline__ int seq_of(const int* cu_units, int num_seqs, int unit) {
    int low = 0, high = num_seqs;  // cu_units[low] <= unit < cu_units[high]
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (cu_units[middle] <= unit ? low : high) = middle;
    }
    return low;
}

/// By one warp: a query as row `column` of the B operand. For e4m3 pages rows become f16, scaled by a power
/// of two to at most 2^15 (every bf16 that matters beside the largest one is exact; the order of its scores
/// does not change), and the dimensions of a k16 step are ordered as the codes of a lane decode.
template <class C, int kTiles>
__device__ __forceinline__ void stage_query(Shared<C, kTiles>& shared, int column, const bf16* q) {
    const int lane_idx = static_cast<int>(threadIdx.x % 32);
    char* row = shared.queries + column * kQueryStride;
    const uint2 v = q ? *reinterpret_cast<const uint2*>(q + 4 * lane_idx) : make_uint2(0, 0);
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
    Plan::Lens lens{};
    int total = 0, begin = 0, count = 0;
    const auto share = [&] {
        total = count_units(plan, shared.cu_units, shared.warp_total, lens);
        const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
        count = total / blocks + (block < total % blocks ? 1 : 0);
        begin = total / blocks * block + min(block, total % blocks);
    };
    /// Page of unit begin + i.
    const auto page_of = [&](int i) {
        const int unit = min(begin + i, total - 1), seq = seq_of(shared.cu_units, num_seqs, unit);
        const int pages = max(plan.lens_of(seq).pages, 1);
        const int page =
            min(max(unit - shared.cu_units[seq], 0) % pages, static_cast<int>(p.max_blocks_per_seq));
        return __ldcg(p.block_table + seq * p.block_table_stride + page);
    };
    // By lengths as they are now, which is checked behind the wait.
    share();
    asm volatile("" ::"l"(p.index_q), "l"(p.index_q_token_stride), "l"(scores), "l"(score_stride));
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    if (__syncthreads_or(num_seqs > kThreads || (tid < num_seqs && plan.lens_of(tid) != lens))) share();
    if (count == 0) return;

    if (warp_idx == kWarps) {
        int pages = 0;  // of units begin + 32j to + 31, a lane each
        for (int i = 0; i < count; ++i) {
            if (i % 32 == 0) pages = page_of(i + lane_idx);
            const int page = __shfl_sync(kFull, pages, i % 32), slot = i % kRing;
            if (lane_idx != 0) continue;
            if (i >= kRing) ptx::barrier_wait(shared.empty[slot], (i / kRing & 1) ^ 1);
            const uint64_t policy = begin + i < num_kept ? ptx::kEvictNormal : ptx::kEvictFirst;
            ptx::barrier_arrive_expect(shared.full[slot], kPageBytes<C>);
            ptx::tma_load_3d(shared.ring[slot], map, shared.full[slot], 0, 0, page, policy);
            if (sizeof(C) == 2)
                ptx::tma_load_3d(shared.ring[slot] + kPage * 128, map, shared.full[slot], 64, 0, page,
                                 policy);
        }
        return;
    }

    const auto sync = [] {
        __syncwarp();  // Why: a warp that comes to the barrier in two parts counts twice.
        ptx::named_barrier(1, kWorkers);
    };
    int seq = seq_of(shared.cu_units, num_seqs, begin), pages = plan.lens_of(seq).pages;
    int tile = (begin - shared.cu_units[seq]) / pages, page = (begin - shared.cu_units[seq]) % pages;
    int num_rows = 0;
    int64_t first_row = 0;
    bool staged = false;
    for (int i = 0; i < count; ++i) {
        if (begin + i >= shared.cu_units[seq + 1]) {
            do ++seq;
            while (begin + i >= shared.cu_units[seq + 1]);
            pages = plan.lens_of(seq).pages;
            tile = page = 0;
            staged = false;
        } else if (page == pages) {
            ++tile;
            page = 0;
            staged = false;
        }
        if (!staged) {
            sync();
            const int first_token = p.cu_seqlens_q[seq] + tile * plan.tile_tokens;
            num_rows = min(plan.tile_tokens, p.cu_seqlens_q[seq + 1] - first_token) * num_heads;
            first_row = static_cast<int64_t>(first_token) * num_heads;
            for (int row = warp_idx; row < kTiles * 8; row += kWarps)
                stage_query(shared, row,
                            row < num_rows ? static_cast<const bf16*>(p.index_q) +
                                                 (first_token + row / num_heads) * p.index_q_token_stride +
                                                 row % num_heads * p.index_q_head_stride
                                           : nullptr);
            sync();
            staged = true;
        }
        const int slot = i % kRing;
        float2 best[kTiles];
        ptx::barrier_wait(shared.full[slot], i / kRing & 1);
        score_keys<C, kTiles, kChains>(best, shared, ptx::smem_address(shared.ring[slot]), warp_idx * 16);
        __syncwarp();
        if (lane_idx == 0) ptx::barrier_arrive_after(shared.empty[slot], best[0].x);
        auto& found = shared.best[i % 2];
        if (lane_idx < 4)
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
                *reinterpret_cast<float2*>(&found[warp_idx][n * 8 + lane_idx * 2]) = best[n];
        sync();
        if (tid < num_rows) {
            float x = found[0][tid];
#pragma unroll
            for (int w = 1; w < kWarps; ++w) x = fmaxf(x, found[w][tid]);
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
                           codes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
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
