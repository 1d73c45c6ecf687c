#include <cooperative_groups.h>

#include "cpp/core/math.h"
#include "cuda/common/batch.cuh"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/mma.cuh"
#include "cuda/kernels/attention/choose.h"
#include "cuda/kernels/attention/sm90.h"

namespace mmx::cuda::sm90 {

namespace {

namespace cg = cooperative_groups;

constexpr int kPage = 128, kDim = 128, kRows = 16, kTileKeys = 16;
constexpr int kTilesPerPage = kPage / kTileKeys;
constexpr int kMaxPages = 64;  // pages that a thread block lists
constexpr int kRowFloats = kDim + 4;
constexpr float kLog2e = 1.4426950408889634f;
constexpr unsigned kFull = 0xFFFFFFFFu;
static_assert(kMaxPages >= kDecodeMaxTopk);

/// What a thread block shares. K and V never pass through here: they go from global memory straight into the
/// fragments of the tensor cores.
template <int kWarps>
struct Shared {
    uint4 q_low[4][32], q_high[4][32];  // A fragments: heads g and g + 8, dimensions permuted as in K
    int page[kMaxPages], first_position[kMaxPages];
    float row_max[kWarps][kRows], row_sum[kWarps][kRows];
    float merged_max[kRows], merged_sum[kRows];
    float out[kWarps][kRows][kRowFloats];  // [0] holds the merged rows in the end
};

struct Unit {
    int token, kv_head, group;
    int seq;  // -1 for a token of no sequence
    int position;
};

__device__ __forceinline__ Unit make_unit(const PagedAttentionParams& p, int token, int kv_head) {
    const TokenPlace place = warp_place_of(token, p.cu_seqlens_q, p.seq_lens, static_cast<int>(p.num_seqs));
    return {token, kv_head, static_cast<int>(p.num_heads / p.num_kv_heads), static_cast<int>(place.seq),
            static_cast<int>(place.position)};
}

/// A warp's running softmax over tiles of 16 keys: scores of 16 heads x 16 keys, whose layout is that of the
/// A operand of P.V; o[c * 8 + i] holds dimensions c * 64 + 16 t + i (+ 8 in odd columns) of heads g and g
/// + 8.
template <int kWarps>
struct Attend {
    const Shared<kWarps>& shared;
    int lane_idx, g, t, position;
    float scale_log2;
    float o[16][4] = {};
    float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {0, 0};
    uint4 k[2][4], v[4][2];

    __device__ __forceinline__ void load_k(const bf16* keys) {
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int j = 0; j < 4; ++j) k[n][j] = ptx::load_once(keys + (n * 8 + g) * kDim + j * 32 + t * 8);
    }

