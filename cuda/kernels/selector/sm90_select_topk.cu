#include "cpp/core/math.h"
#include "cuda/common/batch.cuh"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/kernels/selector/choose.h"
#include "cuda/kernels/selector/order.cuh"
#include "cuda/kernels/selector/sm90.h"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kMostValues = 8;  // scores per lane
constexpr int kPage = 128;
constexpr uint32_t kHighest = 0xFFFFFFFFu;  // above every key

/// How many candidates reach each of three thresholds, of which every next one is higher.
struct Reached {
    uint32_t first, second, third;
};

/// Why in PTX: the compiler copies a count before it adds to it, twice the instructions.
__device__ __forceinline__ void count_if_reached(uint32_t& count, uint32_t key, uint32_t threshold) {
    asm("{ .reg .pred p; setp.ge.u32 p, %1, %2; @p add.u32 %0, %0, 1; }"
        : "+r"(count)
        : "r"(key), "r"(threshold));
}

/// Sums over the kWarps warps that share a row. `slots` alternate, so that one barrier per sum is enough. A
/// warp has at most 256 candidates and a row 8,192: counts travel together.
template <int kWarps>
__device__ __forceinline__ Reached row_sum(const Reached& x, uint32_t (*slots)[kWarps], int& parity) {
    uint32_t sum = __reduce_add_sync(kFull, x.first | x.second << 10 | x.third << 20);
    if constexpr (kWarps == 1) return {sum & 1023, sum >> 10 & 1023, sum >> 20};
    if (threadIdx.x % 32 == 0) slots[parity][threadIdx.x / 32] = sum;
    __syncthreads();
    const int lane_idx = static_cast<int>(threadIdx.x % 32);
    sum = lane_idx < kWarps ? slots[parity][lane_idx] : 0;
    parity ^= 1;
    const uint32_t second = __reduce_add_sync(kFull, sum >> 10 & 1023);
    sum = __reduce_add_sync(kFull, (sum & 1023) | sum >> 20 << 16);
    return {sum & 0xFFFF, second, sum >> 16};
}

/// Where a row's candidates come from.
struct Candidates {
    const float* scores;  // [rows, score_stride]; null with lists, or where every block is kept
    int64_t score_stride;
    SelectLists lists;
};

/// Sum over the lanes before this one of x, at most kValues.
template <int kValues>
__device__ __forceinline__ int count_before(int x) {
    static_assert(kValues < 16);
    const unsigned lower_lanes = (1u << threadIdx.x % 32) - 1;
    int sum = 0;
#pragma unroll
    for (int bit = 0; 1 << bit <= kValues; ++bit)
        sum += __popc(__ballot_sync(kFull, x >> bit & 1) & lower_lanes) << bit;
    return sum;
}

/// A row to rank.
struct Row {
    const float* scores;          // [blocks], from multiples of four on a whole float4
    const SelectCandidate* list;  // [num_listed], what stretches of pages left instead
    int num_listed;
    int visible;   // blocks
    int32_t* out;  // [topk]
};

