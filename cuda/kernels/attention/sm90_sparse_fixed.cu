#include "cpp/core/math.h"
#include "cuda/common/batch.cuh"
#include "cuda/common/chain.h"
#include "cuda/common/page_copies.cuh"
#include "cuda/common/ptx/cluster.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/kernels/attention/choose.h"
#include "cuda/kernels/attention/sm90.h"
#include "cuda/kernels/attention/sm90_decode.cuh"
#include "cuda/kernels/attention/sm90_partial.cuh"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kBlocks = static_cast<int>(kFixedChoices);

template <class C>
struct Shared {
    alignas(128) char k[kPageBytes<C>];  // later the weights, those of a warp's keys in their place
    alignas(128) char v[kPageBytes<C>];
    Queries queries;
    alignas(16) float row_max[kRows][kWarps];
    alignas(16) float pair_sums[16][kRows * 4];  // of a key octet's weights, two a lane
    // This block's row of each partial result, as PackedRow takes it apart.
    alignas(16) float rows[kBlocks][kDim];
    alignas(16) float units[kBlocks][16];
    float2 stats[kBlocks];
    uint64_t parts_there;
};

/// f16 pairs of codes as bf16 pairs, exactly.
__device__ __forceinline__ uint32_t bf16_of(uint32_t halves) {
    float x, y;
    asm("{\n.reg .f16 a, b;\nmov.b32 {a, b}, %2;\ncvt.f32.f16 %0, a;\ncvt.f32.f16 %1, b;\n}"
        : "=f"(x), "=f"(y)
        : "r"(halves));
    return ptx::pack_bf16(x, y);
}

/// s[n] = queries . keys [first_key + 8n, + 8), all steps in one chain.
template <class C>
__device__ __forceinline__ void fixed_score(float (&s)[2][4], const uint32_t (&q)[8][4], uint32_t page,
                                            int first_key) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int key = first_key + lane / 16 * 8 + lane % 8;
    if constexpr (sizeof(C) == 2) {
#pragma unroll
        for (int step = 0; step < 8; ++step) {
            uint32_t k[4];
            ptx::load_matrices(k,
                               swizzled(page + step / 4 * (kPage * 128), key, step % 4 * 2 + lane / 8 % 2));
#pragma unroll
            for (int n = 0; n < 2; ++n)
                ptx::mma_16x8x16(s[n], q[step][0], q[step][1], q[step][2], q[step][3], k[2 * n],
                                 k[2 * n + 1]);
        }
    } else {
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            uint32_t codes[4];
            ptx::load_matrices(codes, swizzled(page, key, pair * 2 + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    uint32_t low, high;
                    ptx::decode_e4m3(codes[2 * n + i], low, high);
                    const uint32_t (&a)[4] = q[pair * 2 + i];
                    ptx::mma_16x8x16(s[n], a[0], a[1], a[2], a[3], bf16_of(low), bf16_of(high));
                }
        }
    }
}

/// o: dimensions [32 * part, + 32) in four tiles: of bf16 pages 8 each, of codes the even ones of 16, the odd
/// ones, and so for the next 16.
template <class C>
__device__ __forceinline__ void fixed_values(float (&o)[4][4], uint32_t weights, uint32_t page, int part) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    if constexpr (sizeof(C) == 2) {
#pragma unroll
        for (int step = 0; step < 8; ++step) {
            uint32_t p[4], v[4];
            ptx::load_matrices(p, weights + step * 2048);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int slice = part * 2 + half;
                ptx::load_matrices_transposed(v, swizzled(page + slice / 4 * (kPage * 128),
                                                          step * 16 + lane % 16, slice % 4 * 2 + lane / 16));
#pragma unroll
                for (int n = 0; n < 2; ++n)
                    ptx::mma_16x8x16(o[half * 2 + n], p[0], p[1], p[2], p[3], v[2 * n], v[2 * n + 1]);
            }
        }
    } else {
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            uint32_t codes[2][4];
#pragma unroll
            for (int half = 0; half < 2; ++half)
                ptx::load_matrices_transposed(codes[half], swizzled(page, pair * 32 + lane, part * 2 + half));
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                uint32_t p[4];
                ptx::load_matrices(p, weights + (pair * 2 + i) * 2048);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    uint32_t v[4];  // keys low and high of the even dimension, then of the odd one
                    ptx::decode_e4m3(__byte_perm(codes[half][2 * i], 0, 0x3120), v[0], v[2]);
                    ptx::decode_e4m3(__byte_perm(codes[half][2 * i + 1], 0, 0x3120), v[1], v[3]);
#pragma unroll
                    for (int n = 0; n < 2; ++n)
                        ptx::mma_16x8x16(o[half * 2 + n], p[0], p[1], p[2], p[3], bf16_of(v[2 * n]),
                                         bf16_of(v[2 * n + 1]));
                }
            }
        }
    }
}