    /// Rows of keys 2t, 2t+1, 2t+8, 2t+9, zero where invisible: an unused slot may hold NaN, and 0 x NaN is
    /// NaN.
    __device__ __forceinline__ void load_v(const bf16* values, int first_position) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int key = 2 * t + r % 2 + r / 2 * 8;
            const bool visible = first_position + key <= position;
#pragma unroll
            for (int c = 0; c < 2; ++c)
                v[r][c] =
                    visible ? ptx::load_once(values + key * kDim + c * 64 + g * 8) : make_uint4(0, 0, 0, 0);
        }
    }

    __device__ __forceinline__ void scores(float (&s)[2][4]) const {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint4 low = shared.q_low[j][lane_idx], high = shared.q_high[j][lane_idx];
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                ptx::mma_16x8x16(s[n], low.x, high.x, low.y, high.y, k[n][j].x, k[n][j].y);
                ptx::mma_16x8x16(s[n], low.z, high.z, low.w, high.w, k[n][j].z, k[n][j].w);
            }
        }
    }

    /// Scores to weights in place; rescales what was summed before.
    __device__ __forceinline__ void softmax(float (&s)[2][4], int first_position) {
        if (first_position + kTileKeys - 1 > position) {
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (first_position + n * 8 + 2 * t + i % 2 > position) s[n][i] = -INFINITY;
        }
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float best =
                fmaxf(fmaxf(s[0][2 * row], s[0][2 * row + 1]), fmaxf(s[1][2 * row], s[1][2 * row + 1]));
            best = fmaxf(best, __shfl_xor_sync(kFull, best, 1));
            best = fmaxf(best, __shfl_xor_sync(kFull, best, 2)) * scale_log2;
            const float next = fmaxf(row_max[row], best);
            const float shift = next == -INFINITY ? 0.0f : next;
            const float correction = ptx::exp2_approx(row_max[row] - shift);
            row_max[row] = next;
            float sum = 0;
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int i = 2 * row; i < 2 * row + 2; ++i) {
                    s[n][i] = ptx::exp2_approx(s[n][i] * scale_log2 - shift);
                    sum += s[n][i];
                }
            row_sum[row] = row_sum[row] * correction + sum;
            if (__any_sync(kFull, correction != 1.0f)) {
#pragma unroll
                for (int i = 0; i < 16; ++i) {
                    o[i][2 * row] *= correction;
                    o[i][2 * row + 1] *= correction;
                }
            }
        }
    }

    __device__ __forceinline__ void add_values(const float (&s)[2][4]) {
        const uint32_t a0 = ptx::pack_bf16(s[0][0], s[0][1]), a1 = ptx::pack_bf16(s[0][2], s[0][3]);
        const uint32_t a2 = ptx::pack_bf16(s[1][0], s[1][1]), a3 = ptx::pack_bf16(s[1][2], s[1][3]);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            const uint32_t* rows[4] = {&v[0][c].x, &v[1][c].x, &v[2][c].x, &v[3][c].x};
#pragma unroll
            for (int e = 0; e < 4; ++e) {
#pragma unroll
                for (int odd = 0; odd < 2; ++odd) {
                    const unsigned halves = odd ? 0x7632 : 0x5410;
                    ptx::mma_16x8x16(o[c * 8 + 2 * e + odd], a0, a1, a2, a3,
                                     __byte_perm(rows[0][e], rows[1][e], halves),
                                     __byte_perm(rows[2][e], rows[3][e], halves));
                }
            }
        }
    }
};

/// Tiles [begin, end) of the pages listed in `shared`, dealt to the warps in turn; then the warps' results
/// are merged in warp order into shared.out[0], merged_max (base 2) and merged_sum.
template <int kWarps>
__device__ __forceinline__ void attend_tiles(Shared<kWarps>& shared, const PagedAttentionParams& p,
                                             const Unit& unit, int begin, int end) {
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    Attend<kWarps> a{shared, lane_idx, lane_idx / 4, lane_idx % 4, unit.position, p.scale * kLog2e};
    const int64_t head_offset = static_cast<int64_t>(unit.kv_head) * kPage * kDim;
    const bf16* k_cache = static_cast<const bf16*>(p.k_cache) + head_offset;
    const bf16* v_cache = static_cast<const bf16*>(p.v_cache) + head_offset;
    const auto first_position = [&](int tile) {
        return shared.first_position[tile / kTilesPerPage] + tile % kTilesPerPage * kTileKeys;
    };
    const auto next_visible = [&](int tile) {
        while (tile < end && first_position(tile) > unit.position) tile += kWarps;
        return tile;
    };
    const auto row_of = [&](const bf16* cache, int64_t block_stride, int tile) {
        return cache + shared.page[tile / kTilesPerPage] * block_stride +
               tile % kTilesPerPage * kTileKeys * kDim;
    };

    int tile = next_visible(begin + warp_idx);
    if (tile < end) a.load_k(row_of(k_cache, p.k_cache_block_stride, tile));
    while (tile < end) {
        const int first = first_position(tile);
        a.load_v(row_of(v_cache, p.v_cache_block_stride, tile), first);
        float s[2][4] = {};
        a.scores(s);
        tile = next_visible(tile + kWarps);
        if (tile < end) a.load_k(row_of(k_cache, p.k_cache_block_stride, tile));
        a.softmax(s, first);
        a.add_values(s);
    }

#pragma unroll
    for (int row = 0; row < 2; ++row) {
        float sum = a.row_sum[row];
        sum += __shfl_xor_sync(kFull, sum, 1);
        sum += __shfl_xor_sync(kFull, sum, 2);
        const int head = a.g + row * 8;
        if (a.t == 0) {
            shared.row_max[warp_idx][head] = a.row_max[row];
            shared.row_sum[warp_idx][head] = sum;
        }
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
            for (int odd = 0; odd < 2; ++odd)
#pragma unroll
                for (int i = 0; i < 8; i += 4) {
                    const int e = 2 * row + odd, n = c * 8 + i;
                    *reinterpret_cast<float4*>(
                        &shared.out[warp_idx][head][c * 64 + (2 * a.t + odd) * 8 + i]) =
                        make_float4(a.o[n][e], a.o[n + 1][e], a.o[n + 2][e], a.o[n + 3][e]);
                }
    }
    __syncthreads();
    for (int i = tid; i < kRows * kDim / 4; i += kWarps * 32) {
        const int head = i / (kDim / 4), d = i % (kDim / 4) * 4;
        float best = shared.row_max[0][head];
#pragma unroll
        for (int w = 1; w < kWarps; ++w) best = fmaxf(best, shared.row_max[w][head]);
        const float shift = best == -INFINITY ? 0.0f : best;
        float4 sum = make_float4(0, 0, 0, 0);
        float weights = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
            const float weight = ptx::exp2_approx(shared.row_max[w][head] - shift);
            const float4 x = *reinterpret_cast<const float4*>(&shared.out[w][head][d]);
            sum.x += x.x * weight, sum.y += x.y * weight, sum.z += x.z * weight, sum.w += x.w * weight;
            weights += shared.row_sum[w][head] * weight;
        }
        *reinterpret_cast<float4*>(&shared.out[0][head][d]) = sum;
        if (d == 0) shared.merged_max[head] = best, shared.merged_sum[head] = weights;
    }
}

