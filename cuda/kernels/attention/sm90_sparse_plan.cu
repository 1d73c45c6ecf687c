#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/paged.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/kernels/attention/sm90_sparse_job.cuh"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kPage = 128;

// ---- neighbours that chose much the same blocks ---------------------------------------------

constexpr int kUnionWarps = 4;

/// A warp per (8 neighbouring tokens, KV head) lists the blocks that any of them chose, highest first.
__global__ void __launch_bounds__(kUnionWarps * 32) union_kernel(const __grid_constant__ SparseJob job) {
    extern __shared__ uint32_t choosers[];  // [kUnionWarps, num_words], a byte per block: bit i is token i
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const SparseAttentionParams& p = job.p;
    const PagedAttentionParams& b = p.base;
    const int warp_idx = static_cast<int>(threadIdx.x / 32), lane_idx = static_cast<int>(threadIdx.x % 32);
    const int num_heads = static_cast<int>(b.num_kv_heads), topk = static_cast<int>(p.topk);
    const int index = static_cast<int>(blockIdx.x) * kUnionWarps + warp_idx;
    const int first_token = index / num_heads * static_cast<int>(kListedTokens), head = index % num_heads;
    if (first_token >= b.num_tokens) return;
    const int num_tokens = min(static_cast<int>(kListedTokens), static_cast<int>(b.num_tokens) - first_token);
    int* is_union = job.at<int>(job.plan.is_union) + index;
    const TokenPlace first = place_of(first_token, b.cu_seqlens_q, b.seq_lens, b.num_seqs);
    const TokenPlace last = place_of(first_token + num_tokens - 1, b.cu_seqlens_q, b.seq_lens, b.num_seqs);
    if (first.seq < 0 || first.seq != last.seq) {
        if (lane_idx == 0) *is_union = 0;
        return;
    }
    const int num_words = (static_cast<int>(b.max_blocks_per_seq) + 127) / 128 * 32;
    uint32_t* words = choosers + warp_idx * num_words;
    for (int i = lane_idx; i < num_words; i += 32) words[i] = 0;
    __syncwarp();
    for (int i = lane_idx; i < num_tokens * topk; i += 32) {
        const int token = i / topk;
        const int block =
            p.block_ids[(static_cast<int64_t>(first_token + token) * num_heads + head) * topk + i % topk];
        if (block >= 0) atomicOr(words + block / 4, 1u << (block % 4 * 8 + token));
    }
    __syncwarp();
    int total = 0;
    for (int i = lane_idx; i < num_words; i += 32) total += __popc(__vcmpne4(words[i], 0)) / 8;
    total = __reduce_add_sync(kFull, total);
    if (total == 0 || total > kMaxUnionPages) {
        if (lane_idx == 0) *is_union = 0;
        return;
    }
    int slot = 0;
    if (lane_idx == 0) slot = atomicAdd(job.at<int>(job.plan.counters), 1);
    slot = __shfl_sync(kFull, slot, 0);
    TilePage* pages = job.at<TilePage>(job.plan.union_pages) + static_cast<int64_t>(slot) * kMaxTilePages;
    const int32_t* table = b.block_table + first.seq * b.block_table_stride;
    int before = 0, highest = -1;
    for (int base = num_words - 32; base >= 0 && before < total; base -= 32) {
        const int word = base + 31 - lane_idx;
        const uint32_t mine = words[word];
        const int count = __popc(__vcmpne4(mine, 0)) / 8;
        const int sum = warp_prefix_sum(count);
        int at = before + sum - count;
        for (int byte = 3; byte >= 0; --byte) {
            const int tokens = mine >> 8 * byte & 0xFF, block = 4 * word + byte;
            if (tokens == 0) continue;
            pages[at++] = {table[block], block << kTilePageShift | tokens};
            highest = max(highest, block);
        }
        before += __shfl_sync(kFull, sum, 31);
    }
    highest = __reduce_max_sync(kFull, highest);
    if (lane_idx == 0) {
        *is_union = 1;
        const int seq = static_cast<int>(first.seq);
        job.at<RowTile>(job.plan.union_tiles)[slot] = {first_token,
                                                       static_cast<int>(first.position),
                                                       seq,
                                                       head,
                                                       num_tokens,
                                                       total,
                                                       min(kPage, b.seq_lens[seq] - highest * kPage),
                                                       0};
    }
}

// ---- which queries chose each block ---------------------------------------------------------

constexpr int kEntryThreads = 256, kScanThreads = 1024;
constexpr int kListQueries = static_cast<int>(kTileQueries), kListTiles = static_cast<int>(kRunTiles);

/// A choice that no row tile does.
struct Choice {
    int index, token, head, rank;  // rank: in the token's list
    int slab, seq, block;
};

/// f(this thread's choice). 32 bits: choices are fewer than 2^31.
template <class F>
__device__ __forceinline__ void for_my_choice(const SparseJob& job, F&& f) {
    const SparseAttentionParams& p = job.p;
    const int topk = static_cast<int>(p.topk), num_heads = static_cast<int>(p.base.num_kv_heads);
    const int i = static_cast<int>(blockIdx.x) * kEntryThreads + static_cast<int>(threadIdx.x),
              row = i / topk;
    if (row >= static_cast<int>(p.base.num_tokens) * num_heads) return;
    const int token = row / num_heads, head = row - token * num_heads, block = p.block_ids[i];
    if (block < 0) return;
    const TokenPlace place = place_of(token, p.base.cu_seqlens_q, p.base.seq_lens, p.base.num_seqs);
    if (place.seq < 0 || job.in_union(token, head)) return;
    f(Choice{i, token, head, i - row * topk, job.slab_of(token), static_cast<int>(place.seq), block});
}

