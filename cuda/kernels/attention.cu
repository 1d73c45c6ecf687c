#include <algorithm>
#include <numbers>

#include "cpp/core/math.h"
#include "cuda/common/launch.h"
#include "cuda/common/paged.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/attention/choose.h"
#include "cuda/kernels/attention/sm90.h"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kKeys = 32;  // a lane each
constexpr int kRows = 4;   // query heads that a warp works on together
constexpr int64_t kMaxSmemBytes = 227 * 1024;

// The blocks that a row attends to are summed in segments of about this many keys, each with its own running
// softmax, and the segments are merged in ascending order: the same numbers whether one thread block does all
// segments of a row or each has its own.
constexpr int64_t kSegmentKeys = 512;
// Thread blocks that fill the chip; below it segments get thread blocks of their own.
constexpr int64_t kFullGrid = 512;
constexpr int64_t kMaxSplitGrid = 16384;  // bounds the workspace

struct Attention {
    PagedAttentionParams p;
    const int32_t* block_ids;  // as in SparseAttentionParams, or null: every block
    int64_t topk;
    int64_t group, rows;     // query heads per KV head; the same padded to kRows
    int64_t width;           // head_dim padded to 4
    int64_t segment_blocks;  // places of the row's list of blocks in a segment
    int64_t num_segments;    // upper bound for a row
    bool split;

    constexpr int64_t partial_floats() const { return width + 4; }  // sums, max, sum of weights, padding
    int64_t workspace_bytes() const {
        if (!split) return 0;
        return p.num_tokens * p.num_heads * num_segments * partial_floats() *
               static_cast<int64_t>(sizeof(float));
    }
    int64_t smem_floats() const {
        return 3 * rows * width + kKeys * (width + 4) + kKeys * width + kWarps * kKeys * kRows + 4 * rows;
    }
};

Attention make_attention(const PagedAttentionParams& p, const int32_t* block_ids, int64_t topk) {
    Attention a{};
    a.p = p;
    a.block_ids = block_ids;
    a.topk = topk;
    a.group = p.num_heads / p.num_kv_heads;
    a.rows = align_up(a.group, kRows);
    a.width = align_up(p.head_dim, 4);
    a.segment_blocks = std::max<int64_t>(1, kSegmentKeys / p.block_size);
    a.num_segments = ceil_div(topk ? topk : p.max_blocks_per_seq, a.segment_blocks);
    const int64_t grid = p.num_tokens * p.num_kv_heads;
    a.split = a.num_segments > 1 && grid < kFullGrid && grid * a.num_segments <= kMaxSplitGrid;
    return a;
}

/// Blocks of one (token, KV head) in ascending order.
struct BlockList {
    const int32_t* ids;  // null: 0, 1, 2, ...
    int64_t size;        // upper bound; ids end at the first -1

    __device__ int64_t at(int64_t i) const { return i >= size ? -1 : ids ? ids[i] : i; }
};

__device__ __forceinline__ BlockList blocks_of(const Attention& a, int64_t token, int64_t kv_head,
                                               int64_t position) {
    if (a.block_ids) return {a.block_ids + (token * a.p.num_kv_heads + kv_head) * a.topk, a.topk};
    return {nullptr, position / a.p.block_size + 1};
}

/// total = total * a + part * b, where a and b bring both to the larger maximum.
struct MergeFactors {
    float max, total, part;

    __device__ MergeFactors(float total_max, float part_max)
        : max(fmaxf(total_max, part_max)), total(exp2f(total_max - max)), part(exp2f(part_max - max)) {}
    __device__ float apply(float total_value, float part_value) const {
        return fmaf(part_value, part, __fmul_rn(total_value, total));
    }
};

template <class T>
__device__ void store_row(const Attention& a, int64_t token, int64_t head, const float* values, float sum,
                          float v_scale, int lane) {
    T* out = static_cast<T*>(a.p.out) + token * a.p.out_token_stride + head * a.p.out_head_stride;
    const float inverse = sum == 0 ? 0.0f : v_scale / sum;
    for (int64_t d = lane; d < a.p.head_dim; d += 32) out[d] = from_float<T>(values[d] * inverse);
}

__device__ __forceinline__ float4& as_float4(float* p) { return *reinterpret_cast<float4*>(p); }