/// The token's heads as A fragments in shared memory; no barrier.
template <int kWarps>
__device__ __forceinline__ void stage_query(Shared<kWarps>& shared, const PagedAttentionParams& p,
                                            const Unit& unit) {
    for (int i = static_cast<int>(threadIdx.x); i < 2 * 4 * 32; i += kWarps * 32) {
        const int lane = i % 32, j = i / 32 % 4, head = lane / 4 + i / 128 * 8;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (head < unit.group)
            v = *reinterpret_cast<const uint4*>(
                static_cast<const bf16*>(p.q) + unit.token * p.q_token_stride +
                (unit.kv_head * unit.group + head) * p.q_head_stride + j * 32 + lane % 4 * 8);
        (i < 128 ? shared.q_low : shared.q_high)[j][lane] = v;
    }
}

__device__ __forceinline__ void store_out(const PagedAttentionParams& p, const Unit& unit, int head, int d,
                                          float4 x, float inverse) {
    if (head >= unit.group) return;
    const uint2 packed = make_uint2(ptx::pack_bf16(x.x * inverse, x.y * inverse),
                                    ptx::pack_bf16(x.z * inverse, x.w * inverse));
    *reinterpret_cast<uint2*>(static_cast<bf16*>(p.out) + unit.token * p.out_token_stride +
                              (unit.kv_head * unit.group + head) * p.out_head_stride + d) = packed;
}

