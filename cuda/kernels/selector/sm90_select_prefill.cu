#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/ptx/wgmma.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/kernels/selector/choose.h"
#include "cuda/kernels/selector/sm90.h"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kPage = 128, kDim = 128, kRows = kSelectTileRows;
constexpr int kStages = 4, kConsumers = 2, kThreads = (1 + kConsumers) * 128;
constexpr int kHalfPageBytes = kPage * 128;  // 64 of the 128 dimensions
constexpr int kHalfQBytes = kRows * 128;
constexpr int kMaxTiles = kSelectMaxTiles;
constexpr unsigned kFull = 0xFFFFFFFFu;

struct Shared {
    alignas(1024) char q[2 * kHalfQBytes];
    alignas(1024) char k[kStages][2 * kHalfPageBytes];
    uint64_t q_full, q_empty, k_full[kStages], k_empty[kStages];
    int warp_total[kThreads / 32];
    // Row tiles: pages before each one in the flattened list, its sequence and its first token.
    int cu_pages[kMaxTiles + 1], seq[kMaxTiles], token[kMaxTiles];
};

struct Maps {
    CUtensorMap q;  // (dimension, head, token)
    CUtensorMap k;  // (dimension, slot, page)
};

/// A stretch of pages of one row tile: what a thread block works on without changing Q.
struct Stretch {
    int tile, first_block, num_blocks;
};

/// Calls f(Stretch) for the share of this thread block in the flattened list of (row tile, page).
template <class F>
__device__ __forceinline__ void for_each_stretch(const Shared& shared, int num_tiles, F&& f) {
    const int total = shared.cu_pages[num_tiles];
    int unit = static_cast<int>(static_cast<int64_t>(total) * blockIdx.x / gridDim.x);
    const int end = static_cast<int>(static_cast<int64_t>(total) * (blockIdx.x + 1) / gridDim.x);
    int tile = 0;
    while (unit < end) {
        while (shared.cu_pages[tile + 1] <= unit) ++tile;
        const int stop = min(end, shared.cu_pages[tile + 1]);
        f(Stretch{tile, unit - shared.cu_pages[tile], stop - unit});
        unit = stop;
    }
}

/// Row tiles of the batch: kRows / num_heads neighbouring tokens of one sequence. Pages of a tile: those
/// before the own block of its last token, none if even that token keeps every block. Whole block.
__device__ __forceinline__ void list_tiles(Shared& shared, const SelectBlocksParams& p, int num_tiles) {
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    const int tokens_per_tile = kRows / static_cast<int>(p.num_index_heads);
    int base = 0;
    if (tid == 0) shared.cu_pages[0] = 0;
    for (int first = 0; first < num_tiles; first += kThreads) {
        const int tile = first + tid;
        int pages = 0;
        if (tile < num_tiles) {
            int before = 0;  // tiles of earlier sequences
            for (int s = 0; s < p.num_seqs; ++s) {
                const int begin = p.cu_seqlens_q[s], end = p.cu_seqlens_q[s + 1];
                const int count = (end - begin + tokens_per_tile - 1) / tokens_per_tile;
                if (tile < before + count) {
                    const int token = begin + (tile - before) * tokens_per_tile;
                    const int last_block =
                        (p.seq_lens[s] - end + min(token + tokens_per_tile, end) - 1) / kPage;
                    if (last_block >= p.topk) pages = last_block;
                    shared.seq[tile] = s;
                    shared.token[tile] = token;
                    break;
                }
                before += count;
            }
        }
        const int sum = warp_prefix_sum(pages);
        if (lane_idx == 31) shared.warp_total[warp_idx] = sum;
        __syncthreads();
        int before = base;
        for (int w = 0; w < kThreads / 32; ++w) {
            if (w < warp_idx) before += shared.warp_total[w];
            base += shared.warp_total[w];
        }
        if (tile < num_tiles) shared.cu_pages[tile + 1] = before + sum;
        __syncthreads();
    }
}

__device__ __forceinline__ void produce(const SelectBlocksParams& p, const Maps& maps, Shared& shared,
                                        int num_tiles) {
    int stage = 0, parity = 1, q_parity = 1;
    for_each_stretch(shared, num_tiles, [&](const Stretch& s) {
        const int32_t* table = p.block_table + shared.seq[s.tile] * p.block_table_stride + s.first_block;
        ptx::barrier_wait(shared.q_empty, q_parity);
        q_parity ^= 1;
        ptx::barrier_arrive_expect(shared.q_full, 2 * kHalfQBytes);
        for (int half = 0; half < 2; ++half)
            ptx::tma_load_3d(shared.q + half * kHalfQBytes, maps.q, shared.q_full, half * 64, 0,
                             shared.token[s.tile]);
        for (int i = 0; i < s.num_blocks; ++i) {
            const int page = table[i];
            ptx::barrier_wait(shared.k_empty[stage], parity);
            ptx::barrier_arrive_expect(shared.k_full[stage], 2 * kHalfPageBytes);
            for (int half = 0; half < 2; ++half)
                ptx::tma_load_3d(shared.k[stage] + half * kHalfPageBytes, maps.k, shared.k_full[stage],
                                 half * 64, 0, page);
            if (++stage == kStages) stage = 0, parity ^= 1;
        }
    });
}

/// Best scores of 64 rows over a page: rows g and g + 8 of the warp's 16, the same in the four lanes of a
/// quad.
__device__ __forceinline__ void row_best(const float (&acc)[64], float (&best)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        float x = -INFINITY;  // fmaxf drops NaN: a NaN score counts as -infinity
#pragma unroll
        for (int j = 0; j < 16; ++j) x = fmaxf(x, fmaxf(acc[4 * j + 2 * row], acc[4 * j + 2 * row + 1]));
        x = fmaxf(x, __shfl_xor_sync(kFull, x, 1));
        best[row] = fmaxf(x, __shfl_xor_sync(kFull, x, 2));
    }
}