/// Under fixed_split: a thread block per choice, those of a (token, KV head) a cluster. Every step rounds as
/// the KV-major kernels of prompts do, so a row has the same bits from either.
template <class C>
__global__ void __launch_bounds__(kWorkers, sizeof(C) == 1 ? 4 : 2)
    sparse_fixed_kernel(const __grid_constant__ SparseAttentionParams p) {
    extern __shared__ __align__(1024) char raw[];
    auto& shared = *reinterpret_cast<Shared<C>*>(raw);
    constexpr bool kCodes = sizeof(C) == 1;
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
    const int32_t* ids = p.block_ids + (static_cast<int64_t>(token) * b.num_kv_heads + kv_head) * topk;
    const uint4* queries = queries_of(b, token, kv_head);
    const KeyCopies<C> copies(kv_head * kPage);
    const uint32_t k_tile = pinned(ptx::smem_address(shared.k)), v_tile = k_tile + kPageBytes<C>;
    // Fetched and computed before the wait instead of behind it.
    asm volatile("" ::"l"(ids), "l"(queries), "l"(b.v_scale), "l"(b.k_cache), "l"(b.v_cache),
                 "l"(b.k_cache_block_stride), "l"(b.v_cache_block_stride));
    __syncthreads();
    if (tid == 0)
        ptx::barrier_arrive_expect(
            shared.parts_there,
            kBlocks * static_cast<int>(sizeof(shared.rows[0]) + sizeof(shared.units[0]) + sizeof(float2)));
    ptx::cluster_arrive();
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int id = split < topk ? ids[split] : -1;
    const SeqLens lens = read_lens(b.cu_seqlens_q, b.seq_lens, min(token, static_cast<int>(b.num_seqs) - 1));
    const uint4 fetched = fetch(queries);
    const float k_scale = b.k_scale ? b.k_scale[kv_head] : 1.0f,
                v_scale = b.v_scale ? b.v_scale[kv_head] : 1.0f;
    Unit unit{token, kv_head, kRows, token, lens.len - 1};
    int seq_len = lens.len;
    if (token >= b.num_seqs || lens.begin != token || lens.end != token + 1) {
        unit = make_unit(b, token, kv_head);
        seq_len = unit.seq < 0 ? 0 : b.seq_lens[unit.seq];
    }
    if (unit.seq < 0) return;  // all blocks of the cluster
    float o[4][4] = {}, best[2] = {-INFINITY, -INFINITY};
    if (id >= 0) {
        const int64_t page = b.block_table[unit.seq * b.block_table_stride + id];
        const int visible = unit.position + 1 - id * kPage;
        copies.copy(k_tile, b.k_cache, page * b.k_cache_block_stride);
        ptx::commit_copies();
        // An unused slot may hold NaN, and 0 x NaN is NaN.
        copies.copy_first(v_tile, b.v_cache, page * b.v_cache_block_stride, seq_len - id * kPage);
        ptx::commit_copies();
        if constexpr (kCodes) {
            place_in_order_of_codes(shared.queries.rows, fetched.x, fetched.y, fetched.z, fetched.w);
        } else {
            *reinterpret_cast<uint4*>(place_of_queries(shared.queries.rows)) = fetched;
        }
        __syncthreads();
        const float scale_log2 = b.scale * ptx::kLog2e * (kCodes ? k_scale : 1.0f);
        uint32_t q[8][4];
        float s[2][4] = {};
        load_queries(q, shared.queries.rows);
        ptx::wait_for_copies<1>();
        __syncwarp();
        fixed_score<C>(s, q, k_tile, warp_idx * 16);
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (warp_idx * 16 + n * 8 + 2 * t + j % 2 >= visible) s[n][j] = -INFINITY;
                best[j / 2] = fmaxf(best[j / 2], s[n][j]);
            }
#pragma unroll
        for (int other = 1; other < 4; other *= 2)
#pragma unroll
            for (float& x : best) x = fmaxf(x, __shfl_xor_sync(kFull, x, other));
        if (t == 0) {
            shared.row_max[g][warp_idx] = best[0];
            shared.row_max[g + 8][warp_idx] = best[1];
        }
        __syncthreads();
        char* weights = shared.k + warp_idx * 2048 + g * 16 + 4 * t;
        float shift[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float4* found = reinterpret_cast<const float4*>(shared.row_max[g + 8 * r]);
            const float4 x = found[0], y = found[1];
            best[r] =
                fmaxf(fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w)), fmaxf(fmaxf(y.x, y.y), fmaxf(y.z, y.w))) *
                scale_log2;
            shift[r] = best[r] == -INFINITY ? 0.0f : best[r];
        }
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const float low = ptx::exp2_approx(fmaf(s[n][2 * r], scale_log2, -shift[r]));
                const float high = ptx::exp2_approx(fmaf(s[n][2 * r + 1], scale_log2, -shift[r]));
                shared.pair_sums[warp_idx * 2 + n][(g + 8 * r) * 4 + t] = low + high;
                *reinterpret_cast<uint32_t*>(weights + n * 256 + r * 128) = ptx::pack_bf16(low, high);
            }
        ptx::wait_for_copies<0>();
        __syncthreads();
    }
    ptx::cluster_wait();
    const uint32_t barrier = ptx::smem_address(&shared.parts_there);
    if (warp_idx < 4) {
        if (id >= 0) fixed_values<C>(o, k_tile + lane_idx / 16 * 256 + lane_idx % 16 * 16, v_tile, warp_idx);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int owner = g + 8 * r;
            const auto address = [&](const void* here) {
                return ptx::cluster_address(ptx::smem_address(here), owner);
            };
            // As PackedRow: eight values share an exponent, those of dimensions 2t and 2t + 1 of four octets.
            float largest[kCodes ? 2 : 1] = {};
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                // Of codes, tile n holds dimensions 4t + n % 2 and 4t + 2 + n % 2.
                largest[0] = PackedRow::max_or_nan(largest[0], fabsf(o[n][2 * r]));
                float& second = largest[kCodes ? 1 : 0];
                second = PackedRow::max_or_nan(second, fabsf(o[n][2 * r + 1]));
            }
            if constexpr (kCodes) {
#pragma unroll
                for (float& x : largest) x = PackedRow::max_or_nan(x, __shfl_xor_sync(kFull, x, 2));
            }
            float unit_of[kCodes ? 2 : 1], scale[kCodes ? 2 : 1];