/// gridDim.x blocks of one cluster share the pages of (token, KV head) = blockIdx (z, y) and merge through
/// distributed shared memory: each sums its part of the columns over the blocks in rank order.
template <int kWarps>
__global__ void __launch_bounds__(kWarps * 32, kWarps == 4 ? 3 : 1)
    sparse_decode_kernel(SparseAttentionParams p) {
    extern __shared__ uint4 raw[];
    Shared<kWarps>& shared = *reinterpret_cast<Shared<kWarps>*>(raw);
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int tid = static_cast<int>(threadIdx.x), num_splits = static_cast<int>(gridDim.x);
    const int token = static_cast<int>(blockIdx.z), kv_head = static_cast<int>(blockIdx.y);
    const int topk = static_cast<int>(p.topk);
    const int32_t* ids = p.block_ids + (static_cast<int64_t>(token) * p.base.num_kv_heads + kv_head) * topk;
    const int id = tid < topk ? ids[tid] : -1;
    const Unit unit = make_unit(p.base, token, kv_head);
    if (unit.seq < 0) return;
    stage_query(shared, p.base, unit);
    if (id >= 0) {
        shared.page[tid] = p.base.block_table[unit.seq * p.base.block_table_stride + id];
        shared.first_position[tid] = id * kPage;
    }
    const int num_tiles = __syncthreads_count(id >= 0) * kTilesPerPage;
    const int begin = num_tiles * static_cast<int>(blockIdx.x) / num_splits;
    const int end = num_tiles * static_cast<int>(blockIdx.x + 1) / num_splits;
    attend_tiles(shared, p.base, unit, begin, end);

    if (num_splits == 1) {
        __syncthreads();
        for (int i = tid; i < kRows * kDim / 4; i += kWarps * 32) {
            const int head = i / (kDim / 4), d = i % (kDim / 4) * 4;
            const float4 x = *reinterpret_cast<const float4*>(&shared.out[0][head][d]);
            store_out(p.base, unit, head, d, x, 1.0f / shared.merged_sum[head]);
        }
        return;
    }
    cg::cluster_group cluster = cg::this_cluster();
    cluster.sync();
    for (int i = tid + static_cast<int>(blockIdx.x) * kWarps * 32; i < kRows * kDim / 4;
         i += num_splits * kWarps * 32) {
        const int head = i / (kDim / 4), d = i % (kDim / 4) * 4;
        float best = -INFINITY;
        for (int r = 0; r < num_splits; ++r)
            best = fmaxf(best, *cluster.map_shared_rank(&shared.merged_max[head], r));
        const float shift = best == -INFINITY ? 0.0f : best;
        float4 sum = make_float4(0, 0, 0, 0);
        float weights = 0;
        for (int r = 0; r < num_splits; ++r) {
            const float weight =
                ptx::exp2_approx(*cluster.map_shared_rank(&shared.merged_max[head], r) - shift);
            const float4 x =
                *reinterpret_cast<const float4*>(cluster.map_shared_rank(&shared.out[0][head][d], r));
            sum.x += x.x * weight, sum.y += x.y * weight, sum.z += x.z * weight, sum.w += x.w * weight;
            weights += *cluster.map_shared_rank(&shared.merged_sum[head], r) * weight;
        }
        store_out(p.base, unit, head, d, sum, 1.0f / weights);
    }
    cluster.sync();  // Why: a block must not leave while others read its shared memory.
}

/// Block x takes `chunk_pages` pages from page x * chunk_pages on of its sequence; partial results go to the
/// workspace unless there is one chunk.
template <int kWarps>
__global__ void __launch_bounds__(kWarps * 32, kWarps == 4 ? 3 : 1)
    paged_decode_kernel(PagedAttentionParams p, int chunk_pages) {
    extern __shared__ uint4 raw[];
    Shared<kWarps>& shared = *reinterpret_cast<Shared<kWarps>*>(raw);
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int tid = static_cast<int>(threadIdx.x), num_splits = static_cast<int>(gridDim.x);
    const Unit unit = make_unit(p, static_cast<int>(blockIdx.z), static_cast<int>(blockIdx.y));
    const int first_page = static_cast<int>(blockIdx.x) * chunk_pages;
    const int num_pages = min(chunk_pages, unit.position / kPage + 1 - first_page);
    if (unit.seq < 0 || num_pages <= 0) return;
    stage_query(shared, p, unit);
    if (tid < num_pages) {
        shared.page[tid] = p.block_table[unit.seq * p.block_table_stride + first_page + tid];
        shared.first_position[tid] = (first_page + tid) * kPage;
    }
    __syncthreads();
    attend_tiles(shared, p, unit, 0, num_pages * kTilesPerPage);
    __syncthreads();
    float* partial =
        static_cast<float*>(p.workspace) +
        ((static_cast<int64_t>(unit.token) * p.num_kv_heads + unit.kv_head) * num_splits + blockIdx.x) *
            kDecodePartialFloats;
    for (int i = tid; i < kRows * kDim / 4; i += kWarps * 32) {
        const int head = i / (kDim / 4), d = i % (kDim / 4) * 4;
        const float4 x = *reinterpret_cast<const float4*>(&shared.out[0][head][d]);
        if (num_splits == 1)
            store_out(p, unit, head, d, x, 1.0f / shared.merged_sum[head]);
        else
            *reinterpret_cast<float4*>(partial + head * kDim + d) = x;
    }
    if (num_splits > 1 && tid < kRows) {
        partial[kRows * kDim + tid] = shared.merged_max[tid];
        partial[kRows * kDim + kRows + tid] = shared.merged_sum[tid];
    }
}

