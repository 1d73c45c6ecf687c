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
    int* size = job.at<int>(job.plan.union_sizes) + index;
    const TokenPlace first = place_of(first_token, b.cu_seqlens_q, b.seq_lens, b.num_seqs);
    const TokenPlace last = place_of(first_token + num_tokens - 1, b.cu_seqlens_q, b.seq_lens, b.num_seqs);
    if (first.seq < 0 || first.seq != last.seq) {
        if (lane_idx == 0) *size = 0;
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
        if (lane_idx == 0) *size = 0;
        return;
    }
    TilePage* pages = job.at<TilePage>(job.plan.union_pages) + static_cast<int64_t>(index) * kMaxTilePages;
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
        *size = total;
        const int seq = static_cast<int>(first.seq);
        job.at<RowTile>(job.plan.union_tiles)[index] = {first_token,
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

constexpr int kChoiceThreads = 512, kScanThreads = 1024;
constexpr int kListQueries = static_cast<int>(kTileQueries), kListTiles = static_cast<int>(kRunTiles);
constexpr int kSharedBuckets = 4096;  // counted at a time

/// A block's choices that no row tile does: those of one of a slab's parts and a KV head.
struct Choices {
    const SparseJob& job;
    int head, slab, first_token, num_tokens, num_buckets;
    int64_t buckets;  // where theirs lie in counts and starts

    __device__ __forceinline__ explicit Choices(const SparseJob& job) : job(job) {
        const int num_heads = static_cast<int>(job.p.base.num_kv_heads), part = blockIdx.x / num_heads;
        const int num_parts = static_cast<int>(job.plan.num_parts);
        head = static_cast<int>(blockIdx.x) - part * num_heads;
        slab = part / num_parts;
        const int slab_tokens = static_cast<int>(job.plan.slab_tokens), before = slab * slab_tokens;
        const int offset = (part - slab * num_parts) * static_cast<int>(kPartTokens);
        first_token = before + offset;
        num_tokens = min(min(static_cast<int>(kPartTokens), slab_tokens - offset),
                         static_cast<int>(job.p.base.num_tokens) - first_token);
        num_buckets = static_cast<int>(job.plan.slab_buckets) / num_heads;
        buckets = static_cast<int64_t>(part) * job.plan.slab_buckets + head * num_buckets;
    }
    /// f(index, token, rank in its list, bucket) for each of this thread's.
    template <class F>
    __device__ __forceinline__ void for_mine(F&& f) const {
        const SparseAttentionParams& p = job.p;
        const int topk = static_cast<int>(p.topk), num_heads = static_cast<int>(p.base.num_kv_heads);
#pragma unroll 4
        for (int i = static_cast<int>(threadIdx.x); i < num_tokens * topk; i += kChoiceThreads) {
            const int row = i / topk, token = first_token + row, rank = i - row * topk;
            const int index = (token * num_heads + head) * topk + rank, block = p.block_ids[index];
            const TokenPlace place = place_of(token, p.base.cu_seqlens_q, p.base.seq_lens, p.base.num_seqs);
            if (block < 0 || place.seq < 0 || job.in_union(token, head)) continue;
            f(index, token, rank,
              static_cast<int>(place.seq) * static_cast<int>(p.base.max_blocks_per_seq) + block);
        }
    }
};

/// Counts the choices of each bucket; a choice's rank in its list is the count it found.
__global__ void __launch_bounds__(kChoiceThreads) count_kernel(const __grid_constant__ SparseJob job) {
    __shared__ int counts[kSharedBuckets];
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const Choices choices(job);
    int* totals = job.at<int>(job.plan.counts) + choices.buckets;
    for (int first = 0; first < choices.num_buckets; first += kSharedBuckets) {
        const int num = min(kSharedBuckets, choices.num_buckets - first);
        for (int i = static_cast<int>(threadIdx.x); i < num; i += kChoiceThreads) counts[i] = 0;
        __syncthreads();
        choices.for_mine([&](int index, int, int, int bucket) {
            if (bucket >= first && bucket < first + num)
                job.at<int>(job.plan.ranks)[index] = atomicAdd(counts + bucket - first, 1);
        });
        __syncthreads();
        for (int i = static_cast<int>(threadIdx.x); i < num; i += kChoiceThreads)
            totals[first + i] = counts[i];
    }
}

/// The row tiles, those of a KV head together so that its K and V stay in the L2, the last tokens, which tend
/// to have the most pages, first.
__device__ __forceinline__ void order_unions(const SparseJob& job,
                                             uint64_t (&warp_total)[kScanThreads / 32]) {
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    const int num_heads = static_cast<int>(job.p.base.num_kv_heads);
    const int num_groups = static_cast<int>(ceil_div(job.p.base.num_tokens, kListedTokens));
    const int* sizes = job.at<int>(job.plan.union_sizes);
    int* order = job.at<int>(job.plan.union_order);
    int base = 0;
    for (int first = 0; first < num_groups * num_heads; first += kScanThreads) {
        const int i = first + tid, head = i / num_groups;
        const int index = (num_groups - 1 - (i - head * num_groups)) * num_heads + head;
        const bool listed = i < num_groups * num_heads && sizes[index] != 0;
        const unsigned lanes = __ballot_sync(kFull, listed);
        if (lane_idx == 0) warp_total[warp_idx] = __popc(lanes);
        __syncthreads();
        int at = base + __popc(lanes & ((1u << lane_idx) - 1));
        for (int w = 0; w < kScanThreads / 32; ++w) {
            const int count = static_cast<int>(warp_total[w]);
            if (w < warp_idx) at += count;
            base += count;
        }
        __syncthreads();
        if (listed) order[at] = index;
    }
    if (tid == 0) *job.at<int>(job.plan.counters) = base;
}

/// A block per (slab, KV head): where each bucket's list starts, its padding, and the items, which lie
/// together as far as a round of the block goes. A further block orders the row tiles.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(const __grid_constant__ SparseJob job) {
    __shared__ uint64_t warp_total[kScanThreads / 32];
    __shared__ int first_places[2];  // row tiles, items
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const SparseAttentionParams& p = job.p;
    const PrefillPlan& plan = job.plan;
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    const int num_heads = static_cast<int>(p.base.num_kv_heads);
    const int64_t slab = blockIdx.x / num_heads;
    if (slab == plan.num_slabs) return order_unions(job, warp_total);
    const int num_buckets = static_cast<int>(plan.slab_buckets), num_parts = static_cast<int>(plan.num_parts);
    const int head = static_cast<int>(blockIdx.x) % num_heads, head_buckets = num_buckets / num_heads;
    const int* counts = job.at<int>(plan.counts) + slab * num_parts * num_buckets + head * head_buckets;
    int* starts = job.at<int>(plan.starts) + slab * num_parts * num_buckets + head * head_buckets;
    int* list = job.at<int>(plan.lists) + slab * plan.slab_entries;
    PrefillItem* items = job.at<PrefillItem>(plan.items) + slab * plan.slab_items;
    const int max_blocks = static_cast<int>(p.base.max_blocks_per_seq);
    for (int first = 0; first < head_buckets; first += kScanThreads) {
        const int bucket = first + tid;
        int count = 0;
        if (bucket < head_buckets)
#pragma unroll 8
            for (int part = 0; part < num_parts; ++part) count += counts[part * num_buckets + bucket];
        const int num_tiles = (count + kListQueries - 1) / kListQueries;
        const int num_items = (num_tiles + kListTiles - 1) / kListTiles;
        // Row tiles in the high half, items in the low one.
        const uint64_t mine = static_cast<uint64_t>(num_tiles) << 32 | static_cast<unsigned>(num_items);
        const uint64_t sum = warp_prefix_sum(mine);
        if (lane_idx == 31) warp_total[warp_idx] = sum;
        __syncthreads();
        uint64_t before = sum - mine, total = 0;
        for (int w = 0; w < kScanThreads / 32; ++w) {
            if (w < warp_idx) before += warp_total[w];
            total += warp_total[w];
        }
        if (tid == 0) {
            first_places[0] = atomicAdd(job.at<int>(plan.num_tiles) + slab, static_cast<int>(total >> 32));
            first_places[1] =
                atomicAdd(job.at<int>(plan.num_items) + slab, static_cast<int>(static_cast<unsigned>(total)));
        }
        __syncthreads();
        if (count == 0) continue;
        const int first_tile = first_places[0] + static_cast<int>(before >> 32);
        const int first_item = first_places[1] + static_cast<int>(static_cast<unsigned>(before));
        int start = first_tile * kListQueries;
#pragma unroll 8
        for (int part = 0; part < num_parts; ++part) {
            starts[part * num_buckets + bucket] = start;
            start += counts[part * num_buckets + bucket];
        }
        for (int i = count; i < num_tiles * kListQueries; ++i) list[first_tile * kListQueries + i] = -1;
        const int block = bucket % max_blocks, seq = bucket / max_blocks;
        for (int i = 0; i < num_items; ++i) {
            const int begin = num_tiles * i / num_items, end = num_tiles * (i + 1) / num_items;
            items[first_item + i] = make_item(p.base, seq, block, head, first_tile + begin, end - begin);
        }
    }
}

