#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/mma.cuh"
#include "cuda/kernels/selector/choose.h"
#include "cuda/kernels/selector/sm90.h"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;
constexpr int kPage = 128, kDim = 128;

/// 16 keys of a page as the A operands of eight k16 steps: this lane's rows g and g + 8, dimensions permuted
/// so that a lane's fragments are 16 contiguous bytes (q is permuted alike; a dot product has no order).
struct KeyTile {
    uint4 low[4], high[4];

    __device__ __forceinline__ void load(const bf16* row) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            low[j] = ptx::load_once(row + j * 32);
            high[j] = ptx::load_once(row + 8 * kDim + j * 32);
        }
    }
};

/// Keys on M, (query token, head) pairs of one sequence on N: one read of K serves all of them. The blocks
/// take equal shares of the flattened list of (sequence, page), whatever the lengths are.
template <int kTiles>
__global__ void __launch_bounds__(kThreads, 2)
    select_decode_scores_kernel(SelectBlocksParams p, float* scores, int64_t score_stride) {
    __shared__ uint4 q_frag[kTiles][4][32];
    __shared__ float best[2][kWarps][kTiles * 8];
    __shared__ int warp_total[kWarps];
    __shared__ int cu_pages[kSelectMaxSeqs + 1];
    ptx::wait_for_predecessors();
    ptx::let_successors_start();

    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    const int g = lane_idx / 4, t = lane_idx % 4;
    const int num_seqs = static_cast<int>(p.num_seqs), num_heads = static_cast<int>(p.num_index_heads);

    // Prefix sums of the pages to score.
    int base = 0;
    if (tid == 0) cu_pages[0] = 0;
    for (int first = 0; first < num_seqs; first += kThreads) {
        const int s = first + tid;
        int pages = 0;
        if (s < num_seqs) {
            const int q_len = p.cu_seqlens_q[s + 1] - p.cu_seqlens_q[s];
            const int last_block = (p.seq_lens[s] - 1) / kPage;
            if (q_len > 0 && last_block >= p.topk) pages = last_block;
        }
        int sum = pages;
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            const int other = __shfl_up_sync(0xFFFFFFFFu, sum, offset);
            if (lane_idx >= offset) sum += other;
        }
        if (lane_idx == 31) warp_total[warp_idx] = sum;
        __syncthreads();
        int before = base;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
            if (w < warp_idx) before += warp_total[w];
            base += warp_total[w];
        }
        if (s < num_seqs) cu_pages[s + 1] = before + sum;
        __syncthreads();
    }
    const int begin = static_cast<int>(static_cast<int64_t>(base) * blockIdx.x / gridDim.x);
    const int end = static_cast<int>(static_cast<int64_t>(base) * (blockIdx.x + 1) / gridDim.x);
    if (begin == end) return;

    int fetch_seq = 0;  // sequence of the page whose id is fetched next
    {
        int high = num_seqs;  // cu_pages[fetch_seq] <= begin < cu_pages[high]
        while (high - fetch_seq > 1) {
            const int middle = (fetch_seq + high) / 2;
            (cu_pages[middle] <= begin ? fetch_seq : high) = middle;
        }
    }
    int seq = fetch_seq;
    const auto page_id = [&](int unit) {
        while (unit >= cu_pages[fetch_seq + 1]) ++fetch_seq;
        return p.block_table[fetch_seq * p.block_table_stride + unit - cu_pages[fetch_seq]];
    };
    const bf16* keys = static_cast<const bf16*>(p.index_k_cache) + (warp_idx * 16 + g) * kDim + t * 8;
    const auto load_tile = [&](KeyTile& tile, int page) { tile.load(keys + page * p.cache_block_stride); };

    KeyTile even, odd;
    load_tile(even, page_id(begin));
    int next_page = begin + 1 < end ? page_id(begin + 1) : 0;
    int staged_seq = -1, num_rows = 0;
    int64_t first_row = 0;

    const auto step = [&](const KeyTile& tile, KeyTile& next, int unit) {
        if (unit + 1 < end) load_tile(next, next_page);
        if (unit + 2 < end) next_page = page_id(unit + 2);
        while (unit >= cu_pages[seq + 1]) ++seq;
        if (seq != staged_seq) {
            __syncthreads();
            staged_seq = seq;
            const int first_token = p.cu_seqlens_q[seq];
            num_rows = (p.cu_seqlens_q[seq + 1] - first_token) * num_heads;
            first_row = static_cast<int64_t>(first_token) * num_heads;
            for (int i = tid; i < kTiles * 4 * 32; i += kThreads) {
                const int lane = i % 32, j = i / 32 % 4, row = i / 128 * 8 + lane / 4;
                uint4 v = make_uint4(0, 0, 0, 0);
                if (row < num_rows)
                    v = *reinterpret_cast<const uint4*>(
                        static_cast<const bf16*>(p.index_q) +
                        (first_token + row / num_heads) * p.index_q_token_stride +
                        row % num_heads * p.index_q_head_stride + j * 32 + lane % 4 * 8);
                q_frag[i / 128][j][lane] = v;
            }
            __syncthreads();
        }
        float (&slot)[kWarps][kTiles * 8] = best[unit % 2];
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
            float acc[4] = {};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const uint4 b = q_frag[n][j][lane_idx];
                ptx::mma_16x8x16(acc, tile.low[j].x, tile.high[j].x, tile.low[j].y, tile.high[j].y, b.x, b.y);
                ptx::mma_16x8x16(acc, tile.low[j].z, tile.high[j].z, tile.low[j].w, tile.high[j].w, b.z, b.w);
            }
            // fmaxf drops NaN: a NaN score counts as -infinity.
            float left = fmaxf(fmaxf(acc[0], acc[2]), -INFINITY),
                  right = fmaxf(fmaxf(acc[1], acc[3]), -INFINITY);
#pragma unroll
            for (int offset = 4; offset < 32; offset *= 2) {
                left = fmaxf(left, __shfl_xor_sync(0xFFFFFFFFu, left, offset));
                right = fmaxf(right, __shfl_xor_sync(0xFFFFFFFFu, right, offset));
            }
            if (g == 0) *reinterpret_cast<float2*>(&slot[warp_idx][n * 8 + t * 2]) = make_float2(left, right);
        }
        __syncthreads();
        if (tid < num_rows) {
            float x = slot[0][tid];
#pragma unroll
            for (int w = 1; w < kWarps; ++w) x = fmaxf(x, slot[w][tid]);
            scores[(first_row + tid) * score_stride + unit - cu_pages[seq]] = x;
        }
    };
    for (int unit = begin; unit < end; unit += 2) {
        step(even, odd, unit);
        if (unit + 1 < end) step(odd, even, unit + 1);
    }
}

}  // namespace

void select_decode_scores(const SelectBlocksParams& p, Stream stream) {
    const LaunchChain launch{"select_blocks", dim3(static_cast<unsigned>(2 * num_multiprocessors())),
                             kThreads, 0, stream};
    float* scores = static_cast<float*>(p.workspace);
    const int64_t columns = p.max_seqlen_q * p.num_index_heads, stride = select_score_stride(p);
    if (columns <= 8) return launch(select_decode_scores_kernel<1>, p, scores, stride);
    if (columns <= 16) return launch(select_decode_scores_kernel<2>, p, scores, stride);
    launch(select_decode_scores_kernel<4>, p, scores, stride);
}

}  // namespace mmx::cuda::sm90
