#include "cpp/core/math.h"
#include "cuda/common/launch.h"
#include "cuda/common/paged.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/launchers.h"
#include "cuda/kernels/selector/choose.h"
#include "cuda/kernels/selector/sm90.h"

namespace mmx::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMaxSmemBytes = 227 * 1024;

/// Blocks as numbers, none of them 0, that sort best first in descending order: forced, score, lower id.
__device__ __forceinline__ uint64_t rank_key(float score, int64_t block, bool forced) {
    const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 becomes 0
    const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(forced) << 63 | static_cast<uint64_t>(ordered) << 31 |
           (0x7FFFFFFFu - static_cast<uint32_t>(block));
}

/// Largest of the threads' values, the same in every thread. All threads must call it.
__device__ uint64_t block_max(uint64_t x) {
    __shared__ uint64_t partial[kWarps];
    for (int offset = 16; offset > 0; offset /= 2) {
        const uint64_t other = __shfl_xor_sync(kFull, x, offset);
        x = other > x ? other : x;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) x = partial[w] > x ? partial[w] : x;
    return x;
}

// One thread block per (token, index head); scores of all its blocks stay in shared memory. Queries of type
// T, pages of type C.
template <class T, class C>
__global__ void __launch_bounds__(kThreads) select_blocks_kernel(SelectBlocksParams p) {
    extern __shared__ float smem[];
    float* q = smem;                     // [index_dim]
    float* scores = smem + p.index_dim;  // [visible blocks]
    const int64_t token = blockIdx.x / p.num_index_heads, head = blockIdx.x % p.num_index_heads;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int32_t* ids = p.block_ids + static_cast<int64_t>(blockIdx.x) * p.topk;
    const TokenPlace place = place_of(token, p.cu_seqlens_q, p.seq_lens, p.num_seqs);
    const int64_t visible = place.seq < 0 ? 0 : place.position / p.block_size + 1;
    if (visible <= p.topk) {
        for (int64_t i = threadIdx.x; i < p.topk; i += kThreads)
            ids[i] = i < visible ? static_cast<int32_t>(i) : -1;
        return;
    }

    const T* index_q =
        static_cast<const T*>(p.index_q) + token * p.index_q_token_stride + head * p.index_q_head_stride;
    for (int64_t d = threadIdx.x; d < p.index_dim; d += kThreads) q[d] = to_float(index_q[d]);
    __syncthreads();
    const int32_t* table = p.block_table + place.seq * p.block_table_stride;
    for (int64_t block = warp; block < visible; block += kWarps) {
        const C* keys = static_cast<const C*>(p.index_k_cache) + table[block] * p.cache_block_stride;
        const int64_t num_keys = min(p.block_size, place.position + 1 - block * p.block_size);
        float best = -INFINITY;
        for (int64_t key = 0; key < num_keys; ++key) {
            float sum = 0;
            for (int64_t d = lane; d < p.index_dim; d += 32)
                sum = fmaf(q[d], to_float(keys[key * p.index_dim + d]), sum);
            best = fmaxf(best, warp_sum(sum));  // fmaxf passes over NaN
        }
        if (lane == 0) scores[block] = best;
    }
    __syncthreads();

    // The topk-th best key: each round finds the best one below the last.
    uint64_t threshold = ~uint64_t{0};
    const auto key_of = [&](int64_t block) {
        return rank_key(scores[block], block, block < p.init_blocks || block >= visible - p.local_blocks);
    };
    for (int64_t round = 0; round < p.topk; ++round) {
        uint64_t best = 0;
        for (int64_t block = threadIdx.x; block < visible; block += kThreads) {
            const uint64_t key = key_of(block);
            if (key < threshold && key > best) best = key;
        }
        threshold = block_max(best);
    }
    if (warp > 0) return;
    int count = 0;
    for (int64_t first = 0; first < visible; first += 32) {
        const int64_t block = first + lane;
        const bool kept = block < visible && key_of(block) >= threshold;
        const unsigned mask = __ballot_sync(kFull, kept);
        if (kept) ids[count + __popc(mask & ((1u << lane) - 1))] = static_cast<int32_t>(block);
        count += __popc(mask);
    }
}

}  // namespace

int64_t select_blocks_workspace(const SelectBlocksParams& p) { return select_workspace_bytes(p); }

void select_blocks(const SelectBlocksParams& p, Stream stream) {
    if (p.num_tokens == 0) return;
    if (const SelectKernel kernel = choose_select(p);
        kernel != SelectKernel::kSimple && is_aligned16(p.index_q) && is_aligned16(p.index_k_cache)) {
        const bool ranks = p.max_blocks_per_seq > p.topk;  // else every block is kept
        if (ranks && kernel == SelectKernel::kSm90PrefillLists) {
            sm90::select_prefill_lists(p, stream);
            return sm90::select_topk_of_lists(p, stream);
        }
        if (ranks && kernel == SelectKernel::kSm90Decode) sm90::select_decode_scores(p, stream);
        if (ranks && kernel == SelectKernel::kSm90Prefill) sm90::select_prefill_scores(p, stream);
        return sm90::select_topk(p, stream);
    }
    const int64_t smem_bytes = (p.index_dim + p.max_blocks_per_seq) * static_cast<int64_t>(sizeof(float));
    MMX_CHECK(smem_bytes <= kMaxSmemBytes, "select_blocks: max_blocks_per_seq=", p.max_blocks_per_seq,
              " does not fit into shared memory; at most ",
              kMaxSmemBytes / static_cast<int64_t>(sizeof(float)) - p.index_dim, " blocks do");
    const Launch launch{"select_blocks", dim3(static_cast<unsigned>(p.num_tokens * p.num_index_heads)),
                        kThreads, static_cast<size_t>(smem_bytes), stream};
    dispatch_pages(p.dtype, p.cache_dtype,
                   [&](auto t, auto c) { launch(select_blocks_kernel<decltype(t), decltype(c)>, p); });
}

}  // namespace mmx::cuda
