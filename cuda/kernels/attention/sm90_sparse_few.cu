#include "cpp/core/math.h"
#include "cuda/common/batch.cuh"
#include "cuda/common/chain.h"
#include "cuda/common/page_copies.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/shared.cuh"
#include "cuda/kernels/attention/choose.h"
#include "cuda/kernels/attention/sm90.h"
#include "cuda/kernels/attention/sm90_splits.cuh"

namespace mmx::cuda::sm90 {

namespace {

template <class C, int kPages, int kSplits>
struct Shared {
    static constexpr int kTableEntries = static_cast<int>(sizeof(Parts<kSplits>) / sizeof(int)) / 4 * 4;

    alignas(128) char k[kPages][kPageBytes<C>];  // later the weights, those of a warp's keys in their place
    alignas(128) char v[kPages][kPageBytes<C>];
    Queries queries;
    alignas(16) float row_max[kRows][kWarps];
    alignas(16) float row_sum[kRows][kWarps * 4];
    union {
        Parts<kSplits> parts;
        int table[kTableEntries];  // until the blocks of the cluster have met
    };
    uint64_t parts_there;
};

/// Every warp looks the block's pages up and copies its keys of all of them at once, without a feeding warp
/// and the copy engine, whose latencies count here; then all scores, one softmax, all values.
template <class C, int kPages, int kSplits>
__global__ void __launch_bounds__(kWorkers, 1)
    sparse_decode_few_kernel(const __grid_constant__ SparseAttentionParams p) {
    extern __shared__ __align__(1024) char raw[];
    auto& shared = *reinterpret_cast<Shared<C, kPages, kSplits>*>(raw);
    const PagedAttentionParams& b = p.base;
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    const int g = lane_idx / 4, t = lane_idx % 4;
    const int split = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y),
              token = static_cast<int>(blockIdx.z);
    if (tid == 0) {
        ptx::barrier_init(shared.parts_there, 1);
        ptx::barrier_init_done();
    }
    touch(b);
    const int topk = static_cast<int>(p.topk);
    // The row that the token has in a decode batch, on a guess: it may still change.
    const int32_t* row = b.block_table + token * b.block_table_stride;
    const int guessed =
        token >= b.num_seqs ? 0 : min(static_cast<int>(b.max_blocks_per_seq), shared.kTableEntries);
    const int copied = reinterpret_cast<uintptr_t>(row) % 16 == 0 ? guessed / 4 * 4 : 0;
#pragma unroll 1
    for (int i = tid * 4; i < copied; i += kWorkers * 4)
        ptx::copy_async_16(ptx::smem_address(shared.table + i), row + i);
#pragma unroll 1
    for (int i = copied + tid; i < guessed; i += kWorkers)
        ptx::copy_async_4(ptx::smem_address(shared.table + i), row + i);
    const int32_t* ids = p.block_ids + (static_cast<int64_t>(token) * b.num_kv_heads + kv_head) * topk;
    const int32_t* my_id = ids + min(lane_idx, topk - 1);
    const uint4* queries = queries_of(b, token, kv_head);
    const KeyCopies<C> copies(kv_head * kPage);
    const uint32_t k_tiles = pinned(ptx::smem_address(shared.k)), v_tiles = k_tiles + sizeof(shared.k),
                   table = pinned(ptx::smem_address(shared.table));
    // The block's share of a full list.
    int begin = topk * split / kSplits, count = topk * (split + 1) / kSplits - begin;
    const int32_t* first_id = ids + begin;
    // Fetched and computed before the wait instead of behind it.
    asm volatile("" ::"l"(my_id), "l"(first_id), "l"(queries), "l"(b.v_scale), "l"(b.k_cache), "l"(b.v_cache),
                 "l"(b.k_cache_block_stride), "l"(b.v_cache_block_stride), "r"(count));
    ptx::commit_copies();
    ptx::wait_for_copies<0>();
    __syncthreads();
    if (tid == 0) expect_parts<kSplits>(shared.parts_there, split);
    ptx::wait_for_predecessors();
    ptx::let_successors_start();

