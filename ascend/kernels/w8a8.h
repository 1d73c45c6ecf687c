#pragma once

#include "ascend/common/gemm.h"
#include "ascend/common/rows.h"
#include "ascend/common/tiling.h"
#include "cpp/core/params/w8a8.h"

/// w8a8_linear: int8 x int8 on the cube, exact in int32; scales and rounding on the vector cores, tile by
/// tile.
namespace mmx::ascend {

struct W8A8Tiling {
    W8A8LinearParams p;
    int64_t row_tiles, column_tiles;
    int num_blocks;
};

inline W8A8Tiling w8a8_linear_tiling(const W8A8LinearParams& p, const Cores& cores) {
    require_bf16("w8a8_linear", "out", p.dtype);
    MMX_CHECK(p.k <= 65535, "w8a8_linear: on Ascend k must be at most 65535, got ", p.k);
    W8A8Tiling t{};
    t.p = p;
    t.row_tiles = ceil_div(p.m, kTileM);
    t.column_tiles = ceil_div(p.n, kTileN);
    t.num_blocks = cube_blocks(t.row_tiles * t.column_tiles, cores);
    return t;
}
inline int64_t w8a8_linear_workspace_bytes(const W8A8LinearParams&, const Cores& cores) {
    return cores.aic * kRingBytes;
}

/// Calls f(row, rows, column, columns, number) for the tiles of a core, all rows of a column strip in turn.
template <class F>
__aicore__ inline void each_w8a8_tile(const W8A8Tiling& t, int64_t core, F&& f) {
    int64_t number = 0;
    for (int64_t tile = core; tile < t.row_tiles * t.column_tiles; tile += t.num_blocks) {
        const int64_t row = tile % t.row_tiles * kTileM, column = tile / t.row_tiles * kTileN;
        f(row, static_cast<uint32_t>(least<int64_t>(kTileM, t.p.m - row)), column,
          static_cast<uint32_t>(least<int64_t>(kTileN, t.p.n - column)), number++);
    }
}

__aicore__ inline GlobalTensor<int32_t> w8a8_slot(const W8A8Tiling& t, int64_t core, int64_t number) {
    return global<int32_t>(t.p.workspace)[(core * kRingBytes + number % 2 * kTileBytes) / sizeof(int32_t)];
}

__aicore__ inline void w8a8_cube(const W8A8Tiling& t) {
    TPipe pipe;
    CubeTile<int8_t, int32_t> cube(pipe);
    cube.open();
    const int64_t core = GetBlockIdx(), k = t.p.k;
    const GlobalTensor<int8_t> x = global<int8_t>(t.p.x), weight = global<int8_t>(t.p.weight);
    each_w8a8_tile(
        t, core,
        [&](int64_t row, uint32_t rows, int64_t column, uint32_t columns, int64_t number) MMX_DEVICE_LAMBDA {
            const uint32_t n0 = least(columns, kHalfN), n1 = columns - n0;
            CrossCoreWaitFlag(kFlagFree);
            cube.multiply(w8a8_slot(t, core, number), {x[row * k], k}, rows, {weight[column * k], k}, n0,
                          {weight[(column + (n1 > 0 ? kHalfN : 0)) * k], k}, n1, static_cast<uint32_t>(k));
            CrossCoreSetFlag<2, PIPE_FIX>(kFlagReady);
        });
    cube.close();
    CrossCoreWaitFlag(kFlagFree);
    CrossCoreWaitFlag(kFlagFree);
}

class W8A8Finish {
  public:
    __aicore__ inline W8A8Finish(TPipe& pipe, const W8A8Tiling& t) : t_(t) {
        pipe.InitBuffer(in_, 2 * kSliceElements * sizeof(int32_t));
        pipe.InitBuffer(values_, kSliceElements * sizeof(float));
        pipe.InitBuffer(out_, 2 * kSliceElements * sizeof(bfloat16_t));
        pipe.InitBuffer(column_scales_, 2 * kHalfN * sizeof(float));
        pipe.InitBuffer(row_scales_, 2 * kSliceRows * sizeof(float));
        pipe.InitBuffer(factors_, kSliceRows * kBlock);
    }

