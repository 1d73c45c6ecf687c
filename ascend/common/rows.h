#pragma once

#include "ascend/common/kernel.h"

/// Vector steps over a tile of fp32 rows in UB: [rows, width], width a multiple of 64 lanes.
namespace mmx::ascend {

/// One instruction that takes the same 64 lanes of every row; the row pitch must fit the repeat stride.
__aicore__ inline bool rows_fit_stride(uint32_t rows, uint32_t width) {
    return width / 8 <= kMaxRepeat && rows <= kMaxRepeat;
}

/// Folds the columns of each row into its first 64 lanes by `Op` (Add or Max, as a tag).
struct FoldAdd {
    template <class... A>
    __aicore__ static void apply(const A&... a) {
        Add(a...);
    }
};
struct FoldMax {
    template <class... A>
    __aicore__ static void apply(const A&... a) {
        Max(a...);
    }
};

template <class Op>
__aicore__ inline void fold_rows(const LocalTensor<float>& tile, uint32_t rows, uint32_t width,
                                 uint32_t used) {
    const uint8_t pitch = static_cast<uint8_t>(width / 8);
    const bool strided = rows_fit_stride(rows, width);
    for (uint32_t chunks = used / kLanes; chunks > 1;) {
        const uint32_t half = chunks / 2, from = (chunks - half) * kLanes;
        if (strided && half <= rows) {
            for (uint32_t c = 0; c < half; ++c) {
                const LocalTensor<float> low = tile[c * kLanes];
                Op::apply(low, low, tile[from + c * kLanes], static_cast<uint64_t>(kLanes),
                          static_cast<uint8_t>(rows), BinaryRepeatParams{1, 1, 1, pitch, pitch, pitch});
            }
        } else {
            for (uint32_t r = 0; r < rows; ++r) {
                const LocalTensor<float> low = tile[r * width];
                Op::apply(low, low, low[from], static_cast<int32_t>(half * kLanes));
            }
        }
        PipeBarrier<PIPE_V>();
        chunks -= half;
    }
}

/// out[r] = sum of the first 64 lanes of row r.
__aicore__ inline void sum_rows(const LocalTensor<float>& out, const LocalTensor<float>& tile, uint32_t rows,
                                uint32_t width) {
    if (rows_fit_stride(rows, width)) {
        WholeReduceSum(out, tile, kLanes, rows, 1, 1, width / 8);
    } else {
        for (uint32_t r = 0; r < rows; ++r) {
            WholeReduceSum(out[r], tile[r * width], kLanes, 1, 1, 1, 8);
            PipeBarrier<PIPE_V>();
        }
    }
}

/// out[r] = maximum of the first 64 lanes of row r.
__aicore__ inline void max_rows(const LocalTensor<float>& out, const LocalTensor<float>& tile, uint32_t rows,
                                uint32_t width) {
    WholeReduceMax(out, tile, kLanes, rows, 1, 1, width / 8, ReduceOrder::ORDER_ONLY_VALUE);
}

struct ByMul {
    template <class... A>
    __aicore__ static void apply(const A&... a) {
        Mul(a...);
    }
};
struct BySub {
    template <class... A>
    __aicore__ static void apply(const A&... a) {
        Sub(a...);
    }
};

/// tile[r, :] op= factor[r], with each factor filling one block: [rows, 8] (the layout that Brcb writes).
template <class Op>
__aicore__ inline void apply_per_row(const LocalTensor<float>& tile, const LocalTensor<float>& factor,
                                     uint32_t rows, uint32_t width, uint32_t used) {
    const uint32_t chunks = used / kLanes;
    const uint8_t pitch = static_cast<uint8_t>(width / 8);
    if (rows_fit_stride(rows, width) && chunks <= rows) {
        for (uint32_t c = 0; c < chunks; ++c) {
            const LocalTensor<float> part = tile[c * kLanes];
            Op::apply(part, part, factor, static_cast<uint64_t>(kLanes), static_cast<uint8_t>(rows),
                      BinaryRepeatParams{1, 1, 0, pitch, pitch, 1});
        }
    } else {
        for (uint32_t r = 0; r < rows; ++r) {
            const LocalTensor<float> row = tile[r * width];
            Op::apply(row, row, factor[r * 8], static_cast<uint64_t>(kLanes), static_cast<uint8_t>(chunks),
                      BinaryRepeatParams{1, 1, 0, 8, 8, 0});
        }
    }
}

/// tile[r, :] *= row[:].
__aicore__ inline void scale_columns(const LocalTensor<float>& tile, const LocalTensor<float>& row,
                                     uint32_t rows, uint32_t width) {
    const uint32_t chunks = width / kLanes;
    const uint8_t pitch = static_cast<uint8_t>(width / 8);
    if (rows_fit_stride(rows, width) && chunks <= rows) {
        for (uint32_t c = 0; c < chunks; ++c) {
            const LocalTensor<float> part = tile[c * kLanes];
            Mul(part, part, row[c * kLanes], static_cast<uint64_t>(kLanes), static_cast<uint8_t>(rows),
                BinaryRepeatParams{1, 1, 1, pitch, pitch, 0});
        }
    } else {
        for (uint32_t r = 0; r < rows; ++r)
            Mul(tile[r * width], tile[r * width], row, static_cast<int32_t>(width));
    }
}

}  // namespace mmx::ascend
