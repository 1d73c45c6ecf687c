#include "cpp/core/math.h"
#include "cuda/common/launch.h"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kRun = 8;
constexpr int kRows = 8;     // per thread
constexpr int kBlock = 128;  // side of the square that shares one scale
static_assert(kBlock % kRun == 0 && kBlock % kRows == 0, "the runs of a thread must lie inside one block");

/// Thread blocks that have kRows rows and kThreads runs, neighbours in a row next to each other.
struct Place {
    int64_t row0, column;

    __device__ __forceinline__ explicit Place(unsigned blocks_per_row)
        : row0(int64_t{blockIdx.x / blocks_per_row} * kRows),
          column((int64_t{blockIdx.x % blocks_per_row} * kThreads + threadIdx.x) * kRun) {}
};

unsigned blocks_per_row(int64_t cols) {
    return static_cast<unsigned>(ceil_div(cols, int64_t{kThreads * kRun}));
}
dim3 grid_of(int64_t rows, int64_t cols) {
    return dim3(static_cast<unsigned>(ceil_div(rows, int64_t{kRows})) * blocks_per_row(cols));
}

/// The runs of a thread, all loads in flight before the first use, each times scale_of(row).
template <class T, class F>
__device__ __forceinline__ void widen(T* out, int64_t out_stride, const e4m3* x, int64_t x_stride,
                                      int64_t rows, int64_t cols, const Place& at, bool packable,
                                      F&& scale_of) {
    Pack<e4m3, kRun> codes[kRows];
    float scales[kRows];
    const int64_t count = cols - at.column;
    if (packable && at.row0 + kRows <= rows && count >= kRun) {
#pragma unroll
        for (int r = 0; r < kRows; ++r)
            codes[r] = *reinterpret_cast<const Pack<e4m3, kRun>*>(x + (at.row0 + r) * x_stride + at.column);
#pragma unroll
        for (int r = 0; r < kRows; ++r) scales[r] = scale_of(at.row0 + r);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            float values[kRun];
#pragma unroll
            for (int i = 0; i < kRun; ++i) values[i] = to_float(codes[r].v[i]) * scales[r];
            store_run(out + (at.row0 + r) * out_stride + at.column, values, count, true);
        }
        return;
    }
    for (int64_t row = at.row0; row < min(at.row0 + kRows, rows); ++row) {
        const float scale = scale_of(row);
        for (int i = 0; i < kRun && i < count; ++i)
            out[row * out_stride + at.column + i] =
                from_float<T>(to_float(x[row * x_stride + at.column + i]) * scale);
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    fp8_block_dequant_kernel(Fp8BlockDequantParams p, unsigned blocks_per_row, bool packable) {
    const Place at(blocks_per_row);
    if (at.column >= p.cols) return;
    const float scale = p.scale[at.row0 / kBlock * p.scale_stride + at.column / kBlock];
    widen(static_cast<T*>(p.out), p.out_stride, static_cast<const e4m3*>(p.x), p.x_stride, p.rows, p.cols, at,
          packable, [&](int64_t) { return scale; });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    mxfp8_dequant_kernel(Mxfp8DequantParams p, unsigned blocks_per_row, bool packable) {
    const Place at(blocks_per_row);
    if (at.column >= p.cols) return;
    const int64_t groups = ceil_div(p.cols, kMxfp8Group);
    const uint8_t* codes = p.scale + at.column / kMxfp8Group;
    widen(static_cast<T*>(p.out), p.cols, static_cast<const e4m3*>(p.x), p.cols, p.rows, p.cols, at, packable,
          [&](int64_t row) {
              const unsigned code = codes[row * groups];
              // Code 0 is 2^-127, which is subnormal; 255 is NaN.
              return __uint_as_float(code == 255 ? 0x7FC00000u : code == 0 ? 1u << 22 : code << 23);
          });
}

}  // namespace

void fp8_block_dequant(const Fp8BlockDequantParams& p, Stream stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        const bool packable =
            is_packable<e4m3, kRun>(p.x, {p.x_stride}) && is_packable<T, kRun>(p.out, {p.out_stride});
        Launch{"fp8_block_dequant", grid_of(p.rows, p.cols), kThreads, 0, stream}(
            fp8_block_dequant_kernel<T>, p, blocks_per_row(p.cols), packable);
    });
}

void mxfp8_dequant(const Mxfp8DequantParams& p, Stream stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        const bool packable = is_packable<e4m3, kRun>(p.x, {p.cols}) && is_packable<T, kRun>(p.out, {p.cols});
        Launch{"mxfp8_dequant", grid_of(p.rows, p.cols), kThreads, 0, stream}(
            mxfp8_dequant_kernel<T>, p, blocks_per_row(p.cols), packable);
    });
}

}  // namespace mmx::cuda