#pragma unroll
            for (int i = 0; i < (kCodes ? 2 : 1); ++i) {
                const uint32_t exponent = PackedRow::exponent_of(largest[i]);
                scale[i] = PackedRow::scale_of(exponent);
                unit_of[i] = __uint_as_float(exponent << 23);
            }
            const auto value = [&](int n, int j) {
                return PackedRow::rounded(o[n][2 * r + j], scale[kCodes ? j : 0]);
            };
            const uint32_t there = address(&shared.parts_there), row = address(shared.rows[split]),
                           units = address(shared.units[split]);
            if constexpr (kCodes) {
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    ptx::store_remote(row + (warp_idx * 32 + half * 16 + 4 * t) * 4, value(2 * half, 0),
                                      value(2 * half + 1, 0), value(2 * half, 1), value(2 * half + 1, 1),
                                      there);
                if (t < 2)
                    ptx::store_remote(units + (warp_idx * 4 + 2 * t) * 4, unit_of[0], unit_of[1], there);
            } else {
#pragma unroll
                for (int n = 0; n < 4; ++n)
                    ptx::store_remote(row + (warp_idx * 32 + n * 8 + 2 * t) * 4, value(n, 0), value(n, 1),
                                      there);
                ptx::store_remote(units + (warp_idx * 4 + t) * 4, __float_as_int(unit_of[0]), there);
            }
        }
    } else if (warp_idx < 6) {
        // A lane each of the four sums of a row, in the order of keys.
        const int place = (warp_idx - 4) * 32 + lane_idx;
        float sum = 0;
        if (id >= 0) {
#pragma unroll
            for (int j = 0; j < 16; ++j) sum += shared.pair_sums[j][place];
        }
        sum += __shfl_xor_sync(kFull, sum, 1);
        sum += __shfl_xor_sync(kFull, sum, 2);
        const int owner = place / 4;
        float row_best = -INFINITY;
        if (id >= 0) {
#pragma unroll
            for (int w = 0; w < kWarps; ++w) row_best = fmaxf(row_best, shared.row_max[owner][w]);
            row_best *= b.scale * ptx::kLog2e * (kCodes ? k_scale : 1.0f);
        }
        if (t == 0)
            ptx::store_remote(ptx::cluster_address(ptx::smem_address(&shared.stats[split]), owner), row_best,
                              sum, ptx::cluster_address(barrier, owner));
    }
    // As combine_kernel.
    if (tid >= kDim) return;
    ptx::barrier_wait(shared.parts_there, 0);
    const float2 part = shared.stats[lane_idx % kBlocks];
    float most = part.x;