/// By kWarps warps: the chosen blocks of a row of more than topk. A lane's candidates are kValues neighbours.
/// The threshold is found two bits a round, from the highest bit in which candidates differ, and the search
/// ends as soon as it separates exactly the wanted number: about log2(candidates) / 2 + 1 rounds for scores
/// without ties.
template <int kWarps, int kValues, bool kLists>
__device__ __forceinline__ void rank(const SelectBlocksParams& p, const Row& row, int part) {
    __shared__ uint32_t slots[2][kWarps];
    __shared__ uint32_t extremes[2][kWarps];
    __shared__ int counts[2][kWarps];
    const int lane_idx = static_cast<int>(threadIdx.x % 32);
    const int topk = static_cast<int>(p.topk), visible = row.visible;
    const int forced_end = static_cast<int>(p.init_blocks),
              forced_begin = visible - static_cast<int>(p.local_blocks);
    const int wanted = topk - forced_end - static_cast<int>(p.local_blocks);

    const int first = (part * 32 + lane_idx) * kValues;
    uint32_t key[kValues];                      // 0: no candidate
    int listed[kValues];                        // lists: the block
    uint32_t largest = 0, smallest = kHighest;  // the latter less 1, which leaves out what is no candidate
    float score[kValues];
    // All of them before any is looked at.
    if constexpr (kLists) {
        constexpr int kKept = static_cast<int>(kSelectKept);
        static_assert(kKept % kValues == 0 && kValues % 2 == 0);
        const auto* mine = reinterpret_cast<const uint4*>(
            row.list + first / kKept * (kSelectTileRows * kSelectKept) + first % kKept);
#pragma unroll
        for (int i = 0; i < kValues; i += 2) {
            const uint4 two = first < row.num_listed ? mine[i / 2] : make_uint4(0, 0, 0, 0);
            key[i] = two.x, listed[i] = static_cast<int>(two.y);
            key[i + 1] = two.z, listed[i + 1] = static_cast<int>(two.w);
        }
    } else if constexpr (kValues % 4 == 0) {
#pragma unroll
        for (int i = 0; i < kValues; i += 4) {
            float4 x{};
            if (first + i < forced_begin) x = *reinterpret_cast<const float4*>(row.scores + first + i);
            score[i] = x.x, score[i + 1] = x.y, score[i + 2] = x.z, score[i + 3] = x.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < kValues; ++i) score[i] = first + i < forced_begin ? row.scores[first + i] : 0;
    }
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
        if constexpr (!kLists)
            key[i] = first + i >= forced_end && first + i < forced_begin ? ordered(score[i]) : 0;
        largest = max(largest, key[i]);
        smallest = min(smallest, key[i] - 1);
    }
    largest = __reduce_max_sync(kFull, largest);
    smallest = __reduce_min_sync(kFull, smallest);
    if constexpr (kWarps > 1) {
        if (lane_idx == 0) extremes[0][part] = largest, extremes[1][part] = smallest;
        __syncthreads();
        largest = __reduce_max_sync(kFull, lane_idx < kWarps ? extremes[0][lane_idx] : 0);
        smallest = __reduce_min_sync(kFull, lane_idx < kWarps ? extremes[1][lane_idx] : kHighest);
    }

    // Invariant: at least `wanted` candidates are >= threshold.
    uint32_t threshold = wanted == 0 ? kHighest : largest;
    bool exact = wanted == 0;
    ++smallest;
    if (!exact && largest != smallest) {
        const auto fewest = static_cast<uint32_t>(wanted);
        int low = (31 - __clz(largest ^ smallest)) & ~1, parity = 0;
        threshold = low == 30 ? 0 : largest >> (low + 2) << (low + 2);
        for (; low >= 0 && !exact; low -= 2) {
            const uint32_t step = 1u << low;
            Reached reached{};
#pragma unroll
            for (int i = 0; i < kValues; ++i) {
                count_if_reached(reached.first, key[i], threshold + step);
                count_if_reached(reached.second, key[i], threshold + 2 * step);
                count_if_reached(reached.third, key[i], threshold + 3 * step);
            }
            reached = row_sum<kWarps>(reached, slots, parity);
            const uint32_t steps =
                (reached.first >= fewest) + (reached.second >= fewest) + (reached.third >= fewest);
            threshold += steps * step;
            exact = reached.first == fewest || reached.second == fewest || reached.third == fewest;
        }
    }

    // Chosen: forced, above the threshold, and the first `ties` of those that equal it.
    const uint32_t limit = exact ? threshold : threshold + 1;
    unsigned above = 0, equal = 0;  // bit i: of the lane's value i
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
        above |= static_cast<unsigned>(key[i] >= limit) << i;
        equal |= static_cast<unsigned>(!exact && key[i] == threshold) << i;
    }
    int above_before = 0, equal_before = 0, ties = 0;
    if (kWarps > 1 || !exact) {
        const int num_above = __reduce_add_sync(kFull, __popc(above)),
                  num_equal = __reduce_add_sync(kFull, __popc(equal));
        ties = wanted - num_above;
        if constexpr (kWarps > 1) {
            if (lane_idx == 0) counts[0][part] = num_above, counts[1][part] = num_equal;
            __syncthreads();
            const int above_of = lane_idx < kWarps ? counts[0][lane_idx] : 0,
                      equal_of = lane_idx < kWarps ? counts[1][lane_idx] : 0;
            ties = wanted - __reduce_add_sync(kFull, above_of);
            above_before = __reduce_add_sync(kFull, lane_idx < part ? above_of : 0);
            equal_before = __reduce_add_sync(kFull, lane_idx < part ? equal_of : 0);
        }
    }
    // Forced blocks lie between the scores, lists leave them out.
    const int warp_first = part * 32 * kValues;
    const int forced_before =
        kLists ? forced_end : min(warp_first, forced_end) + max(0, warp_first - forced_begin);
    int written = forced_before + above_before + min(ties, equal_before);
    unsigned chosen = above;
    if (!exact) {
        int seen = equal_before + count_before<kValues>(__popc(equal));
#pragma unroll
        for (int i = 0; i < kValues; ++i)
            if (equal >> i & 1) chosen |= static_cast<unsigned>(seen++ < ties) << i;
    }
    if constexpr (!kLists) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) {
            const int block = first + i;
            chosen |= static_cast<unsigned>(block < forced_end || (block >= forced_begin && block < visible))
                      << i;
        }
    }
    int32_t* to = row.out + written + count_before<kValues>(__popc(chosen));
#pragma unroll
    for (int i = 0; i < kValues; ++i)
        if (chosen >> i & 1) *to++ = kLists ? listed[i] : first + i;
    if constexpr (kLists) {
        if (part != 0) return;
        for (int i = lane_idx; i < topk; i += 32) {
            if (i < forced_end) row.out[i] = i;
            if (i >= forced_end + wanted) row.out[i] = visible - topk + i;
        }
    }
}

