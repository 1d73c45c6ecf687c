#pragma once

#include "ascend/common/cube.h"

/// Product of one tile on the cube: D[m, n] = A[m, k] . B[n, k]^T, accumulated over k in ascending steps, so
/// a row's result does not depend on the rows beside it.
namespace mmx::ascend {

constexpr uint32_t kTileM = 128, kTileN = 256, kHalfN = kTileN / 2;

/// Row-major matrix [rows, k] in global memory.
template <class T>
struct Matrix {
    GlobalTensor<T> data;
    int64_t stride;
};

template <class In, class Acc>
class CubeTile {
  public:
    // Of one K step in L1 and of its quarter in L0: 512 and 128 bytes of each row.
    static constexpr uint32_t kK0 = kBlock / sizeof(In), kStepL1 = 512 / sizeof(In),
                              kStepL0 = 128 / sizeof(In);

    __aicore__ inline explicit CubeTile(TPipe& pipe) {
        pipe.InitBuffer(l1_a_, 2 * kTileM * kStepL1 * sizeof(In));
        pipe.InitBuffer(l1_b_, 2 * kTileN * kStepL1 * sizeof(In));
        pipe.InitBuffer(l0_a_, 2 * kTileM * kStepL0 * sizeof(In));
        pipe.InitBuffer(l0_b_, 2 * kTileN * kStepL0 * sizeof(In));
        pipe.InitBuffer(l0_c_, kTileM * kTileN * sizeof(Acc));
    }

    /// Marks all buffers free; close() takes the marks back.
    __aicore__ inline void open() {
        for (int32_t slot = 0; slot < 2; ++slot) {
            SetFlag<HardEvent::MTE1_MTE2>(slot);
            SetFlag<HardEvent::M_MTE1>(slot);
        }
        SetFlag<HardEvent::FIX_M>(EVENT_ID0);
    }
    __aicore__ inline void close() {
        for (int32_t slot = 0; slot < 2; ++slot) {
            WaitFlag<HardEvent::MTE1_MTE2>(slot);
            WaitFlag<HardEvent::M_MTE1>(slot);
        }
        WaitFlag<HardEvent::FIX_M>(EVENT_ID0);
    }

    /// Tile of `m` rows of `a` and of kTileN rows of B, given as two halves of `n0` and `n1` rows (at most
    /// kHalfN each; the rest of a half gives zeros). Written as fp32 or int32 [m, kTileN] to `out`.
    __aicore__ inline void multiply(const GlobalTensor<Acc>& out, const Matrix<In>& a, uint32_t m,
                                    const Matrix<In>& b0, uint32_t n0, const Matrix<In>& b1, uint32_t n1,
                                    uint32_t k) {
        const uint32_t m16 = round_up(m, kFractal);
        WaitFlag<HardEvent::FIX_M>(EVENT_ID0);
        for (uint32_t begin = 0; begin < k; begin += kStepL1) {
            const uint32_t step = least(kStepL1, k - begin);
            const LocalTensor<In> left = l1_a_.Get<In>()[l1_ * kTileM * kStepL1];
            const LocalTensor<In> right = l1_b_.Get<In>()[l1_ * kTileN * kStepL1];
            WaitFlag<HardEvent::MTE1_MTE2>(l1_);
            load_matrix(left, a.data[begin], m, m16, step, a.stride, m16);
            load_matrix(right, b0.data[begin], n0, kHalfN, step, b0.stride, kTileN);
            load_matrix(right[kHalfN * kK0], b1.data[begin], n1, kHalfN, step, b1.stride, kTileN);
            SetFlag<HardEvent::MTE2_MTE1>(l1_);
            WaitFlag<HardEvent::MTE2_MTE1>(l1_);
            for (uint32_t at = 0; at < step; at += kStepL0)
                part(left[at * m16], right[at * kTileN], m16, least(kStepL0, step - at), begin + at == 0);
            SetFlag<HardEvent::MTE1_MTE2>(l1_);
            l1_ ^= 1;
        }
        SetFlag<HardEvent::M_FIX>(EVENT_ID0);
        WaitFlag<HardEvent::M_FIX>(EVENT_ID0);
        store_tile(out, l0_c_.Get<Acc>(), m, m16, kTileN, kTileN);
        SetFlag<HardEvent::FIX_M>(EVENT_ID0);
    }

  private:
    __aicore__ inline void part(const LocalTensor<In>& left, const LocalTensor<In>& right, uint32_t m16,
                                uint32_t k, bool first) {
        const LocalTensor<In> a = l0_a_.Get<In>()[l0_ * kTileM * kStepL0];
        const LocalTensor<In> b = l0_b_.Get<In>()[l0_ * kTileN * kStepL0];
        WaitFlag<HardEvent::M_MTE1>(l0_);
        load_left(a, left, m16, k);
        load_right(b, right, 0, kTileN, kTileN, k);
        SetFlag<HardEvent::MTE1_M>(l0_);
        WaitFlag<HardEvent::MTE1_M>(l0_);
        mmx::ascend::multiply(l0_c_.Get<Acc>(), a, b, m16, kTileN, round_up(k, kK0), first);
        SetFlag<HardEvent::M_MTE1>(l0_);
        l0_ ^= 1;
    }

    TBuf<TPosition::A1> l1_a_;
    TBuf<TPosition::B1> l1_b_;
    TBuf<TPosition::A2> l0_a_;
    TBuf<TPosition::B2> l0_b_;
    TBuf<TPosition::CO1> l0_c_;
    int32_t l1_ = 0, l0_ = 0;
};

/// Bytes of the ring through which a core's cube hands tiles to its two vector cores: two slots.
constexpr int64_t kTileBytes = int64_t{kTileM} * kTileN * 4, kRingBytes = 2 * kTileBytes;
constexpr uint16_t kFlagReady = 0, kFlagFree = 1;

/// The vector side of the ring: walks a tile's rows of this AIV in slices that fit UB.
constexpr uint32_t kSliceRows = 32, kSliceElements = kSliceRows * kHalfN;

/// Rows [begin, end) of a tile of `m` rows that fall to this vector core.
__aicore__ inline Share tile_rows(uint32_t m) {
    const int64_t half = div_up(m, 2);
    return GetSubBlockIdx() == 0 ? Share{0, half} : Share{half, m};
}

/// Half a tile's columns of `rows` rows to UB, dense.
template <class Acc>
__aicore__ inline void load_half(const LocalTensor<Acc>& dst, const GlobalTensor<Acc>& tile, int64_t row,
                                 uint32_t rows, uint32_t half) {
    constexpr uint16_t blocks = kHalfN * sizeof(Acc) / kBlock;
    const DataCopyParams copy{static_cast<uint16_t>(rows), blocks, blocks, 0};
    DataCopy(dst, tile[row * kTileN + half * kHalfN], copy);
}

}  // namespace mmx::ascend