    // All of this is asked for before any of it is looked at.
    int id[kPages];
#pragma unroll
    for (int k = 0; k < kPages; ++k) id[k] = k < count ? first_id[k] : 0;
    const int listed_id = *my_id;
    const SeqLens lens = read_lens(b.cu_seqlens_q, b.seq_lens, min(token, static_cast<int>(b.num_seqs) - 1));
    const uint4 fetched = fetch(queries);
    const float k_scale = b.k_scale ? b.k_scale[kv_head] : 1.0f,
                v_scale = b.v_scale ? b.v_scale[kv_head] : 1.0f;
    Unit unit{token, kv_head, static_cast<int>(b.num_heads) / static_cast<int>(b.num_kv_heads), token,
              lens.len - 1};
    if (token >= b.num_seqs || lens.begin != token || lens.end != token + 1)
        unit = make_unit(b, token, kv_head);
    if (unit.seq < 0) return;  // all blocks of the cluster
    const unsigned listed_lanes = __ballot_sync(kFull, lane_idx < topk && listed_id >= 0);
    if (const int listed = __popc(listed_lanes); listed < topk) {
        begin = listed * split / kSplits;
        count = listed * (split + 1) / kSplits - begin;
#pragma unroll
        for (int k = 0; k < kPages; ++k) id[k] = k < count ? ids[begin + k] : 0;
    }
    const int32_t* entries = b.block_table + unit.seq * b.block_table_stride;
    int page[kPages], visible[kPages];
#pragma unroll
    for (int k = 0; k < kPages; ++k) {
        page[k] = unit.seq == token && id[k] < guessed ? ptx::load_shared(table + id[k] * 4)
                                                       : __ldcg(entries + id[k]);
        if (static_cast<unsigned>(page[k]) >= b.num_blocks) page[k] = 0;
        visible[k] = k < count ? unit.position + 1 - id[k] * kPage : 0;
    }
    const auto ask = [&] {
#pragma unroll
        for (int k = 0; k < kPages; ++k) {
            if (k < count)
                copies.copy(k_tiles + k * kPageBytes<C>, b.k_cache, page[k] * b.k_cache_block_stride);
            ptx::commit_copies();
        }
#pragma unroll
        for (int k = 0; k < kPages; ++k)
            if (k < count)
                // An unused slot may hold NaN, and 0 x NaN is NaN.
                copies.copy_first(v_tiles + k * kPageBytes<C>, b.v_cache, page[k] * b.v_cache_block_stride,
                                  visible[k]);
        ptx::commit_copies();
    };
    uint32_t q[8][4];
    float scale_log2[2], s[kPages][2][4], best[2];
    for (bool first = true;; first = false) {
        ask();
        int again[kPages];
#pragma unroll
        for (int k = 0; k < kPages; ++k) again[k] = __ldcg(entries + id[k]);
        if (first) {
            ptx::cluster_arrive();
            place_queries<C>(shared.queries, fetched);
            __syncthreads();
            load_queries(q, shared.queries.rows);
            const float scale = b.scale * ptx::kLog2e * k_scale;
#pragma unroll
            for (int r = 0; r < 2; ++r) scale_log2[r] = shared.queries.factor[g + 8 * r] * scale;
        }
        best[0] = best[1] = -INFINITY;
#pragma unroll
        for (int k = 0; k < kPages; ++k) {
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (float& x : s[k][n]) x = 0;
            wait_for_copies(kPages - k);
            __syncwarp();
            if (k < count) Pages<C>::score(s[k], q, k_tiles + k * kPageBytes<C>, warp_idx * 16);
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if (warp_idx * 16 + n * 8 + 2 * t + j % 2 >= visible[k]) s[k][n][j] = -INFINITY;
                    best[j / 2] = fmaxf(best[j / 2], s[k][n][j]);
                }
        }
        // Looked at behind the scores, because it comes behind the pages.
        bool stale = false;
#pragma unroll
        for (int k = 0; k < kPages; ++k) stale |= k < count && again[k] != page[k];
        if (!stale) break;
        ptx::wait_for_copies<0>();
#pragma unroll
        for (int k = 0; k < kPages; ++k) page[k] = again[k];
    }
#pragma unroll
    for (int other = 1; other < 4; other *= 2)
#pragma unroll
        for (float& x : best) x = fmaxf(x, __shfl_xor_sync(kFull, x, other));
    if (t == 0) {
        shared.row_max[g][warp_idx] = best[0];
        shared.row_max[g + 8][warp_idx] = best[1];
    }
    ptx::wait_for_copies<0>();
    __syncthreads();
    uint32_t v[8][4];
    Pages<C>::load_values(v, v_tiles, warp_idx);
    float sum[2] = {0, 0}, shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float4* found = reinterpret_cast<const float4*>(shared.row_max[g + 8 * r]);
        const float4 x = found[0], y = found[1];
        best[r] = fmaxf(fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w)), fmaxf(fmaxf(y.x, y.y), fmaxf(y.z, y.w))) *
                  scale_log2[r];
        shift[r] = best[r] == -INFINITY ? 0.0f : best[r];
    }