__device__ __forceinline__ void add_product(float& sum, const float4& x, const float4& y) {
    sum = fmaf(x.x, y.x, sum);
    sum = fmaf(x.y, y.y, sum);
    sum = fmaf(x.z, y.z, sum);
    sum = fmaf(x.w, y.w, sum);
}

/// Up to kKeys cache rows as floats [kKeys, stride]; rows past num_keys and channels past head_dim become 0.
template <class T>
__device__ void load_rows(float* dst, const T* src, int64_t num_keys, int64_t head_dim, int64_t width,
                          int64_t stride) {
    for (int64_t i = threadIdx.x; i < kKeys * width; i += kThreads) {
        const int64_t key = i / width, d = i % width;
        dst[key * stride + d] = key < num_keys && d < head_dim ? to_float(src[key * head_dim + d]) : 0.0f;
    }
}

__device__ __forceinline__ float scale_of(const float* scales, int64_t kv_head) {
    return scales ? scales[kv_head] : 1.0f;
}

// One thread block per (token, KV head), or per segment of one; a warp owns kRows query heads at a time.
// Queries of type T, pages of type C.
template <class T, class C>
__global__ void __launch_bounds__(kThreads) attention_kernel(Attention a) {
    extern __shared__ __align__(16) float smem[];
    const PagedAttentionParams& p = a.p;
    const int64_t rows = a.rows, width = a.width, key_stride = width + 4;  // 4 words apart: no bank conflicts
    float* q = smem;                                                       // [rows, width]
    float* part = q + rows * width;             // [rows, width] sums of this segment
    float* total = part + rows * width;         // [rows, width]
    float* keys = total + rows * width;         // [kKeys, key_stride]
    float* values = keys + kKeys * key_stride;  // [kKeys, width]
    float* weights = values + kKeys * width + threadIdx.x / 32 * kKeys * kRows;  // [kKeys, kRows] of the warp
    float* part_max = values + kKeys * width + kWarps * kKeys * kRows;           // [rows]
    float* part_sum = part_max + rows;
    float* total_max = part_sum + rows;
    float* total_sum = total_max + rows;

    const int64_t token = blockIdx.x / p.num_kv_heads, kv_head = blockIdx.x % p.num_kv_heads;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const TokenPlace place = place_of(token, p.cu_seqlens_q, p.seq_lens, p.num_seqs);
    if (place.seq < 0) return;
    const BlockList blocks = blocks_of(a, token, kv_head, place.position);
    const int32_t* table = p.block_table + place.seq * p.block_table_stride;
    if (blocks.at(blockIdx.y * a.segment_blocks) < 0 && a.split) return;

    // In units of log2(e), so that a weight is 2^(score - max).
    const float factor = p.scale * std::numbers::log2e_v<float> * scale_of(p.k_scale, kv_head);
    for (int64_t i = threadIdx.x; i < rows * width; i += kThreads) {
        const int64_t row = i / width, d = i % width;
        const T* src = static_cast<const T*>(p.q) + token * p.q_token_stride +
                       (kv_head * a.group + row) * p.q_head_stride;
        q[i] = row < a.group && d < p.head_dim ? to_float(src[d]) * factor : 0.0f;
        total[i] = 0;
    }
    for (int64_t row = threadIdx.x; row < rows; row += kThreads) {
        total_max[row] = -INFINITY;
        total_sum[row] = 0;
    }
    const int64_t first_segment = a.split ? blockIdx.y : 0;
    const int64_t end_segment = a.split ? blockIdx.y + 1 : a.num_segments;
    for (int64_t segment = first_segment; segment < end_segment; ++segment) {
        if (blocks.at(segment * a.segment_blocks) < 0) break;
        __syncthreads();
        for (int64_t i = threadIdx.x; i < rows * width; i += kThreads) part[i] = 0;
        for (int64_t row = threadIdx.x; row < rows; row += kThreads) {
            part_max[row] = -INFINITY;
            part_sum[row] = 0;
        }
        for (int64_t i = segment * a.segment_blocks; i < (segment + 1) * a.segment_blocks; ++i) {
            const int64_t block = blocks.at(i);
            if (block < 0) break;
            const int64_t visible = min(p.block_size, place.position + 1 - block * p.block_size);
            const int64_t page = table[block], head_offset = kv_head * p.block_size * p.head_dim;
            const C* k_page = static_cast<const C*>(p.k_cache) + page * p.k_cache_block_stride + head_offset;
            const C* v_page = static_cast<const C*>(p.v_cache) + page * p.v_cache_block_stride + head_offset;
            for (int64_t key = 0; key < visible; key += kKeys) {
                __syncthreads();
                load_rows(keys, k_page + key * p.head_dim, visible - key, p.head_dim, width, key_stride);
                load_rows(values, v_page + key * p.head_dim, visible - key, p.head_dim, width, width);
                __syncthreads();
                for (int64_t row = warp * kRows; row < rows; row += kWarps * kRows) {
                    float score[kRows] = {};
                    for (int64_t d = 0; d < width; d += 4) {
                        const float4 k = as_float4(keys + lane * key_stride + d);
#pragma unroll
                        for (int r = 0; r < kRows; ++r)
                            add_product(score[r], as_float4(q + (row + r) * width + d), k);
                    }
                    float rescale[kRows];
#pragma unroll
                    for (int r = 0; r < kRows; ++r) {
                        const float x = key + lane < visible ? score[r] : -INFINITY;
                        const float old_max = part_max[row + r], max = fmaxf(old_max, warp_max(x));
                        const float shift = max == -INFINITY ? 0.0f : max;  // -inf - -inf would be NaN
                        const float weight = exp2f(x - shift);
                        rescale[r] = exp2f(old_max - shift);
                        weights[lane * kRows + r] = weight;
                        const float sum = fmaf(part_sum[row + r], rescale[r], warp_sum(weight));
                        __syncwarp();
                        if (lane == 0) {
                            part_max[row + r] = max;
                            part_sum[row + r] = sum;
                        }
                    }
                    __syncwarp();
                    for (int64_t d = lane * 4; d < width; d += 128) {
                        float4 sum[kRows];
#pragma unroll
                        for (int r = 0; r < kRows; ++r) {
                            sum[r] = as_float4(part + (row + r) * width + d);
                            sum[r] = {__fmul_rn(sum[r].x, rescale[r]), __fmul_rn(sum[r].y, rescale[r]),
                                      __fmul_rn(sum[r].z, rescale[r]), __fmul_rn(sum[r].w, rescale[r])};
                        }
                        for (int j = 0; j < kKeys; ++j) {
                            const float4 v = as_float4(values + j * width + d);
                            const float4 w = as_float4(weights + j * kRows);
#pragma unroll
                            for (int r = 0; r < kRows; ++r) {
                                const float x = r == 0 ? w.x : r == 1 ? w.y : r == 2 ? w.z : w.w;
                                sum[r] = {fmaf(x, v.x, sum[r].x), fmaf(x, v.y, sum[r].y),
                                          fmaf(x, v.z, sum[r].z), fmaf(x, v.w, sum[r].w)};
                            }
                        }
#pragma unroll
                        for (int r = 0; r < kRows; ++r) as_float4(part + (row + r) * width + d) = sum[r];
                    }
                    __syncwarp();
                }
            }
        }
        __syncthreads();
        for (int64_t row = warp; row < a.group; row += kWarps) {
            if (a.split) {
                const int64_t index =
                    (token * p.num_heads + kv_head * a.group + row) * a.num_segments + segment;
                float* dst = static_cast<float*>(p.workspace) + index * a.partial_floats();
                for (int64_t d = lane; d < width; d += 32) dst[d] = part[row * width + d];
                if (lane == 0) {
                    dst[width] = part_max[row];
                    dst[width + 1] = part_sum[row];
                }
            } else if (part_sum[row] != 0) {
                const MergeFactors merge(total_max[row], part_max[row]);
                for (int64_t d = lane; d < width; d += 32)
                    total[row * width + d] = merge.apply(total[row * width + d], part[row * width + d]);
                const float sum = merge.apply(total_sum[row], part_sum[row]);
                __syncwarp();
                if (lane == 0) {
                    total_max[row] = merge.max;
                    total_sum[row] = sum;
                }
                __syncwarp();
            }
        }
    }
    if (a.split) return;
    __syncthreads();
    for (int64_t row = warp; row < a.group; row += kWarps)
        store_row<T>(a, token, kv_head * a.group + row, total + row * width, total_sum[row],
                     scale_of(p.v_scale, kv_head), lane);
}