    __aicore__ inline void process() {
        // Lanes behind the last row and column are defined from here on.
        Duplicate(column_scales_.Get<float>(), 0.0f, static_cast<int32_t>(2 * kHalfN));
        Duplicate(row_scales_.Get<float>(), 0.0f, static_cast<int32_t>(2 * kSliceRows));
        for (int32_t id = 0; id < 2; ++id) {
            SetFlag<HardEvent::V_MTE2>(id);
            SetFlag<HardEvent::MTE3_V>(id);
        }
        CrossCoreSetFlag<2, PIPE_MTE2>(kFlagFree);
        CrossCoreSetFlag<2, PIPE_MTE2>(kFlagFree);
        const int64_t core = GetBlockIdx() / 2;
        each_w8a8_tile(t_, core,
                       [&](int64_t row, uint32_t rows, int64_t column, uint32_t columns, int64_t number)
                           MMX_DEVICE_LAMBDA {
                               CrossCoreWaitFlag(kFlagReady);
                               const Share mine = tile_rows(rows);
                               for (int64_t at = mine.begin; at < mine.end; at += kSliceRows)
                                   for (uint32_t half = 0; half * kHalfN < columns; ++half)
                                       slice(w8a8_slot(t_, core, number), row, at,
                                             static_cast<uint32_t>(least<int64_t>(kSliceRows, mine.end - at)),
                                             column + half * kHalfN, least(kHalfN, columns - half * kHalfN),
                                             half);
                               CrossCoreSetFlag<2, PIPE_MTE2>(kFlagFree);
                           });
        for (int32_t id = 0; id < 2; ++id) {
            WaitFlag<HardEvent::V_MTE2>(id);
            WaitFlag<HardEvent::MTE3_V>(id);
        }
    }

  private:
    __aicore__ inline void slice(const GlobalTensor<int32_t>& tile, int64_t tile_row, int64_t at,
                                 uint32_t rows, int64_t column, uint32_t columns, uint32_t half) {
        const LocalTensor<int32_t> in = in_.Get<int32_t>()[slot_ * kSliceElements];
        const LocalTensor<float> values = values_.Get<float>(), factors = factors_.Get<float>();
        const LocalTensor<float> column_scales = column_scales_.Get<float>()[slot_ * kHalfN];
        const LocalTensor<float> row_scales = row_scales_.Get<float>()[slot_ * kSliceRows];
        const LocalTensor<bfloat16_t> out = out_.Get<bfloat16_t>()[slot_ * kSliceElements];
        const uint32_t count = rows * kHalfN;
        WaitFlag<HardEvent::V_MTE2>(slot_);
        load_half(in, tile, at, rows, half);
        load_rows(column_scales, global<float>(t_.p.weight_scale)[column], 1, columns, columns,
                  round_up(columns, 8));
        load_rows(row_scales, global<float>(t_.p.x_scale)[tile_row + at], 1, rows, rows, round_up(rows, 8));
        SetFlag<HardEvent::MTE2_V>(slot_);
        WaitFlag<HardEvent::MTE2_V>(slot_);
        Cast(values, in, RoundMode::CAST_NONE, count);
        Brcb(factors, row_scales, static_cast<uint8_t>(div_up(rows, 8)), {1, 8});
        PipeBarrier<PIPE_V>();
        scale_columns(values, column_scales, rows, kHalfN);
        PipeBarrier<PIPE_V>();
        SetFlag<HardEvent::V_MTE2>(slot_);
        apply_per_row<ByMul>(values, factors, rows, kHalfN, kHalfN);
        PipeBarrier<PIPE_V>();
        WaitFlag<HardEvent::MTE3_V>(slot_);
        Cast(out, values, RoundMode::CAST_RINT, count);
        SetFlag<HardEvent::V_MTE3>(slot_);
        WaitFlag<HardEvent::V_MTE3>(slot_);
        store_rows(global<bfloat16_t>(t_.p.out)[(tile_row + at) * t_.p.out_stride + column], out, rows,
                   columns, t_.p.out_stride, kHalfN);
        SetFlag<HardEvent::MTE3_V>(slot_);
        slot_ ^= 1;
    }

    const W8A8Tiling& t_;
    TBuf<TPosition::VECCALC> in_, values_, out_, column_scales_, row_scales_, factors_;
    int32_t slot_ = 0;
};

__aicore__ inline void w8a8_linear_kernel(const W8A8Tiling& t) {
    if ASCEND_IS_AIC {
        w8a8_cube(t);
    } else {
        TPipe pipe;
        W8A8Finish(pipe, t).process();
    }
}

}  // namespace mmx::ascend
