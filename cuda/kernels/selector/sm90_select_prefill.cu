#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/ptx/wgmma_n.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/ring.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/common/vec.cuh"
#include "cuda/common/widen.cuh"
#include "cuda/kernels/selector/choose.h"
#include "cuda/kernels/selector/order.cuh"
#include "cuda/kernels/selector/sm90.h"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kPage = 128, kDim = 128, kRows = kSelectTileRows;
constexpr int kConsumers = 2, kThreads = (1 + kConsumers) * 128;
constexpr int kHalfPageBytes = kPage * 128;  // 64 of the 128 dimensions
constexpr int kHalfQBytes = kRows * 128;
constexpr int kMaxTiles = kSelectMaxTiles;

// e4m3 pages pass through slots of codes, are widened to f16 by some warps, and leave room for fewer stages.
template <class C>
constexpr int kStages = sizeof(C) == 1 ? 3 : 4;
constexpr int kCodeSlots = 3, kWideners = 3;

struct SharedTiles {
    alignas(1024) char q[2 * kHalfQBytes];
    uint64_t q_full, q_empty;
    int warp_total[kThreads / 32];
    // Row tiles: pages before each one in the flattened list, its sequence and its first token.
    int cu_pages[kMaxTiles + 1], seq[kMaxTiles], token[kMaxTiles];
    int most_pages;  // of a tile
};

template <class C>
struct Shared : SharedTiles {
    alignas(1024) char k[kStages<C>][2 * kHalfPageBytes];
    uint64_t k_full[kStages<C>], k_empty[kStages<C>];
};

template <>
struct Shared<e4m3> : SharedTiles {
    alignas(1024) char k[kStages<e4m3>][2 * kHalfPageBytes];
    alignas(1024) char codes[kCodeSlots][kPage * kDim];
    uint64_t k_full[kStages<e4m3>], k_empty[kStages<e4m3>];
    uint64_t codes_full[kCodeSlots], codes_empty[kCodeSlots];
};

struct Maps {
    CUtensorMap q;  // (dimension, head, token)
    CUtensorMap k;  // (dimension, slot, page)
};

/// What a kernel writes: the scores of all blocks, or lists of the best blocks of each stretch of pages.
struct Output {
    float* scores;
    int64_t score_stride;
    SelectLists lists;
};

/// A stretch of pages of one row tile: what a thread block works on without changing Q.
struct Stretch {
    int tile, first_block, num_blocks;
};