// Merges the segments of split rows: a warp per (token, query head).
template <class T>
__global__ void __launch_bounds__(kThreads) merge_kernel(Attention a) {
    extern __shared__ __align__(16) float smem[];
    const PagedAttentionParams& p = a.p;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
    if (index >= p.num_tokens * p.num_heads) return;
    const int64_t token = index / p.num_heads, head = index % p.num_heads;
    const TokenPlace place = place_of(token, p.cu_seqlens_q, p.seq_lens, p.num_seqs);
    if (place.seq < 0) return;
    const BlockList blocks = blocks_of(a, token, head / a.group, place.position);
    float* total = smem + warp * a.width;
    for (int64_t d = lane; d < a.width; d += 32) total[d] = 0;
    float max = -INFINITY, sum = 0;
    for (int64_t segment = 0; segment < a.num_segments; ++segment) {
        if (blocks.at(segment * a.segment_blocks) < 0) break;
        const float* part =
            static_cast<const float*>(p.workspace) + (index * a.num_segments + segment) * a.partial_floats();
        const float part_sum = part[a.width + 1];
        if (part_sum == 0) continue;
        const MergeFactors merge(max, part[a.width]);
        for (int64_t d = lane; d < a.width; d += 32) total[d] = merge.apply(total[d], part[d]);
        sum = merge.apply(sum, part_sum);
        max = merge.max;
    }
    store_row<T>(a, token, head, total, sum, scale_of(p.v_scale, head / a.group), lane);
}