#pragma unroll
    for (int other = 1; other < kBlocks; other *= 2) most = fmaxf(most, __shfl_xor_sync(kFull, most, other));
    if (most == -INFINITY) most = 0;
    const float weight = ptx::exp2_approx(part.x - most);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kBlocks / 4; ++k)
        sum = fmaf(__shfl_sync(kFull, weight, lane_idx % 4 + 4 * k),
                   __shfl_sync(kFull, part.y, lane_idx % 4 + 4 * k), sum);
    sum += __shfl_xor_sync(kFull, sum, 1);
    sum += __shfl_xor_sync(kFull, sum, 2);
    const float inverse = sum == 0 ? 0.0f : v_scale * PackedRow::kUnit / sum;
    const float factor = weight * inverse;
    float result = 0;
    const int unit_idx = tid / 32 * 4 + tid % 8 / 2;
#pragma unroll
    for (int k = 0; k < kBlocks; ++k)
        result = fmaf(__shfl_sync(kFull, factor, k) * shared.units[k][unit_idx], shared.rows[k][tid], result);
    out_of(b, unit, split)[tid] = __float2bfloat16_rn(result);
}

template <class C>
void launch(const SparseAttentionParams& p, Stream stream) {
    const LaunchChain run{
        "sparse_attention",
        dim3(kBlocks, static_cast<unsigned>(p.base.num_kv_heads), static_cast<unsigned>(p.base.num_tokens)),
        kWorkers,
        sizeof(Shared<C>),
        stream,
        kBlocks};
    run(sparse_fixed_kernel<C>, p);
}

}  // namespace

void sparse_decode_fixed(const SparseAttentionParams& p, Stream stream) {
    p.base.cache_dtype == DType::kE4M3 ? launch<e4m3>(p, stream) : launch<bf16>(p, stream);
}

}  // namespace mmx::cuda::sm90