/// Place of a choice's bucket in counts and starts.
__device__ __forceinline__ int64_t bucket_of(const SparseJob& job, const Choice& c) {
    const PagedAttentionParams& p = job.p.base;
    const int bucket =
        (c.head * static_cast<int>(p.num_seqs) + c.seq) * static_cast<int>(p.max_blocks_per_seq) + c.block;
    const int part =
        (c.token - c.slab * static_cast<int>(job.plan.slab_tokens)) / static_cast<int>(kPartTokens);
    return (c.slab * job.plan.num_parts + part) * job.plan.slab_buckets + bucket;
}

/// Counts the choices of each bucket; a choice's rank in its list is the count it found.
__global__ void __launch_bounds__(kEntryThreads) count_kernel(const __grid_constant__ SparseJob job) {
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    for_my_choice(job, [&](const Choice& c) {
        job.at<int>(job.plan.ranks)[c.index] = atomicAdd(job.at<int>(job.plan.counts) + bucket_of(job, c), 1);
    });
}

/// One block per slab: where each bucket's list starts, its padding, and the items.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(const __grid_constant__ SparseJob job) {
    __shared__ uint64_t warp_total[kScanThreads / 32];
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const SparseAttentionParams& p = job.p;
    const PrefillPlan& plan = job.plan;
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    const int64_t slab = blockIdx.x;
    const int num_buckets = static_cast<int>(plan.slab_buckets), num_parts = static_cast<int>(plan.num_parts);
    const int* counts = job.at<int>(plan.counts) + slab * num_parts * num_buckets;
    int* starts = job.at<int>(plan.starts) + slab * num_parts * num_buckets;
    int* list = job.at<int>(plan.lists) + slab * plan.slab_entries;
    PrefillItem* items = job.at<PrefillItem>(plan.items) + slab * plan.slab_items;
    const int num_seqs = static_cast<int>(p.base.num_seqs),
              max_blocks = static_cast<int>(p.base.max_blocks_per_seq);
    uint64_t base = 0;  // row tiles in the high half, items in the low one
    for (int first = 0; first < num_buckets; first += kScanThreads) {
        const int bucket = first + tid;
        int count = 0;
        if (bucket < num_buckets)
#pragma unroll 8
            for (int part = 0; part < num_parts; ++part) count += counts[part * num_buckets + bucket];
        const int num_tiles = (count + kListQueries - 1) / kListQueries;
        const int num_items = (num_tiles + kListTiles - 1) / kListTiles;
        const uint64_t mine = static_cast<uint64_t>(num_tiles) << 32 | static_cast<unsigned>(num_items);
        const uint64_t sum = warp_prefix_sum(mine);
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
        const int first_item = static_cast<int>(static_cast<unsigned>(before));
        int start = first_tile * kListQueries;
#pragma unroll 8
        for (int part = 0; part < num_parts; ++part) {
            starts[part * num_buckets + bucket] = start;
            start += counts[part * num_buckets + bucket];
        }
        for (int i = count; i < num_tiles * kListQueries; ++i) list[first_tile * kListQueries + i] = -1;
        const int block = bucket % max_blocks, seq = bucket / max_blocks % num_seqs;
        const int head = bucket / max_blocks / num_seqs;
        for (int i = 0; i < num_items; ++i) {
            const int begin = num_tiles * i / num_items, end = num_tiles * (i + 1) / num_items;
            items[first_item + i] = make_item(p.base, seq, block, head, first_tile + begin, end - begin);
        }
    }
    if (tid == 0) job.at<int>(plan.num_items)[slab] = static_cast<int>(static_cast<unsigned>(base));
}

__global__ void __launch_bounds__(kEntryThreads) scatter_kernel(const __grid_constant__ SparseJob job) {
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    for_my_choice(job, [&](const Choice& c) {
        const int at = job.at<int>(job.plan.starts)[bucket_of(job, c)] + job.at<int>(job.plan.ranks)[c.index];
        job.at<int>(job.plan.lists)[c.slab * job.plan.slab_entries + at] = entry_of(c.token, c.rank);
    });
}

}  // namespace

void list_choices(const SparseJob& job, Stream stream) {
    constexpr const char* kOp = "sparse_attention";
    const PagedAttentionParams& b = job.p.base;
    MMX_CUDA_CHECK(cudaMemsetAsync(job.at<char>(job.plan.counts), 0,
                                   static_cast<size_t>(job.plan.starts - job.plan.counts), to_cuda(stream)));
    const dim3 entries(
        static_cast<unsigned>(ceil_div(b.num_tokens * b.num_kv_heads * job.p.topk, kEntryThreads)));
    if (job.plan.unions) {
        const int64_t num_groups = ceil_div(b.num_tokens, kListedTokens) * b.num_kv_heads;
        const size_t choosers_bytes = static_cast<size_t>(kUnionWarps * align_up(b.max_blocks_per_seq, 128));
        Launch{kOp, dim3(static_cast<unsigned>(ceil_div(num_groups, kUnionWarps))), kUnionWarps * 32,
               choosers_bytes, stream}(union_kernel, job);
    }
    LaunchChain{kOp, entries, kEntryThreads, 0, stream}(count_kernel, job);
    LaunchChain{kOp, dim3(static_cast<unsigned>(job.plan.num_slabs)), kScanThreads, 0, stream}(scan_kernel,
                                                                                               job);
    LaunchChain{kOp, entries, kEntryThreads, 0, stream}(scatter_kernel, job);
}

}  // namespace mmx::cuda::sm90
