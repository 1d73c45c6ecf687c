#include "cpp/core/math.h"
#include "cuda/common/launch.h"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kRun = 8;
constexpr int kRows = 4;     // per thread
constexpr int kBlock = 128;  // side of the square that shares one scale
static_assert(kBlock % kRun == 0 && kBlock % kRows == 0, "the runs of a thread must lie inside one block");

/// A thread has one run of kRows rows, all loads in flight before the first use.
template <class T>
__global__ void __launch_bounds__(kThreads) fp8_block_dequant_kernel(Fp8BlockDequantParams p, bool packable) {
    const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kRows;
    const int64_t col = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kRun;
    if (col >= p.cols) return;
    const float scale = p.scale[row0 / kBlock * p.scale_stride + col / kBlock];
    float values[kRows][kRun];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        const int64_t row = min(row0 + r, p.rows - 1);
        load_run(values[r], static_cast<const e4m3*>(p.x) + row * p.x_stride + col, p.cols - col, packable);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        if (row0 + r >= p.rows) return;
#pragma unroll
        for (int i = 0; i < kRun; ++i) values[r][i] *= scale;
        store_run(static_cast<T*>(p.out) + (row0 + r) * p.out_stride + col, values[r], p.cols - col,
                  packable);
    }
}

}  // namespace

void fp8_block_dequant(const Fp8BlockDequantParams& p, Stream stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        const bool packable =
            is_packable<e4m3, kRun>(p.x, {p.x_stride}) && is_packable<T, kRun>(p.out, {p.out_stride});
        const dim3 grid(static_cast<unsigned>(ceil_div(p.rows, int64_t{kRows})),
                        static_cast<unsigned>(ceil_div(p.cols, kThreads * kRun)));
        Launch{"fp8_block_dequant", grid, kThreads, 0, stream}(fp8_block_dequant_kernel<T>, p, packable);
    });
}

}  // namespace mmx::cuda