void run(const char* op, const Attention& a, Stream stream) {
    const PagedAttentionParams& p = a.p;
    if (p.num_tokens == 0) return;
    const int64_t smem_bytes = a.smem_floats() * static_cast<int64_t>(sizeof(float));
    MMX_CHECK(smem_bytes <= kMaxSmemBytes, op, ": ", a.group,
              " query heads per KV head with head_dim=", p.head_dim, " do not fit into shared memory");
    const dim3 grid(static_cast<unsigned>(p.num_tokens * p.num_kv_heads),
                    a.split ? static_cast<unsigned>(a.num_segments) : 1);
    const Launch launch{op, grid, kThreads, static_cast<size_t>(smem_bytes), stream};
    const Launch launch_merge{op, dim3(static_cast<unsigned>(ceil_div(p.num_tokens * p.num_heads, kWarps))),
                              kThreads, static_cast<size_t>(kWarps * a.width) * sizeof(float), stream};
    dispatch_pages(p.dtype, p.cache_dtype, [&](auto t, auto c) {
        launch(attention_kernel<decltype(t), decltype(c)>, a);
        if (a.split) launch_merge(merge_kernel<decltype(t)>, a);
    });
}

bool pointers_aligned(const PagedAttentionParams& p) {
    return is_aligned16(p.q) && is_aligned16(p.out) && is_aligned16(p.k_cache) && is_aligned16(p.v_cache);
}

}  // namespace

int64_t paged_attention_workspace(const PagedAttentionParams& p) {
    return std::max(make_attention(p, nullptr, 0).workspace_bytes(), paged_workspace_bytes(p));
}

void paged_attention(const PagedAttentionParams& p, Stream stream) {
    if (const AttentionKernel kernel = choose_paged(p);
        p.num_tokens > 0 && kernel != AttentionKernel::kSimple && pointers_aligned(p)) {
        if (kernel == AttentionKernel::kSm90Prefill)
            sm90::paged_prefill(p, stream);
        else
            sm90::paged_decode(p, stream);
        if (kernel == AttentionKernel::kSm90Decode) return;  // its merge wrote the codes
    } else {
        run("paged_attention", make_attention(p, nullptr, 0), stream);
    }
    if (p.codes) fp8_quantize(codes_params(p), stream);
}

int64_t sparse_attention_workspace(const SparseAttentionParams& p) {
    return std::max(make_attention(p.base, p.block_ids, p.topk).workspace_bytes(), sparse_workspace_bytes(p));
}

void sparse_attention(const SparseAttentionParams& p, Stream stream) {
    if (const AttentionKernel kernel = choose_sparse(p);
        p.base.num_tokens > 0 && kernel != AttentionKernel::kSimple && pointers_aligned(p.base)) {
        if (kernel == AttentionKernel::kSm90Prefill) return sm90::sparse_prefill(p, stream);
        return sm90::sparse_decode(p, stream);
    }
    run("sparse_attention", make_attention(p.base, p.block_ids, p.topk), stream);
}

}  // namespace mmx::cuda
