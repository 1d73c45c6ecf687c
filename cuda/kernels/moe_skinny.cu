#include "cuda/kernels/moe_skinny.h"

#include <algorithm>

#include "cpp/core/math.h"
#include "cuda/common/gated_act.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/stream_rows.cuh"

namespace mmx::cuda {

namespace {

constexpr int kWarps = 8;        // split k between them; their sums are added in warp order
constexpr int kUnroll = 2;       // chunks in flight: 8 loads of 16 bytes per lane
constexpr int kWeightRows = 16;  // per block: 16 outputs, or 8 channels of gate and up
constexpr int kScaleBlock = 128;
constexpr int kTileRows =
    8;  // rows of x per pass: the n of the mma; further passes find the weights in the L2
constexpr int64_t kMaxRowsPerExpert = kTileRows;  // on average; more rows want larger tiles

struct Skinny {
    const void* x;               // [.., k], rows of x_stride
    const int32_t* sorted_rows;  // row m is x[sorted_rows[m] / topk]; or null, x[m]
    const void* weight;          // [num_experts, weight_rows, k]
    const float* scale;          // [num_experts, ceil(weight_rows / 128), k / 128] or null
    const int32_t* offsets;      // [num_experts + 1]
    bf16* out;                   // [.., n]
    int64_t x_stride, topk, num_experts, weight_rows, n, k;
    Activation activation;  // these three for gate and up only
    float alpha, limit;
};

struct Rows {
    int expert, begin, end;
};

/// The expert number `slot` among those that have rows. One warp; every lane gets the same answer.
__device__ Rows find_expert(const int32_t* offsets, int num_experts, int slot) {
    const int lane = threadIdx.x % 32;
    for (int first = 0; first < num_experts; first += 32) {
        const int expert = first + lane;
        const int begin = expert < num_experts ? offsets[expert] : 0;
        const int end = expert < num_experts ? offsets[expert + 1] : 0;
        const unsigned hit = __ballot_sync(0xFFFFFFFFu, end > begin);
        const int count = __popc(hit);
        if (slot < count) {
            const int source = __fns(hit, 0, slot + 1);
            return {first + source, __shfl_sync(0xFFFFFFFFu, begin, source),
                    __shfl_sync(0xFFFFFFFFu, end, source)};
        }
        slot -= count;
    }
    return {-1, 0, 0};
}

/// kGateUp: weight rows g and g + 8 of the 16 are gate and up of channel g, so they meet in one thread.
template <bool kGateUp>
__device__ __forceinline__ void multiply(const Skinny& p, const Rows& rows, int m0,
                                         float (&partial)[kWarps][kTileRows][kWeightRows]) {
    const int warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32, g = lane_idx / 4, t = lane_idx % 4;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * (kGateUp ? 8 : kWeightRows);
    const int64_t low = first + g, high = kGateUp ? p.n + first + g : first + 8 + g;
    const e4m3* weight = static_cast<const e4m3*>(p.weight) + rows.expert * p.weight_rows * p.k;
    const int64_t scale_cols = ceil_div(p.k, kScaleBlock);
    const float* scale = p.scale + rows.expert * ceil_div(p.weight_rows, kScaleBlock) * scale_cols;
    const bf16* x = nullptr;
    if (const int m = m0 + g; m < rows.end) {
        const int64_t row = p.sorted_rows ? p.sorted_rows[m] / p.topk : m;
        x = static_cast<const bf16*>(p.x) + row * p.x_stride;
    }
    float acc[4] = {};
    stream_rows<kUnroll>(acc, weight + low * p.k, weight + high * p.k, x,
                         scale + low / kScaleBlock * scale_cols, scale + high / kScaleBlock * scale_cols,
                         static_cast<int>(p.k / kStreamChunk), warp_idx, kWarps);
#pragma unroll
    for (int i = 0; i < 4; ++i) partial[warp_idx][t * 2 + i % 2][g + 8 * (i / 2)] = acc[i];
    __syncthreads();
    constexpr int kOutputs = kGateUp ? 8 : kWeightRows;  // per row
    for (int i = threadIdx.x; i < kTileRows * kOutputs; i += kWarps * 32) {
        const int row = i / kOutputs, output = i % kOutputs;
        if (m0 + row >= rows.end) break;
        float sum = 0, up = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
            sum += partial[w][row][output];
            if constexpr (kGateUp) up += partial[w][row][output + 8];
        }
        if constexpr (kGateUp) sum = gated_act(sum, up, p.activation, p.alpha, p.limit);
        p.out[(m0 + row) * p.n + first + output] = from_float<bf16>(sum);
    }
    __syncthreads();
}

template <bool kGateUp>
__global__ void __launch_bounds__(kWarps * 32, 3) moe_skinny_kernel(Skinny p) {
    __shared__ float partial[kWarps][kTileRows][kWeightRows];
    const Rows rows = find_expert(p.offsets, static_cast<int>(p.num_experts), static_cast<int>(blockIdx.y));
    if (rows.expert < 0) return;
    for (int m0 = rows.begin; m0 < rows.end; m0 += kTileRows) multiply<kGateUp>(p, rows, m0, partial);
}

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

bool fits(DType dtype, DType weight_dtype, int64_t rows, int64_t num_experts, int64_t k, int64_t x_stride) {
    return dtype == DType::kBF16 && weight_dtype == DType::kE4M3 && rows <= kMaxRowsPerExpert * num_experts &&
           k % kScaleBlock == 0 && x_stride % 8 == 0;
}

template <bool kGateUp>
void launch_skinny(const char* op, const Skinny& p, int64_t num_rows, Stream stream) {
    // The host does not know which experts were hit: slots behind the last one end at once.
    const dim3 grid(static_cast<unsigned>(p.n / (kGateUp ? 8 : kWeightRows)),
                    static_cast<unsigned>(std::min(num_rows, p.num_experts)));
    Launch{op, grid, kWarps * 32, 0, stream}(moe_skinny_kernel<kGateUp>, p);
}

}  // namespace

