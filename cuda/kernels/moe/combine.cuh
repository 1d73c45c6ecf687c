#pragma once

#include "cpp/core/params/moe.h"
#include "cuda/common/vec.cuh"

/// The weighted sum of a token's expert rows, a run of columns at a time.
namespace mmx::cuda {

inline constexpr int kCombineRun = 8;

/// Whether combine_run may use wide accesses.
template <class T>
bool is_combine_packable(const MoeCombineParams& p) {
    return is_packable<T, kCombineRun>(p.x, {p.hidden}) &&
           is_packable<T, kCombineRun>(p.shared, {p.shared_stride});
}

namespace combine_detail {

/// A run as it lies in memory, so that several loads are on their way before the first is looked at.
template <class T, bool kPackable>
struct Run {
    Pack<T, kCombineRun> pack;
    float values[kCombineRun];

    __device__ __forceinline__ void load(const T* from, int64_t count) {
        if constexpr (kPackable)
            pack = *reinterpret_cast<const Pack<T, kCombineRun>*>(from);
        else
            load_run(values, from, count, false);
    }
    __device__ __forceinline__ float operator[](int i) const {
        return kPackable ? to_float(pack.v[i]) : values[i];
    }
};

}  // namespace combine_detail

/// sum[j] = column i + j of the token's sum.
template <class T, bool kPackable>
__device__ __forceinline__ void combine_run(float (&sum)[kCombineRun], const MoeCombineParams& p,
                                            int64_t token, int64_t i) {
    using combine_detail::Run;
    constexpr int kRowsAtOnce = kPackable ? 4 : 1;  // fewer in registers where a run takes twice as many
    Run<T, kPackable> shared, rows[kRowsAtOnce];
    int position[kRowsAtOnce];
    float weight[kRowsAtOnce];
    const int64_t end = (token + 1) * p.topk;
    const auto place = [&](int64_t first) {
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r) {
            const int64_t row = min(first + r, end - 1);
            position[r] = p.row_positions[row];
            weight[r] = p.topk_weights[row];
        }
    };
    place(token * p.topk);
    if (p.shared) shared.load(static_cast<const T*>(p.shared) + token * p.shared_stride + i, p.hidden - i);
#pragma unroll
    for (int j = 0; j < kCombineRun; ++j) sum[j] = 0;
    for (int64_t first = token * p.topk; first < end; first += kRowsAtOnce) {
        // Why the first row instead of none: loads without branches between them. It is not used.
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r)
            rows[r].load(static_cast<const T*>(p.x) + max(position[r], 0) * p.hidden + i, p.hidden - i);
        float factor[kRowsAtOnce];
        bool used[kRowsAtOnce];
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r) {
            factor[r] = weight[r];
            used[r] = position[r] >= 0 && first + r < end;
        }
        // The places of the next rows travel with these rows.
        place(first + kRowsAtOnce);
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r)
            if (used[r])
#pragma unroll
                for (int j = 0; j < kCombineRun; ++j) sum[j] = fmaf(factor[r], rows[r][j], sum[j]);
    }
    if (p.shared)
#pragma unroll
        for (int j = 0; j < kCombineRun; ++j) sum[j] += shared[j];
}

}  // namespace mmx::cuda
