#include <algorithm>

#include "cpp/core/math.h"
#include "cuda/common/gated_act.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/reduce.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/launchers.h"
#include "cuda/kernels/moe/choose.h"
#include "cuda/kernels/moe/sm90.h"

namespace mmx::cuda {

namespace {

// Plain fp32 multiply-adds for every size and type; the yardstick of the tensor-core kernels. Every element
// is summed over k in ascending order, one product at a time, so a row does not depend on its batch or its
// tile.

constexpr int kThreads = 256;
constexpr int kBlockN = 64;
constexpr int kBlockK = 32;
constexpr int kRun = 8;
constexpr int kColumns = 4;  // per thread
constexpr int kScaleBlock = 128;
static_assert(kThreads == kBlockN * kBlockK / kRun, "each thread stages one run of each weight tile");
static_assert(kThreads == 16 * kBlockN / kColumns, "16 threads along the rows of a tile");

/// D[m, n] = A[m, k] . B[e, n, k]^T for the rows m of expert e.
struct GroupedGemm {
    const void* a;               // [.., k], rows of a_stride
    const int32_t* sorted_rows;  // row m of A is sorted_rows[m] / topk; or null, row m itself
    const void* weight;          // [num_experts, weight_rows, k]
    const float* scale;          // [num_experts, ceil(weight_rows / 128), ceil(k / 128)] or null
    const int32_t* offsets;      // [num_experts + 1]
    void* out;                   // [.., n]
    int64_t a_stride, topk, num_experts, weight_rows, n, k;
    bool a_packable, weight_packable, out_packable;
    Activation activation;  // these three are read by the kernel for gate and up only
    float alpha, limit;
};

struct Tile {
    int expert;  // -1: none
    int m0, m1;
};

/// The tile of at most kBlockM rows with number `number`, counted expert by expert. One warp.
template <int kBlockM>
__device__ Tile find_tile(const int32_t* offsets, int num_experts, int number) {
    const int lane = threadIdx.x % 32;
    int before = 0;
    for (int first = 0; first < num_experts; first += 32) {
        const int expert = first + lane;
        const int begin = expert < num_experts ? offsets[expert] : 0;
        const int end = expert < num_experts ? offsets[expert + 1] : 0;
        const int count = (end - begin + kBlockM - 1) / kBlockM;
        const int inclusive = warp_prefix_sum(count);
        const int index = number - (before + inclusive - count);
        const unsigned owner = __ballot_sync(kFull, index >= 0 && index < count);
        if (owner) {
            const int source = __ffs(static_cast<int>(owner)) - 1;
            const int m0 = __shfl_sync(kFull, begin + index * kBlockM, source);
            const int last = __shfl_sync(kFull, end, source);
            return {first + source, m0, min(m0 + kBlockM, last)};
        }
        before += __shfl_sync(kFull, inclusive, 31);
    }
    return {-1, 0, 0};
}

/// kParts 1: out = A . B^T. kParts 2: out = act(A . gate^T, A . up^T) with gate = B[:n], up = B[n:].
template <class T, class W, int kBlockM, int kParts>
__global__ void __launch_bounds__(kThreads) grouped_gemm_kernel(GroupedGemm p) {
    constexpr int kRows = kBlockM / 16;  // per thread
    constexpr int kPad = 4;  // keeps rows 16-byte aligned and eases bank conflicts of the transpose
    alignas(16) __shared__ float a_tile[kBlockK][kBlockM + kPad];
    alignas(16) __shared__ float b_tile[kParts][kBlockK][kBlockN + kPad];
    __shared__ Tile shared_tile;
    if (threadIdx.x < 32) {
        const Tile found =
            find_tile<kBlockM>(p.offsets, static_cast<int>(p.num_experts), static_cast<int>(blockIdx.x));
        if (threadIdx.x == 0) shared_tile = found;
    }
    __syncthreads();
    const Tile tile = shared_tile;
    if (tile.expert < 0) return;
    const int64_t n0 = static_cast<int64_t>(blockIdx.y) * kBlockN;

    // What this thread stages of each tile: one run of row `stage_row`.
    const int stage_row = threadIdx.x / (kBlockK / kRun), stage_k = threadIdx.x % (kBlockK / kRun) * kRun;
    const bool has_a = stage_row < tile.m1 - tile.m0, has_b = n0 + stage_row < p.n;
    const T* a = static_cast<const T*>(p.a);
    if (has_a) {
        const int64_t row = tile.m0 + stage_row;
        a += (p.sorted_rows ? p.sorted_rows[row] / p.topk : row) * p.a_stride;
    }
    const W* weight[kParts];
    const float* scale[kParts];
    const int64_t scale_cols = ceil_div(p.k, kScaleBlock);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
        const int64_t row = has_b ? part * p.n + n0 + stage_row : 0;
        weight[part] = static_cast<const W*>(p.weight) + (tile.expert * p.weight_rows + row) * p.k;
        scale[part] =
            p.scale + (tile.expert * ceil_div(p.weight_rows, kScaleBlock) + row / kScaleBlock) * scale_cols;
    }

    float a_run[kRun], b_run[kParts][kRun];
    const auto fetch = [&](int64_t k0) {
        const int64_t k = k0 + stage_k;
        load_run(a_run, a + k, has_a ? p.k - k : 0, p.a_packable);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            load_run(b_run[part], weight[part] + k, has_b ? p.k - k : 0, p.weight_packable);
            if constexpr (std::is_same_v<W, e4m3>) {
                const float factor = has_b && k < p.k ? scale[part][k / kScaleBlock] : 0.0f;
#pragma unroll
                for (int i = 0; i < kRun; ++i) b_run[part][i] *= factor;
            }
        }
    };