__global__ void __launch_bounds__(kChoiceThreads) scatter_kernel(const __grid_constant__ SparseJob job) {
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const Choices choices(job);
    const int* starts = job.at<int>(job.plan.starts) + choices.buckets;
    int* list = job.at<int>(job.plan.lists) + choices.slab * job.plan.slab_entries;
    choices.for_mine([&](int index, int token, int rank, int bucket) {
        list[starts[bucket] + job.at<int>(job.plan.ranks)[index]] = entry_of(token, rank);
    });
}

}  // namespace

void list_choices(const SparseJob& job, Stream stream) {
    constexpr const char* kOp = "sparse_attention";
    const PagedAttentionParams& b = job.p.base;
    MMX_CUDA_CHECK(cudaMemsetAsync(job.at<char>(job.plan.counters), 0,
                                   static_cast<size_t>(job.plan.counts - job.plan.counters),
                                   to_cuda(stream)));
    if (job.plan.unions) {
        const int64_t num_groups = ceil_div(b.num_tokens, kListedTokens) * b.num_kv_heads;
        const size_t choosers_bytes = static_cast<size_t>(kUnionWarps * align_up(b.max_blocks_per_seq, 128));
        Launch{kOp, dim3(static_cast<unsigned>(ceil_div(num_groups, kUnionWarps))), kUnionWarps * 32,
               choosers_bytes, stream}(union_kernel, job);
    }
    const dim3 parts(static_cast<unsigned>(job.plan.num_slabs * job.plan.num_parts * b.num_kv_heads));
    LaunchChain{kOp, parts, kChoiceThreads, 0, stream}(count_kernel, job);
    const dim3 scans(static_cast<unsigned>(job.plan.num_slabs * b.num_kv_heads + job.plan.unions));
    LaunchChain{kOp, scans, kScanThreads, 0, stream}(scan_kernel, job);
    LaunchChain{kOp, parts, kChoiceThreads, 0, stream}(scatter_kernel, job);
}

}  // namespace mmx::cuda::sm90
