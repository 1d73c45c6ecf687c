#include "cpp/kernels/common.h"

namespace mmx::cpu::MMX_CPU_ISA {

namespace {

// A dot product runs over k in kLanes interleaved partial sums, whatever tile it is computed in: that fixes
// the order of additions, so a row's result is the same in every batch.
constexpr int kLanes = 16;
typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));

Vec load(const float* x) { return *reinterpret_cast<const Vec*>(x); }
Vec load(const bf16* x) {
    typedef uint16_t Half __attribute__((vector_size(kLanes * 2), aligned(2)));
    typedef uint32_t Word __attribute__((vector_size(kLanes * 4)));
    const Half half = *reinterpret_cast<const Half*>(x);
    return std::bit_cast<Vec>(__builtin_convertvector(half, Word) << 16);
}

template <class T>
Vec load_tail(const T* x, int64_t count) {
    Vec v = {};
    for (int64_t l = 0; l < count; ++l) v[l] = to_float(x[l]);
    return v;
}

/// kRows x kCols outputs at once: 4 x 4 accumulators and 8 operands fit the registers, and 8 loads feed 16
/// multiply-adds.
template <int kRows, int kCols, class T, class TOut>
void tile(TOut* out, int64_t out_stride, const T* x, int64_t x_stride, const T* w, int64_t w_stride,
          int64_t k) {
    Vec acc[kRows][kCols] = {};
    const auto step = [&](const auto& get) {
        Vec a[kRows], b[kCols];
        for (int r = 0; r < kRows; ++r) a[r] = get(x + r * x_stride);
        for (int c = 0; c < kCols; ++c) b[c] = get(w + c * w_stride);
        for (int r = 0; r < kRows; ++r)
            for (int c = 0; c < kCols; ++c) acc[r][c] += a[r] * b[c];
    };
    int64_t i = 0;
    for (; i + kLanes <= k; i += kLanes) step([&](const T* row) { return load(row + i); });
    if (i < k) step([&](const T* row) { return load_tail(row + i, k - i); });
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < kCols; ++c) {
            float sum = 0;
            for (int l = 0; l < kLanes; ++l) sum += acc[r][c][l];
            out[r * out_stride + c] = from_float<TOut>(sum);
        }
}

template <int kRows, class T, class TOut>
void row_block(const LinearParams& p, int64_t row, int64_t begin, int64_t end) {
    TOut* out = static_cast<TOut*>(p.out) + row * p.out_stride;
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    const T* w = static_cast<const T*>(p.weight);
    int64_t col = begin;
    for (; col + 4 <= end; col += 4)
        tile<kRows, 4>(out + col, p.out_stride, x, p.x_stride, w + col * p.weight_stride, p.weight_stride,
                       p.k);
    for (; col < end; ++col)
        tile<kRows, 1>(out + col, p.out_stride, x, p.x_stride, w + col * p.weight_stride, p.weight_stride,
                       p.k);
}

template <class T, class TOut>
void linear_typed(const LinearParams& p) {
    // Why 32 columns: a block of weights stays in the L2 while all rows pass over it.
    constexpr int64_t kColumns = 32;
    parallel_for(ceil_div(p.n, kColumns), 1, [&](int64_t first, int64_t last) {
        for (int64_t block = first; block < last; ++block) {
            const int64_t begin = block * kColumns, end = std::min(p.n, begin + kColumns);
            int64_t row = 0;
            for (; row + 4 <= p.m; row += 4) row_block<4, T, TOut>(p, row, begin, end);
            for (; row < p.m; ++row) row_block<1, T, TOut>(p, row, begin, end);
        }
    });
}

}  // namespace

void linear(const LinearParams& p, Stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        if (p.out_dtype == DType::kF32)
            linear_typed<T, float>(p);
        else
            linear_typed<T, T>(p);
    });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