#pragma unroll
    for (int k = 0; k < kPages; ++k) {
        char* weights = shared.k[k] + warp_idx * 2048 + g * 16 + 4 * t;
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const float low = ptx::exp2_approx(fmaf(s[k][n][2 * r], scale_log2[r], -shift[r]));
                const float high = ptx::exp2_approx(fmaf(s[k][n][2 * r + 1], scale_log2[r], -shift[r]));
                sum[r] += low + high;
                *reinterpret_cast<uint32_t*>(weights + n * 256 + r * 128) = Pages<C>::pack(low, high);
            }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) shared.row_sum[g + 8 * r][warp_idx * 4 + t] = sum[r];
    __syncthreads();
    float o[2][4] = {};
#pragma unroll
    for (int k = 0; k < kPages; ++k) {
        if (k >= count) break;
        add_values<C>(o, k_tiles + k * kPageBytes<C> + lane_idx / 16 * 256 + lane_idx % 16 * 16, 2048, v);
        if (k + 1 < count) Pages<C>::load_values(v, v_tiles + (k + 1) * kPageBytes<C>, warp_idx);
    }
    if (warp_idx == 0) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float4* parts = reinterpret_cast<const float4*>(shared.row_sum[g + 8 * r]) + 2 * t;
            const float4 x = parts[0], y = parts[1];
            sum[r] = x.x + x.y + (x.z + x.w) + (y.x + y.y + (y.z + y.w));
        }
#pragma unroll
        for (int other = 1; other < 4; other *= 2)
#pragma unroll
            for (float& x : sum) x += __shfl_xor_sync(kFull, x, other);
    }
    ptx::cluster_wait();
    push_parts<C>(shared.parts, shared.parts_there, o, best, sum, split);
    merge_parts(shared.parts, shared.parts_there, b, unit, split, v_scale);
}

template <class C, int kPages, int kSplits>
void launch(const SparseAttentionParams& p, Stream stream) {
    const LaunchChain run{
        "sparse_attention",
        dim3(kSplits, static_cast<unsigned>(p.base.num_kv_heads), static_cast<unsigned>(p.base.num_tokens)),
        kWorkers,
        sizeof(Shared<C, kPages, kSplits>),
        stream,
        kSplits};
    run(sparse_decode_few_kernel<C, kPages, kSplits>, p);
}

}  // namespace

void sparse_decode_few(const SparseAttentionParams& p, int64_t splits, Stream stream) {
    static_assert(kFewPages == 16);
    if (p.base.cache_dtype == DType::kBF16) return launch<bf16, 1, 16>(p, stream);
    splits == 16 ? launch<e4m3, 1, 16>(p, stream) : launch<e4m3, 2, 8>(p, stream);
}

}  // namespace mmx::cuda::sm90