    const int thread_row = threadIdx.x / 16 * kRows, thread_column = threadIdx.x % 16 * kColumns;
    float acc[kParts][kRows][kColumns] = {};
    fetch(0);
    for (int64_t k0 = 0; k0 < p.k; k0 += kBlockK) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
            if (stage_row < kBlockM) a_tile[stage_k + i][stage_row] = a_run[i];
#pragma unroll
            for (int part = 0; part < kParts; ++part) b_tile[part][stage_k + i][stage_row] = b_run[part][i];
        }
        __syncthreads();
        if (k0 + kBlockK < p.k) fetch(k0 + kBlockK);
#pragma unroll
        for (int k = 0; k < kBlockK; ++k) {
            const auto av = *reinterpret_cast<const Pack<float, kRows>*>(&a_tile[k][thread_row]);
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
                const auto bv =
                    *reinterpret_cast<const Pack<float, kColumns>*>(&b_tile[part][k][thread_column]);
#pragma unroll
                for (int i = 0; i < kRows; ++i)
#pragma unroll
                    for (int j = 0; j < kColumns; ++j)
                        acc[part][i][j] = fmaf(av.v[i], bv.v[j], acc[part][i][j]);
            }
        }
    }

#pragma unroll
    for (int i = 0; i < kRows; ++i) {
        const int64_t m = tile.m0 + thread_row + i, n = n0 + thread_column;
        if (m >= tile.m1 || n >= p.n) continue;
        float values[kColumns];
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
            values[j] = kParts == 2
                            ? gated_act(acc[0][i][j], acc[kParts - 1][i][j], p.activation, p.alpha, p.limit)
                            : acc[0][i][j];
        store_run(static_cast<T*>(p.out) + m * p.n + n, values, p.n - n, p.out_packable);
    }
}

template <int kParts, class T, class W>
void launch_typed(const char* op, GroupedGemm p, int64_t num_rows, Stream stream) {
    p.a_packable = is_packable<T, kRun>(p.a, {p.a_stride, p.k});
    p.weight_packable = is_packable<W, kRun>(p.weight, {p.k});
    p.out_packable = is_packable<T, kColumns>(p.out, {p.n});
    const auto launch = [&](auto kernel, int64_t block_m) {
        // The host does not know the rows per expert: at most one part-filled tile each.
        const int64_t tiles = num_rows / block_m + std::min(p.num_experts, num_rows);
        const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(ceil_div(p.n, kBlockN)));
        Launch{op, grid, kThreads, 0, stream}(kernel, p);
    };
    if (num_rows <= 16 * p.num_experts)
        launch(grouped_gemm_kernel<T, W, 16, kParts>, 16);
    else
        launch(grouped_gemm_kernel<T, W, 64, kParts>, 64);
}

template <int kParts>
void launch_grouped_gemm(const char* op, DType dtype, DType weight_dtype, const GroupedGemm& p,
                         int64_t num_rows, Stream stream) {
    if (p.n == 0) return;
    dispatch_float(dtype, [&](auto t) {
        using T = decltype(t);
        if (weight_dtype == DType::kE4M3)
            launch_typed<kParts, T, e4m3>(op, p, num_rows, stream);
        else
            launch_typed<kParts, T, T>(op, p, num_rows, stream);
    });
}

}  // namespace

int64_t moe_gate_up_workspace(const MoeGateUpParams& p) { return bf16_copied_bytes(p); }
int64_t moe_down_workspace(const MoeDownParams& p) { return bf16_ticket_bytes(p); }

void moe_gate_up(const MoeGateUpParams& p, Stream stream) {
    if (sm90_bf16_fits(p) && is_aligned16(p.x) && is_aligned16(p.weight) && is_aligned16(p.out))
        return sm90::moe_gate_up_bf16(p, stream);
    launch_grouped_gemm<2>("moe_gate_up", p.dtype, p.weight_dtype,
                           {.a = p.x,
                            .sorted_rows = p.sorted_rows,
                            .weight = p.weight,
                            .scale = p.weight_scale,
                            .offsets = p.expert_offsets,
                            .out = p.out,
                            .a_stride = p.x_stride,
                            .topk = p.topk,
                            .num_experts = p.num_local_experts,
                            .weight_rows = 2 * p.inter,
                            .n = p.inter,
                            .k = p.hidden,
                            .a_packable = false,
                            .weight_packable = false,
                            .out_packable = false,
                            .activation = p.activation,
                            .alpha = p.alpha,
                            .limit = p.limit},
                           p.num_tokens * p.topk, stream);
}

void moe_down(const MoeDownParams& p, Stream stream) {
    if (sm90_bf16_fits(p) && is_aligned16(p.x) && is_aligned16(p.weight) && is_aligned16(p.out))
        return sm90::moe_down_bf16(p, stream);
    launch_grouped_gemm<1>("moe_down", p.dtype, p.weight_dtype,
                           {.a = p.x,
                            .sorted_rows = nullptr,
                            .weight = p.weight,
                            .scale = p.weight_scale,
                            .offsets = p.expert_offsets,
                            .out = p.out,
                            .a_stride = p.inter,
                            .topk = 1,
                            .num_experts = p.num_local_experts,
                            .weight_rows = p.hidden,
                            .n = p.hidden,
                            .k = p.inter,
                            .a_packable = false,
                            .weight_packable = false,
                            .out_packable = false,
                            .activation = Activation::kSilu,
                            .alpha = 0,
                            .limit = 0},
                           p.num_rows, stream);
}

}  // namespace mmx::cuda