/// A warpgroup owns 128 rows as two accumulators of 64: one is reduced while the other is computed.
__device__ __forceinline__ void consume(const SelectBlocksParams& p, Shared& shared, int num_tiles, int group,
                                        float* scores, int64_t score_stride) {
    const int tid = static_cast<int>(threadIdx.x) % 128, warp_idx = tid / 32, lane_idx = tid % 32;
    const int g = lane_idx / 4, t = lane_idx % 4;
    const int num_heads = static_cast<int>(p.num_index_heads);
    const int tile_row = group * 128 + warp_idx * 16 + g;
    int stage = 0, parity = 0, q_parity = 0;
    float acc[2][64];
    const auto multiply = [&](float (&d)[64], int half_rows, int at) {
        const uint64_t q =
            ptx::wgmma_operand(ptx::smem_address(shared.q) + (group * 128 + half_rows * 64) * 128);
        const uint64_t k = ptx::wgmma_operand(ptx::smem_address(shared.k[at]));
        ptx::wgmma_begin();
#pragma unroll
        for (int step = 0; step < 8; ++step)
            ptx::wgmma_64x128(d, q + ((step / 4 * kHalfQBytes + step % 4 * 32) >> 4),
                              k + ((step / 4 * kHalfPageBytes + step % 4 * 32) >> 4), step > 0);
        ptx::wgmma_commit();
    };
    for_each_stretch(shared, num_tiles, [&](const Stretch& s) {
        const int first_token = shared.token[s.tile];
        const int num_rows = (p.cu_seqlens_q[shared.seq[s.tile] + 1] - first_token) * num_heads;
        float* out = scores + (static_cast<int64_t>(first_token) * num_heads + tile_row) * score_stride;
        ptx::barrier_wait(shared.q_full, q_parity);
        q_parity ^= 1;
        // Lane t of a quad keeps the page with block % 4 == t, so that a quad writes 16 bytes of a row.
        float kept[2][2];
        const auto keep = [&](int half_rows, int block) {
            float best[2];
            row_best(acc[half_rows], best);
#pragma unroll
            for (int row = 0; row < 2; ++row)
                if (block % 4 == t) kept[half_rows][row] = best[row];
            if (block % 4 == 3 || block == s.first_block + s.num_blocks - 1) {
                const int mine = block / 4 * 4 + t;
#pragma unroll
                for (int row = 0; row < 2; ++row)
                    if (mine >= s.first_block && mine <= block &&
                        tile_row + half_rows * 64 + row * 8 < num_rows)
                        out[(half_rows * 64 + row * 8) * score_stride + mine] = kept[half_rows][row];
            }
        };
        for (int block = s.first_block; block < s.first_block + s.num_blocks; ++block) {
            ptx::barrier_wait(shared.k_full[stage], parity);
            multiply(acc[0], 0, stage);
            multiply(acc[1], 1, stage);
            ptx::wgmma_wait<1>();
            keep(0, block);
            ptx::wgmma_wait<0>();
            if (lane_idx == 0) ptx::barrier_arrive(shared.k_empty[stage]);
            keep(1, block);
            if (++stage == kStages) stage = 0, parity ^= 1;
        }
        if (lane_idx == 0) ptx::barrier_arrive(shared.q_empty);
    });
}

/// Rows on M, a page of keys on N. No mask anywhere: pages from a token's own block on are never ranked,
/// whatever their scores say. Blocks take equal shares of the flattened list of (row tile, page).
__global__ void __launch_bounds__(kThreads, 1)
    select_prefill_scores_kernel(const __grid_constant__ SelectBlocksParams p,
                                 const __grid_constant__ Maps maps, int num_tiles, float* scores,
                                 int64_t score_stride) {
    extern __shared__ char raw[];
    Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
    if (threadIdx.x == 0) {
        ptx::barrier_init(shared.q_full, 1);
        ptx::barrier_init(shared.q_empty, kConsumers * 4);
        for (int i = 0; i < kStages; ++i) {
            ptx::barrier_init(shared.k_full[i], 1);
            ptx::barrier_init(shared.k_empty[i], kConsumers * 4);
        }
        ptx::barrier_init_done();
    }
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    list_tiles(shared, p, num_tiles);
    __syncthreads();
    const int group = static_cast<int>(threadIdx.x) / 128;
    if (group == 0) {
        ptx::release_registers<40>();
        if (threadIdx.x == 0) produce(p, maps, shared, num_tiles);
    } else {
        ptx::take_registers<232>();
        consume(p, shared, num_tiles, group - 1, scores, score_stride);
    }
}

}  // namespace

void select_prefill_scores(const SelectBlocksParams& p, Stream stream) {
    const int64_t tokens_per_tile = kRows / p.num_index_heads;
    const Maps maps{make_tensor_map<3>(p.index_q, {kDim, p.num_index_heads, p.num_tokens},
                                       {p.index_q_head_stride, p.index_q_token_stride},
                                       {64, p.num_index_heads, tokens_per_tile}),
                    make_tensor_map<3>(p.index_k_cache, {kDim, kPage, p.num_blocks},
                                       {kDim, p.cache_block_stride}, {64, kPage, 1})};
    const LaunchChain launch{"select_blocks", dim3(static_cast<unsigned>(num_multiprocessors())), kThreads,
                             sizeof(Shared) + 1024, stream};
    launch(select_prefill_scores_kernel, p, maps, static_cast<int>(select_max_tiles(p)),
           static_cast<float*>(p.workspace), select_score_stride(p));
}

}  // namespace mmx::cuda::sm90
