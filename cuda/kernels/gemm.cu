#include "cpp/core/math.h"
#include "cuda/common/launch.h"
#include "cuda/common/reduce.cuh"
#include "cuda/common/types.cuh"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

/// Any shape and type, one warp per output; the yardstick of the fast kernel and what fp32 runs on.
template <class T, class TOut>
__global__ void linear_kernel(LinearParams p) {
    const int64_t col = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32,
                  row = blockIdx.y;
    if (col >= p.n) return;
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    const T* w = static_cast<const T*>(p.weight) + col * p.k;
    float sum = 0;
    for (int64_t i = threadIdx.x % 32; i < p.k; i += 32) sum += to_float(x[i]) * to_float(w[i]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) static_cast<TOut*>(p.out)[row * p.out_stride + col] = from_float<TOut>(sum);
}

// ---- skinny: up to 16 rows of x, weights streamed once -------------------------------------------

constexpr int kWarps = 8;        // split k between them; their sums are added in warp order
constexpr int kChunk = 64;       // k elements that a warp takes at a time: 128 bytes of each weight row
constexpr int kUnroll = 2;       // chunks in flight: 8 loads of 16 bytes per lane
constexpr int kWeightRows = 16;  // per block: the m of mma.m16n8k16
constexpr int kMaxTokens = 16;

__device__ __forceinline__ uint4 load_weight(const bf16* address) {
    uint4 v;
    // Why no_allocate: every weight is read once, the L1 belongs to x.
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
}

__device__ __forceinline__ void mma_16x8x16(float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                            uint32_t a3, uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Weights are the A operand (16 rows), tokens the B operand (8 columns each tile). A dot product does not
/// care about the order of k: a lane's fragments of two k16 steps are 8 neighbouring elements of its row, so
/// that each lane loads 16 contiguous bytes straight into fragments, and x is permuted the same way by the
/// same indexing.
template <int kTokenTiles, class TOut>
__global__ void __launch_bounds__(kWarps * 32, 4) linear_skinny_kernel(LinearParams p) {
    const int warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32, g = lane_idx / 4, t = lane_idx % 4;
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kWeightRows;
    const bf16* w_low = static_cast<const bf16*>(p.weight) + (first_row + g) * p.k + t * 8;
    const bf16* w_high = w_low + 8 * p.k;
    const bf16* x = static_cast<const bf16*>(p.x) + g * p.x_stride + t * 8;

    float acc[kTokenTiles][4] = {};
    const int num_chunks = static_cast<int>(p.k / kChunk);
    for (int base = warp_idx; base < num_chunks; base += kWarps * kUnroll) {
        uint4 low[kUnroll][2], high[kUnroll][2];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const int chunk = base + u * kWarps;
            if (chunk >= num_chunks) break;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int64_t offset = static_cast<int64_t>(chunk) * kChunk + half * 32;
                low[u][half] = load_weight(w_low + offset);
                high[u][half] = load_weight(w_high + offset);
            }
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const int chunk = base + u * kWarps;
            if (chunk >= num_chunks) break;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int64_t offset = static_cast<int64_t>(chunk) * kChunk + half * 32;
#pragma unroll
                for (int tile = 0; tile < kTokenTiles; ++tile) {
                    uint4 b = make_uint4(0, 0, 0, 0);
                    if (tile * 8 + g < p.m)
                        b = *reinterpret_cast<const uint4*>(x + tile * 8 * p.x_stride + offset);
                    mma_16x8x16(acc[tile], low[u][half].x, high[u][half].x, low[u][half].y, high[u][half].y,
                                b.x, b.y);
                    mma_16x8x16(acc[tile], low[u][half].z, high[u][half].z, low[u][half].w, high[u][half].w,
                                b.z, b.w);
                }
            }
        }
    }

    __shared__ float partial[kWarps][kTokenTiles * 8][kWeightRows];
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            partial[warp_idx][tile * 8 + t * 2 + i % 2][g + 8 * (i / 2)] = acc[tile][i];
    __syncthreads();
    for (int i = threadIdx.x; i < kTokenTiles * 8 * kWeightRows; i += kWarps * 32) {
        const int token = i / kWeightRows, row = i % kWeightRows;
        if (token >= p.m) break;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += partial[w][token][row];
        static_cast<TOut*>(p.out)[token * p.out_stride + first_row + row] = from_float<TOut>(sum);
    }
}

bool is_skinny(const LinearParams& p) {
    const auto aligned = [](const void* data, int64_t stride) {
        return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
    };
    return p.dtype == DType::kBF16 && p.m <= kMaxTokens && p.n % kWeightRows == 0 && p.k % kChunk == 0 &&
           aligned(p.x, p.x_stride) && aligned(p.weight, p.k);
}

template <class T, class TOut>
void launch_linear(const LinearParams& p, Stream stream) {
    if constexpr (std::is_same_v<T, bf16>) {
        if (is_skinny(p)) {
            const Launch launch{"linear", dim3(static_cast<unsigned>(p.n / kWeightRows)), kWarps * 32, 0,
                                stream};
            if (p.m <= 8) return launch(linear_skinny_kernel<1, TOut>, p);
            return launch(linear_skinny_kernel<2, TOut>, p);
        }
    }
    constexpr int kThreads = 128;
    const dim3 grid(static_cast<unsigned>(ceil_div(p.n, kThreads / 32)), static_cast<unsigned>(p.m));
    Launch{"linear", grid, kThreads, 0, stream}(linear_kernel<T, TOut>, p);
}

}  // namespace

void linear(const LinearParams& p, Stream stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        if (p.out_dtype == DType::kF32)
            launch_linear<T, float>(p, stream);
        else
            launch_linear<T, T>(p, stream);
    });
}

}  // namespace mmx::cuda