/// Sums the partial results of one (token, KV head) in chunk order.
__global__ void __launch_bounds__(kRows* kDim / 4)
    paged_decode_merge_kernel(PagedAttentionParams p, int chunk_pages, int num_splits) {
    ptx::let_successors_start();
    const int head = static_cast<int>(threadIdx.x) / (kDim / 4),
              d = static_cast<int>(threadIdx.x) % (kDim / 4) * 4;
    const Unit unit = make_unit(p, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x));
    const int used = (unit.position / kPage + chunk_pages) / chunk_pages;
    const float* partial = static_cast<const float*>(p.workspace) +
                           (static_cast<int64_t>(unit.token) * p.num_kv_heads + unit.kv_head) * num_splits *
                               kDecodePartialFloats;
    ptx::wait_for_predecessors();
    if (unit.seq < 0) return;
    float best = -INFINITY;
    for (int s = 0; s < used; ++s)
        best = fmaxf(best, partial[s * kDecodePartialFloats + kRows * kDim + head]);
    const float shift = best == -INFINITY ? 0.0f : best;
    float4 sum = make_float4(0, 0, 0, 0);
    float weights = 0;
    for (int s = 0; s < used; ++s, partial += kDecodePartialFloats) {
        const float weight = ptx::exp2_approx(partial[kRows * kDim + head] - shift);
        const float4 x = *reinterpret_cast<const float4*>(partial + head * kDim + d);
        sum.x += x.x * weight, sum.y += x.y * weight, sum.z += x.z * weight, sum.w += x.w * weight;
        weights += partial[kRows * kDim + kRows + head] * weight;
    }
    store_out(p, unit, head, d, sum, 1.0f / weights);
}

template <int kWarps>
void launch_sparse(const SparseAttentionParams& p, unsigned splits, Stream stream) {
    const dim3 grid(splits, static_cast<unsigned>(p.base.num_kv_heads),
                    static_cast<unsigned>(p.base.num_tokens));
    const LaunchChain launch{"sparse_attention", grid, kWarps * 32, sizeof(Shared<kWarps>), stream, splits};
    launch(sparse_decode_kernel<kWarps>, p);
}

}  // namespace

void sparse_decode(const SparseAttentionParams& p, Stream stream) {
    const auto splits = static_cast<unsigned>(sparse_decode_splits(p, num_multiprocessors()));
    if (splits == 16) return launch_sparse<8>(p, splits, stream);
    launch_sparse<4>(p, splits, stream);
}

void paged_decode(const PagedAttentionParams& p, Stream stream) {
    constexpr int kWarps = 4;
    const auto chunk_pages = static_cast<int>(paged_decode_chunk(p)),
               splits = static_cast<int>(paged_decode_splits(p));
    const auto heads = static_cast<unsigned>(p.num_kv_heads), tokens = static_cast<unsigned>(p.num_tokens);
    const LaunchChain launch{"paged_attention", dim3(static_cast<unsigned>(splits), heads, tokens),
                             kWarps * 32, sizeof(Shared<kWarps>), stream};
    launch(paged_decode_kernel<kWarps>, p, chunk_pages);
    if (splits == 1) return;
    const LaunchChain merge{"paged_attention", dim3(heads, tokens), kRows * kDim / 4, 0, stream};
    merge(paged_decode_merge_kernel, p, chunk_pages, splits);
}

}  // namespace mmx::cuda::sm90