/// Calls f(Stretch) for the share of this thread block in the flattened list of (row tile, page).
/// `max_stretches`: of a tile; 0: any number.
template <class F>
__device__ __forceinline__ void for_each_stretch(const SharedTiles& shared, int num_tiles, int max_stretches,
                                                 F&& f) {
    const int total = shared.cu_pages[num_tiles], block = static_cast<int>(blockIdx.x);
    int unit, end;
    if (max_stretches > 0) {
        const int blocks = static_cast<int>(gridDim.x);
        const int share =
            max((total + blocks - 1) / blocks, (shared.most_pages + max_stretches - 2) / (max_stretches - 1));
        unit = min(total, block * share);
        end = min(total, unit + share);
    } else {
        unit = static_cast<int>(static_cast<int64_t>(total) * block / gridDim.x);
        end = static_cast<int>(static_cast<int64_t>(total) * (block + 1) / gridDim.x);
    }
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
__device__ __forceinline__ void list_tiles(SharedTiles& shared, const SelectBlocksParams& p, int num_tiles) {
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    const int tokens_per_tile = kRows / static_cast<int>(p.num_index_heads);
    int base = 0;
    if (tid == 0) shared.cu_pages[0] = shared.most_pages = 0;
    __syncthreads();
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
        const int most = __reduce_max_sync(kFull, pages);
        if (lane_idx == 0) atomicMax(&shared.most_pages, most);
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

/// By one thread.
template <class C>
__device__ __forceinline__ void produce(const SelectBlocksParams& p, const Maps& maps, Shared<C>& shared,
                                        int num_tiles, int max_stretches) {
    Ring<kStages<C>> k(1);
    Ring<kCodeSlots> codes(1);
    int q_parity = 1;
    for_each_stretch(shared, num_tiles, max_stretches, [&](const Stretch& s) {
        const int32_t* table = p.block_table + shared.seq[s.tile] * p.block_table_stride + s.first_block;
        ptx::barrier_wait(shared.q_empty, q_parity);
        q_parity ^= 1;
        ptx::barrier_arrive_expect(shared.q_full, 2 * kHalfQBytes);
        for (int half = 0; half < 2; ++half)
            ptx::tma_load_3d(shared.q + half * kHalfQBytes, maps.q, shared.q_full, half * 64, 0,
                             shared.token[s.tile]);
        for (int i = 0; i < s.num_blocks; ++i) {
            const int page = table[i];
            if constexpr (sizeof(C) == 1) {
                ptx::barrier_wait(shared.codes_empty[codes.at], codes.parity);
                ptx::barrier_arrive_expect(shared.codes_full[codes.at], kPage * kDim);
                ptx::tma_load_3d(shared.codes[codes.at], maps.k, shared.codes_full[codes.at], 0, 0, page);
                codes.advance();
            } else {
                ptx::barrier_wait(shared.k_empty[k.at], k.parity);
                ptx::barrier_arrive_expect(shared.k_full[k.at], 2 * kHalfPageBytes);
                for (int half = 0; half < 2; ++half)
                    ptx::tma_load_3d(shared.k[k.at] + half * kHalfPageBytes, maps.k, shared.k_full[k.at],
                                     half * 64, 0, page);
                k.advance();
            }
        }
    });
}

/// Warps that turn pages of codes into f16.
__device__ __forceinline__ void widen(Shared<e4m3>& shared, int num_tiles, int max_stretches, int warp) {
    Ring<kCodeSlots> codes(0);
    Ring<kStages<e4m3>> k(1);
    for_each_stretch(shared, num_tiles, max_stretches, [&](const Stretch& s) {
        for (int i = 0; i < s.num_blocks; ++i) {
            ptx::barrier_wait(shared.codes_full[codes.at], codes.parity);
            ptx::barrier_wait(shared.k_empty[k.at], k.parity);
            widen_page<kWideners>(ptx::smem_address(shared.k[k.at]),
                                  ptx::smem_address(shared.codes[codes.at]), warp);
            ptx::fence_async_proxy();
            __syncwarp();
            if (threadIdx.x % 32 == 0) {
                ptx::barrier_arrive(shared.k_full[k.at]);
                ptx::barrier_arrive(shared.codes_empty[codes.at]);
            }
            k.advance();
            codes.advance();
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

/// The best kSelectKept blocks of a row so far; each lane of a quad holds a quarter of them. Blocks come in
/// ascending order.
struct Best {
    static constexpr int kMine = kSelectKept / 4;
    // Score as an integer, and ~block: of equal scores the one with the lower tag goes first. Empty places: 0
    // and a tag of their own below all others.
    uint32_t key[kMine], tag[kMine];
    uint32_t last_key, last_tag;  // of all, the one that goes next

    __device__ __forceinline__ void clear(int t) {
#pragma unroll
        for (int i = 0; i < kMine; ++i) key[i] = 0, tag[i] = kMine * t + i;
        last_key = last_tag = 0;
    }

    /// The same row in the lanes of a quad; by the whole warp.
    __device__ __forceinline__ void insert(uint32_t new_key, int block) {
        const bool better = new_key > last_key;
        if (!__any_sync(kFull, better)) return;
        uint64_t last = ~uint64_t{0};
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
            if (better && tag[i] == last_tag) key[i] = new_key, tag[i] = ~static_cast<uint32_t>(block);
            last = min(last, static_cast<uint64_t>(key[i]) << 32 | tag[i]);
        }
        last = min(last, __shfl_xor_sync(kFull, last, 1));
        last = min(last, __shfl_xor_sync(kFull, last, 2));
        last_key = static_cast<uint32_t>(last >> 32);
        last_tag = static_cast<uint32_t>(last);
    }

    /// In ascending order of blocks, empty places at the end.
    __device__ __forceinline__ void store(SelectCandidate* row, bool wanted) const {
        int rank[kMine] = {};
#pragma unroll
        for (int other = 0; other < 4; ++other)
#pragma unroll
            for (int j = 0; j < kMine; ++j) {
                const uint32_t theirs = __shfl_xor_sync(kFull, tag[j], other);
#pragma unroll
                for (int i = 0; i < kMine; ++i) rank[i] += theirs > tag[i];
            }
        if (!wanted) return;
#pragma unroll
        for (int i = 0; i < kMine; ++i) row[rank[i]] = {key[i], static_cast<int32_t>(~tag[i])};
    }
};

/// A warpgroup owns 128 rows as two accumulators of 64: one is reduced while the other is computed.
template <class C, bool kLists>
__device__ __forceinline__ void consume(const SelectBlocksParams& p, Shared<C>& shared, int num_tiles,
                                        int group, const Output& output) {
    constexpr bool kCodes = sizeof(C) == 1;
    const int tid = static_cast<int>(threadIdx.x) % 128, warp_idx = tid / 32, lane_idx = tid % 32;
    const int g = lane_idx / 4, t = lane_idx % 4;
    const int num_heads = static_cast<int>(p.num_index_heads);
    const int tile_row = group * 128 + warp_idx * 16 + g;
    Ring<kStages<C>> k(0);
    int q_parity = 0;
    float acc[2][64];
    const auto multiply = [&](float (&d)[64], int half_rows) {
        const uint64_t a =
            ptx::wgmma_operand(ptx::smem_address(shared.q) + (group * 128 + half_rows * 64) * 128);
        const uint64_t b = ptx::wgmma_operand(ptx::smem_address(shared.k[k.at]));
        ptx::wgmma_begin();
#pragma unroll
        for (int step = 0; step < 8; ++step) {
            const uint64_t a_step = a + ((step / 4 * kHalfQBytes + step % 4 * 32) >> 4);
            const uint64_t b_step = b + ((step / 4 * kHalfPageBytes + step % 4 * 32) >> 4);
            if constexpr (kCodes)
                ptx::Wgmma<128>::f16(d, a_step, b_step, step > 0);
            else
                ptx::Wgmma<128>::bf16(d, a_step, b_step, step > 0);
        }
        ptx::wgmma_commit();
    };
    for_each_stretch(shared, num_tiles, output.lists.max_stretches, [&](const Stretch& s) {
        const int seq = shared.seq[s.tile], first_token = shared.token[s.tile];
        const int seq_end = p.cu_seqlens_q[seq + 1], end_block = s.first_block + s.num_blocks;
        const int num_rows = (seq_end - first_token) * num_heads;
        const auto row_of = [&](int half_rows, int row) { return tile_row + half_rows * 64 + row * 8; };
        ptx::barrier_wait(shared.q_full, q_parity);
        q_parity ^= 1;
        if constexpr (kCodes) {
            // The factors of the rows do not matter to the order of their scores.
            for (int half_rows = 0; half_rows < 2; ++half_rows)
                rows_to_f16(ptx::smem_address(shared.q) + (group * 128 + half_rows * 64) * 128, kHalfQBytes);
            ptx::fence_async_proxy();
            ptx::named_barrier(1 + group, 128);
        }
        // Scores: lane t of a quad keeps the page with block % 4 == t, so that a quad writes 16 bytes of a
        // row.
        float kept[2][2];
        const auto keep_score = [&](int half_rows, int row, float best, int block) {
            if (block % 4 == t) kept[half_rows][row] = best;
            const int mine = block / 4 * 4 + t;
            if ((block % 4 == 3 || block == end_block - 1) && mine >= s.first_block && mine <= block &&
                row_of(half_rows, row) < num_rows)
                output.scores[(static_cast<int64_t>(first_token) * num_heads + row_of(half_rows, row)) *
                                  output.score_stride +
                              mine] = kept[half_rows][row];
        };
        // Lists: blocks from `begin` to `end` of a row are ranked, the others are forced or not visible.
        Best best_blocks[2][2];
        int end[2][2];
        const int begin = static_cast<int>(p.init_blocks);
        if constexpr (kLists) {
            const int first_position = p.seq_lens[seq] - seq_end + first_token;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = row_of(i / 2, i % 2);
                best_blocks[i / 2][i % 2].clear(t);
                end[i / 2][i % 2] = row < num_rows ? (first_position + row / num_heads) / kPage + 1 -
                                                         static_cast<int>(p.local_blocks)
                                                   : 0;
            }
        }
        const auto keep = [&](int half_rows, int block) {
            float best[2];
            row_best(acc[half_rows], best);
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                if constexpr (kLists)
                    best_blocks[half_rows][row].insert(
                        block >= begin && block < end[half_rows][row] ? ordered(best[row]) : 0, block);
                else
                    keep_score(half_rows, row, best[row], block);
            }
        };
        for (int block = s.first_block; block < end_block; ++block) {
            ptx::barrier_wait(shared.k_full[k.at], k.parity);
            multiply(acc[0], 0);
            multiply(acc[1], 1);
            ptx::wgmma_wait<1>();
            keep(0, block);
            ptx::wgmma_wait<0>();
            if (lane_idx == 0) ptx::barrier_arrive(shared.k_empty[k.at]);
            keep(1, block);
            k.advance();
        }
        if (lane_idx == 0) ptx::barrier_arrive(shared.q_empty);
        if constexpr (kLists) {
            const int block_idx = static_cast<int>(blockIdx.x);
            SelectCandidate* list = output.lists.stretch(s.tile + block_idx);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = row_of(i / 2, i % 2);
                best_blocks[i / 2][i % 2].store(list + row * kSelectKept, row < num_rows);
            }
            if (group == 0 && tid == 0) {
                SelectSpan& span = output.lists.spans[s.tile];
                if (s.first_block == 0) span.first = s.tile + block_idx;
                if (end_block == shared.cu_pages[s.tile + 1] - shared.cu_pages[s.tile])
                    span.last = s.tile + block_idx;
            }
        }
    });
}

/// Rows on M, a page of keys on N. No mask anywhere: pages from a token's own block on are never ranked,
/// whatever their scores say. Blocks take equal shares of the flattened list of (row tile, page).
template <class C, bool kLists>
__global__ void __launch_bounds__(kThreads, 1)
    select_prefill_kernel(const __grid_constant__ SelectBlocksParams p, const __grid_constant__ Maps maps,
                          int num_tiles, const __grid_constant__ Output output) {
    extern __shared__ char raw[];
    constexpr bool kCodes = sizeof(C) == 1;
    auto& shared = *reinterpret_cast<Shared<C>*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
    if (threadIdx.x == 0) {
        ptx::barrier_init(shared.q_full, 1);
        ptx::barrier_init(shared.q_empty, kConsumers * 4);
        for (int i = 0; i < kStages<C>; ++i) {
            ptx::barrier_init(shared.k_full[i], kCodes ? kWideners : 1);
            ptx::barrier_init(shared.k_empty[i], kConsumers * 4);
        }
        if constexpr (kCodes) {
            for (int i = 0; i < kCodeSlots; ++i) {
                ptx::barrier_init(shared.codes_full[i], 1);
                ptx::barrier_init(shared.codes_empty[i], kWideners);
            }
        }
        ptx::barrier_init_done();
    }
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    list_tiles(shared, p, num_tiles);
    __syncthreads();
    const int group = static_cast<int>(threadIdx.x) / 128, warp_idx = static_cast<int>(threadIdx.x) / 32;
    const int max_stretches = output.lists.max_stretches;
    if (group == 0) {
        ptx::release_registers<40>();
        if (threadIdx.x == 0) produce<C>(p, maps, shared, num_tiles, max_stretches);
        if constexpr (kCodes) {
            if (warp_idx > 0) widen(shared, num_tiles, max_stretches, warp_idx - 1);
        }
    } else {
        ptx::take_registers<232>();
        consume<C, kLists>(p, shared, num_tiles, group - 1, output);
    }
}

template <class C, bool kLists>
void launch_prefill(const SelectBlocksParams& p, const Output& output, Stream stream) {
    const bool codes = sizeof(C) == 1;
    const int64_t tokens_per_tile = kRows / p.num_index_heads;
    const Maps maps{
        make_tensor_map<3>(p.index_q, {kDim, p.num_index_heads, p.num_tokens},
                           {p.index_q_head_stride, p.index_q_token_stride},
                           {64, p.num_index_heads, tokens_per_tile}),
        make_tensor_map<3>(p.index_k_cache, {kDim, kPage, p.num_blocks}, {kDim, p.cache_block_stride},
                           {codes ? 128 : 64, kPage, 1},
                           codes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16)};
    const int64_t blocks = std::min(num_multiprocessors(), kSelectMaxPrefillGrid);
    const LaunchChain launch{"select_blocks", dim3(static_cast<unsigned>(blocks)), kThreads,
                             sizeof(Shared<C>) + 1024, stream};
    launch(select_prefill_kernel<C, kLists>, p, maps, static_cast<int>(select_max_tiles(p)), output);
}

template <bool kLists>
void launch_prefill(const SelectBlocksParams& p, const Output& output, Stream stream) {
    p.cache_dtype == DType::kE4M3 ? launch_prefill<e4m3, kLists>(p, output, stream)
                                  : launch_prefill<bf16, kLists>(p, output, stream);
}

}  // namespace

void select_prefill_scores(const SelectBlocksParams& p, Stream stream) {
    launch_prefill<false>(
        p, {.scores = static_cast<float*>(p.workspace), .score_stride = select_score_stride(p), .lists = {}},
        stream);
}

void select_prefill_lists(const SelectBlocksParams& p, Stream stream) {
    launch_prefill<true>(p, {.scores = nullptr, .score_stride = 0, .lists = select_lists(p)}, stream);
}

}  // namespace mmx::cuda::sm90
