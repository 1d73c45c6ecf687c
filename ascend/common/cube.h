#pragma once

#include "ascend/common/kernel.h"

/// Steps of a product on the cube, from row-major global memory to row-major global memory. Matrices in L1
/// are in column groups of 32 bytes with `pitch` rows each.
namespace mmx::ascend {

/// `rows` rows of `columns` elements, `stride` apart, to L1; rows up to `padded` are zero.
template <class T>
__aicore__ inline void load_matrix(const LocalTensor<T>& dst, const GlobalTensor<T>& src, uint32_t rows,
                                   uint32_t padded, uint32_t columns, int64_t stride, uint32_t pitch) {
    constexpr uint32_t group = kBlock / sizeof(T);
    if (rows > 0) {
        Nd2NzParams copy;
        copy.ndNum = 1;
        copy.nValue = static_cast<uint16_t>(rows);
        copy.dValue = static_cast<uint16_t>(columns);
        copy.srcDValue = static_cast<uint16_t>(stride);
        copy.dstNzC0Stride = static_cast<uint16_t>(pitch);
        copy.dstNzNStride = 1;
        DataCopy(dst, src, copy);
    }
    if (rows < padded) {
        InitConstValueParams<T> zero;
        zero.repeatTimes = static_cast<uint16_t>(div_up(columns, group));
        zero.blockNum = static_cast<uint16_t>(padded - rows);
        zero.dstGap = static_cast<uint16_t>(pitch - zero.blockNum);
        zero.initValue = T{};
        InitConstValue(dst[rows * group], zero);
    }
}

/// Left matrix [m, k] of `m` rows in L1 to L0A.
template <class T>
__aicore__ inline void load_left(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint32_t m,
                                 uint32_t k) {
    constexpr uint32_t group = kBlock / sizeof(T), fractal = kFractal * group;
    const uint32_t m1 = m / kFractal, k1 = div_up(k, group);
    LoadData2DParams move;
    // Along the longer side: fewer instructions.
    if (m1 < k1) {
        move.repeatTimes = static_cast<uint8_t>(k1);
        move.srcStride = static_cast<uint16_t>(m1);
        for (uint32_t i = 0; i < m1; ++i) LoadData(dst[i * k1 * fractal], src[i * fractal], move);
    } else {
        move.repeatTimes = static_cast<uint8_t>(m1);
        move.srcStride = 1;
        move.dstGap = static_cast<uint16_t>(k1 - 1);
        for (uint32_t i = 0; i < k1; ++i) LoadData(dst[i * fractal], src[i * m * group], move);
    }
}

/// Rows [row, row + n) of a right matrix [pitch, k] in L1, given as rows of its transpose, to L0B.
template <class T>
__aicore__ inline void load_right(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint32_t row,
                                  uint32_t n, uint32_t pitch, uint32_t k) {
    constexpr uint32_t group = kBlock / sizeof(T);
    const uint32_t k1 = div_up(k, group);
    LoadData2DParams move;
    move.srcStride = 1;
    if (n == pitch) {
        move.repeatTimes = static_cast<uint8_t>(k1 * (n / kFractal));
        LoadData(dst, src, move);
        return;
    }
    move.repeatTimes = static_cast<uint8_t>(n / kFractal);
    for (uint32_t i = 0; i < k1; ++i) LoadData(dst[i * n * group], src[(i * pitch + row) * group], move);
}

/// Right matrix [k, n] with k in rows, in L1 with `k` rows, to L0B: fractals are turned on the way.
template <class T>
__aicore__ inline void load_right_transposed(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint32_t k,
                                             uint32_t n) {
    LoadData2DParams move;
    move.repeatTimes = static_cast<uint8_t>(n / kFractal);
    move.srcStride = static_cast<uint16_t>(k / kFractal);
    move.ifTranspose = true;
    for (uint32_t i = 0; i < k / kFractal; ++i)
        LoadData(dst[i * n * kFractal], src[i * kFractal * kFractal], move);
}

template <class Acc, class T>
__aicore__ inline void multiply(const LocalTensor<Acc>& sum, const LocalTensor<T>& left,
                                const LocalTensor<T>& right, uint32_t m, uint32_t n, uint32_t k, bool first) {
    MmadParams mad;
    mad.m = static_cast<uint16_t>(m);
    mad.n = static_cast<uint16_t>(n);
    mad.k = static_cast<uint16_t>(k);
    mad.cmatrixInitVal = first;
    Mmad(sum, left, right, mad);
}

/// Before a product that adds to a tile of fewer than ten fractals: the cube does not order those by itself.
__aicore__ inline void order_small_tiles(uint32_t m, uint32_t n) {
    if ((m / kFractal) * (n / kFractal) < 10) PipeBarrier<PIPE_M>();
}

/// `rows` rows of a tile of `padded` rows to global memory.
template <class Acc>
__aicore__ inline void store_tile(const GlobalTensor<Acc>& dst, const LocalTensor<Acc>& tile, uint32_t rows,
                                  uint32_t padded, uint32_t columns, uint32_t stride) {
    FixpipeParamsV220 fix;
    fix.nSize = static_cast<uint16_t>(columns);
    fix.mSize = static_cast<uint16_t>(rows);
    fix.srcStride = static_cast<uint16_t>(padded);
    fix.dstStride = stride;
    Fixpipe<Acc, Acc, CFG_ROW_MAJOR>(dst, tile, fix);
}

}  // namespace mmx::ascend