/// kRows rows per block when a warp has its own row, else one row of kWarps warps, which hold contiguous
/// candidates in the order of their blocks; of a short context in a long page table, the first ones.
template <int kWarps, int kRows, bool kLists>
__global__ void __launch_bounds__(kWarps * kRows * 32)
    select_topk_kernel(SelectBlocksParams p, Candidates from) {
    static_assert(kWarps == 1 || kRows == 1);
    if (!kLists && !from.scores) ptx::wait_for_predecessors();  // the op's only kernel
    ptx::let_successors_start();
    const int warp_idx = static_cast<int>(threadIdx.x / 32), lane_idx = static_cast<int>(threadIdx.x % 32);
    const int num_heads = static_cast<int>(p.num_index_heads), topk = static_cast<int>(p.topk);
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + (kWarps == 1 ? warp_idx : 0);
    const int part = kWarps == 1 ? 0 : warp_idx;
    if (kRows > 1 && row >= p.num_tokens * num_heads) {
        ptx::wait_for_predecessors();
        return;
    }
    const int token = static_cast<int>(row / num_heads);
    const TokenPlace place = warp_place_of(token, p.cu_seqlens_q, p.seq_lens, static_cast<int>(p.num_seqs));
    const int visible = place.seq < 0 ? 0 : static_cast<int>(place.position / kPage) + 1;
    int32_t* out = p.block_ids + row * topk;
    const SelectCandidate* list = nullptr;
    int num_listed = 0;
    if constexpr (kLists) {
        if (visible > topk) {
            const int tile_tokens = static_cast<int>(kSelectTileRows) / num_heads;
            int tile = 0;  // those of earlier sequences
            for (int s = lane_idx; s < place.seq; s += 32)
                tile += (p.cu_seqlens_q[s + 1] - p.cu_seqlens_q[s] + tile_tokens - 1) / tile_tokens;
            const int in_seq = token - p.cu_seqlens_q[place.seq];
            tile = __reduce_add_sync(kFull, tile) + in_seq / tile_tokens;
            ptx::wait_for_predecessors();
            const SelectSpan span = from.lists.spans[tile];
            const int tile_row = in_seq % tile_tokens * num_heads + static_cast<int>(row % num_heads);
            list = from.lists.stretch(span.first) + tile_row * kSelectKept;
            num_listed = (span.last - span.first + 1) * static_cast<int>(kSelectKept);
        }
    }
    const Row mine{kLists ? nullptr : from.scores + row * from.score_stride, list, num_listed, visible, out};
    // Fetched and computed before the wait instead of behind it.
    asm volatile("" ::"l"(mine.scores), "l"(out), "r"(visible));
    ptx::wait_for_predecessors();

    if (visible <= topk) {
        if (part == 0)
            for (int i = lane_idx; i < topk; i += 32) out[i] = i < visible ? i : -1;
        return;
    }
    if constexpr (!kLists) {
        if (visible <= 32) {
            if (part == 0) rank<1, 1, false>(p, mine, 0);
            return;
        }
        if (kWarps > 1 && visible <= 32 * kMostValues) {
            if (part == 0) rank<1, kMostValues, false>(p, mine, 0);
            return;
        }
        if (kWarps > 4 && visible <= 4 * 32 * kMostValues) {
            if (part < 4) rank<4, kMostValues, false>(p, mine, part);
            return;
        }
    }
    rank<kWarps, kMostValues, kLists>(p, mine, part);
}

template <int kWarps, int kRows, bool kLists>
void launch_topk(const SelectBlocksParams& p, const Candidates& from, Stream stream) {
    const int64_t rows = p.num_tokens * p.num_index_heads;
    const LaunchChain launch{"select_blocks", dim3(static_cast<unsigned>(ceil_div(rows, kRows))),
                             kWarps * kRows * 32, 0, stream};
    launch(select_topk_kernel<kWarps, kRows, kLists>, p, from);
}

}  // namespace

void select_topk(const SelectBlocksParams& p, Stream stream) {
    const bool ranks = p.max_blocks_per_seq > p.topk;
    const Candidates from{.scores = ranks ? static_cast<const float*>(p.workspace) : nullptr,
                          .score_stride = select_score_stride(p),
                          .lists = {}};
    if (p.max_blocks_per_seq <= 32 * kMostValues) return launch_topk<1, 4, false>(p, from, stream);
    if (p.max_blocks_per_seq <= 4 * 32 * kMostValues) return launch_topk<4, 1, false>(p, from, stream);
    static_assert(kSelectMaxBlocks <= 32 * 32 * kMostValues);
    launch_topk<32, 1, false>(p, from, stream);
}

void select_topk_of_lists(const SelectBlocksParams& p, Stream stream) {
    const Candidates from{.scores = nullptr, .score_stride = 0, .lists = select_lists(p)};
    static_assert(kSelectFewStretches * kSelectKept <= 32 * kMostValues);
    static_assert(kSelectManyStretches * kSelectKept <= 4 * 32 * kMostValues);
    if (from.lists.max_stretches <= kSelectFewStretches) return launch_topk<1, 4, true>(p, from, stream);
    launch_topk<4, 1, true>(p, from, stream);
}

}  // namespace mmx::cuda::sm90