bool is_skinny(const MoeGateUpParams& p) {
    return fits(p.dtype, p.weight_dtype, p.num_tokens * p.topk, p.num_local_experts, p.hidden, p.x_stride) &&
           p.inter % 8 == 0 && aligned(p.x) && aligned(p.weight);
}

bool is_skinny(const MoeDownParams& p) {
    return fits(p.dtype, p.weight_dtype, p.num_rows, p.num_local_experts, p.inter, p.inter) &&
           p.hidden % kWeightRows == 0 && aligned(p.x) && aligned(p.weight);
}

void moe_gate_up_skinny(const MoeGateUpParams& p, Stream stream) {
    const Skinny s{.x = p.x,
                   .sorted_rows = p.sorted_rows,
                   .weight = p.weight,
                   .scale = p.weight_scale,
                   .offsets = p.expert_offsets,
                   .out = static_cast<bf16*>(p.out),
                   .x_stride = p.x_stride,
                   .topk = p.topk,
                   .num_experts = p.num_local_experts,
                   .weight_rows = 2 * p.inter,
                   .n = p.inter,
                   .k = p.hidden,
                   .activation = p.activation,
                   .alpha = p.alpha,
                   .limit = p.limit};
    launch_skinny<true>("moe_gate_up", s, p.num_tokens * p.topk, stream);
}

void moe_down_skinny(const MoeDownParams& p, Stream stream) {
    const Skinny s{.x = p.x,
                   .sorted_rows = nullptr,
                   .weight = p.weight,
                   .scale = p.weight_scale,
                   .offsets = p.expert_offsets,
                   .out = static_cast<bf16*>(p.out),
                   .x_stride = p.inter,
                   .topk = 1,
                   .num_experts = p.num_local_experts,
                   .weight_rows = p.hidden,
                   .n = p.hidden,
                   .k = p.inter,
                   .activation = Activation::kSilu,
                   .alpha = 0,
                   .limit = 0};
    launch_skinny<false>("moe_down", s, p.num_rows, stream);
}

}  // namespace mmx::cuda
