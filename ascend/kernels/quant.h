#pragma once

#include "ascend/common/rows.h"
#include "ascend/common/tiling.h"
#include "cpp/core/params/quant.h"
#include "cpp/core/params/w8a8.h"

/// fp8_block_dequant and dynamic_quant, on the vector cores.
namespace mmx::ascend {

struct DequantTiling {
    Fp8BlockDequantParams p;
    int64_t row_tiles, column_tiles;
    int num_blocks;
};

/// A tile holds 16 rows of four scale blocks: bursts of 512 bytes, 8192 elements of 12 bytes in UB.
constexpr uint32_t kCodeRows = 16, kCodeColumns = 512, kCodes = kCodeRows * kCodeColumns, kScaleBlock = 128;

inline DequantTiling fp8_block_dequant_tiling(const Fp8BlockDequantParams& p, const Cores& cores) {
    require_bf16("fp8_block_dequant", "out", p.dtype);
    DequantTiling t{};
    t.p = p;
    t.row_tiles = ceil_div(p.rows, kCodeRows);
    t.column_tiles = ceil_div(p.cols, kCodeColumns);
    t.num_blocks = vector_blocks(t.row_tiles * t.column_tiles, cores);
    return t;
}

/// e4m3 without a type for it: the code's sign, exponent and mantissa are moved to where fp16 has them, which
/// gives the value times 2^-8, subnormals included. The two NaN codes come out as +-480.
class Fp8BlockDequant {
  public:
    __aicore__ inline Fp8BlockDequant(TPipe& pipe, const DequantTiling& t) : t_(t) {
        pipe.InitBuffer(codes_, 2 * kCodes);
        pipe.InitBuffer(bits_, kCodes * sizeof(half));
        pipe.InitBuffer(values_, kCodes * sizeof(float));
        pipe.InitBuffer(out_, 2 * kCodes * sizeof(bfloat16_t));
        pipe.InitBuffer(keep_, 128 * sizeof(uint16_t));
    }

    __aicore__ inline void process() {
        // Bits of a half that stay; and lanes behind the last column are defined from here on.
        Duplicate(keep_.Get<uint16_t>(), static_cast<uint16_t>(0xBFFF), 128);
        Duplicate(codes_.Get<uint16_t>(), static_cast<uint16_t>(0), static_cast<int32_t>(kCodes));
        for (int32_t id = 0; id < 2; ++id) {
            SetFlag<HardEvent::V_MTE2>(id);
            SetFlag<HardEvent::MTE3_V>(id);
        }
        int32_t slot = 0;
        for (int64_t tile = GetBlockIdx(); tile < t_.row_tiles * t_.column_tiles;
             tile += GetBlockNum(), slot ^= 1)
            expand(tile / t_.column_tiles * kCodeRows, tile % t_.column_tiles * kCodeColumns, slot);
        for (int32_t id = 0; id < 2; ++id) {
            WaitFlag<HardEvent::V_MTE2>(id);
            WaitFlag<HardEvent::MTE3_V>(id);
        }
    }

  private:
    __aicore__ inline void expand(int64_t row, int64_t column, int32_t slot) {
        const uint32_t rows = static_cast<uint32_t>(least<int64_t>(kCodeRows, t_.p.rows - row));
        const uint32_t columns = static_cast<uint32_t>(least<int64_t>(kCodeColumns, t_.p.cols - column));
        const LocalTensor<uint8_t> codes = codes_.Get<uint8_t>()[slot * kCodes];
        const LocalTensor<bfloat16_t> out = out_.Get<bfloat16_t>()[slot * kCodes];
        const LocalTensor<float> values = values_.Get<float>();
        WaitFlag<HardEvent::V_MTE2>(slot);
        load_rows(codes, global<uint8_t>(t_.p.x)[row * t_.p.x_stride + column], rows, columns, t_.p.x_stride,
                  kCodeColumns);
        SetFlag<HardEvent::MTE2_V>(slot);
        WaitFlag<HardEvent::MTE2_V>(slot);
        decode(values, codes, rows * kCodeColumns);
        SetFlag<HardEvent::V_MTE2>(slot);
        const GlobalTensor<float> scales =
            global<float>(t_.p.scale)[row / kScaleBlock * t_.p.scale_stride + column / kScaleBlock];
        for (uint32_t block = 0; block * kScaleBlock < columns; ++block) {
            const float scale = scales.GetValue(block) * 256.0f;
            for (uint32_t lanes = 0; lanes < kScaleBlock; lanes += kLanes) {
                const LocalTensor<float> part = values[block * kScaleBlock + lanes];
                Muls(part, part, scale, static_cast<uint64_t>(kLanes), static_cast<uint8_t>(rows),
                     UnaryRepeatParams{1, 1, kCodeColumns / 8, kCodeColumns / 8});
            }
        }
        PipeBarrier<PIPE_V>();
        WaitFlag<HardEvent::MTE3_V>(slot);
        Cast(out, values, RoundMode::CAST_RINT, rows * kCodeColumns);
        SetFlag<HardEvent::V_MTE3>(slot);
        WaitFlag<HardEvent::V_MTE3>(slot);
        store_rows(global<bfloat16_t>(t_.p.out)[row * t_.p.out_stride + column], out, rows, columns,
                   t_.p.out_stride, kCodeColumns);
        SetFlag<HardEvent::MTE3_V>(slot);
    }

    __aicore__ inline void decode(const LocalTensor<float>& values, const LocalTensor<uint8_t>& codes,
                                  uint32_t count) {
        const LocalTensor<half> number = bits_.Get<half>();
        const LocalTensor<uint16_t> bits = bits_.Get<uint16_t>();
        const LocalTensor<int16_t> word = bits_.Get<int16_t>();
        const int32_t n = static_cast<int32_t>(count);
        Cast(number, codes, RoundMode::CAST_NONE, count);
        PipeBarrier<PIPE_V>();
        Adds(number, number, half(1024.0f), n);  // 0x6400 + code
        PipeBarrier<PIPE_V>();
        ShiftLeft(bits, bits, static_cast<uint16_t>(8), n);  // the code in the high byte
        PipeBarrier<PIPE_V>();
        ShiftRight(word, word, static_cast<int16_t>(1), n);  // the sign in bits 15 and 14
        PipeBarrier<PIPE_V>();
        And(bits, bits, keep_.Get<uint16_t>(), 128, static_cast<uint8_t>(count / 128),
            BinaryRepeatParams{1, 1, 1, 8, 8, 0});
        PipeBarrier<PIPE_V>();
        Cast(values, number, RoundMode::CAST_NONE, count);
        PipeBarrier<PIPE_V>();
    }

    const DequantTiling& t_;
    TBuf<TPosition::VECCALC> codes_, bits_, values_, out_, keep_;
};

__aicore__ inline void fp8_block_dequant_kernel(const DequantTiling& t) {
    TPipe pipe;
    Fp8BlockDequant(pipe, t).process();
}

struct DynamicQuantTiling {
    DynamicQuantParams p;
    uint32_t width, rows_per_tile;  // width: cols rounded up to 64 lanes
    int num_blocks;
};

constexpr int64_t kQuantMaxCols = 12288;

inline DynamicQuantTiling dynamic_quant_tiling(const DynamicQuantParams& p, const Cores& cores) {
    require_bf16("dynamic_quant", "x", p.dtype);
    MMX_CHECK(p.cols <= kQuantMaxCols, "dynamic_quant: on Ascend cols must be at most ", kQuantMaxCols,
              ", got ", p.cols);
    DynamicQuantTiling t{};
    t.p = p;
    t.width = static_cast<uint32_t>(align_up(p.cols, 64));
    t.rows_per_tile = std::clamp<uint32_t>((kUbBytes - 4096) / (14 * t.width + 64), 1, 64);
    t.num_blocks = vector_blocks(p.rows, cores);
    return t;
}

/// Rows to int8, each by its own largest magnitude.
class DynamicQuant {
  public:
    __aicore__ inline DynamicQuant(TPipe& pipe, const DynamicQuantTiling& t) : t_(t) {
        const uint32_t tile = t.rows_per_tile * t.width;
        pipe.InitBuffer(in_, 2 * tile * sizeof(bfloat16_t));
        pipe.InitBuffer(values_, tile * sizeof(float));
        pipe.InitBuffer(work_, tile * sizeof(float));
        pipe.InitBuffer(out_, 2 * tile);
        pipe.InitBuffer(largest_, 64 * sizeof(float));
        pipe.InitBuffer(inverse_, 64 * sizeof(float));
        pipe.InitBuffer(scales_, 2 * 64 * sizeof(float));
        pipe.InitBuffer(factors_, round_up(t.rows_per_tile, 8) * kBlock);
    }

    __aicore__ inline void process() {
        const Share rows = share(t_.p.rows, GetBlockIdx(), GetBlockNum());
        if (rows.begin == rows.end) return;
        if (t_.p.cols != t_.width)
            Duplicate(in_.Get<bfloat16_t>(), bfloat16_t(),
                      static_cast<int32_t>(2 * t_.rows_per_tile * t_.width));
        Duplicate(largest_.Get<float>(), 0.0f, 64);
        for (int32_t id = 0; id < 2; ++id) {
            SetFlag<HardEvent::V_MTE2>(id);
            SetFlag<HardEvent::MTE3_V>(id);
        }
        int32_t slot = 0;
        for (int64_t row = rows.begin; row < rows.end; row += t_.rows_per_tile, slot ^= 1)
            quantise(row, static_cast<uint32_t>(least<int64_t>(t_.rows_per_tile, rows.end - row)), slot);
        for (int32_t id = 0; id < 2; ++id) {
            WaitFlag<HardEvent::V_MTE2>(id);
            WaitFlag<HardEvent::MTE3_V>(id);
        }
    }

  private:
    __aicore__ inline void quantise(int64_t row, uint32_t rows, int32_t slot) {
        const uint32_t tile = t_.rows_per_tile * t_.width, count = rows * t_.width;
        const uint32_t cols = static_cast<uint32_t>(t_.p.cols);
        const int32_t n = static_cast<int32_t>(count);
        const LocalTensor<bfloat16_t> in = in_.Get<bfloat16_t>()[slot * tile];
        const LocalTensor<int8_t> out = out_.Get<int8_t>()[slot * tile];
        const LocalTensor<float> values = values_.Get<float>(), work = work_.Get<float>();
        const LocalTensor<float> largest = largest_.Get<float>(), inverse = inverse_.Get<float>();
        const LocalTensor<float> scales = scales_.Get<float>()[slot * 64], factors = factors_.Get<float>();
        // The int8 chain works where the magnitudes were: int16 first, half behind it.
        const LocalTensor<int16_t> whole = work.ReinterpretCast<int16_t>();
        const LocalTensor<half> narrow = work.ReinterpretCast<half>()[tile];
        WaitFlag<HardEvent::V_MTE2>(slot);
        load_rows(in, global<bfloat16_t>(t_.p.x)[row * t_.p.x_stride], rows, cols, t_.p.x_stride, t_.width);
        SetFlag<HardEvent::MTE2_V>(slot);
        WaitFlag<HardEvent::MTE2_V>(slot);
        Cast(values, in, RoundMode::CAST_NONE, count);
        SetFlag<HardEvent::V_MTE2>(slot);
        PipeBarrier<PIPE_V>();
        Abs(work, values, n);
        PipeBarrier<PIPE_V>();
        fold_rows<FoldMax>(work, rows, t_.width, t_.width);
        for (uint32_t r = 0; r < rows; ++r) {
            WholeReduceMax(largest[r], work[r * t_.width], kLanes, 1, 1, 1, 8, ReduceOrder::ORDER_ONLY_VALUE);
            PipeBarrier<PIPE_V>();
        }
        WaitFlag<HardEvent::MTE3_V>(slot);
        Muls(scales, largest, 1.0f / 127.0f, static_cast<int32_t>(rows));
        // Why the floor: 0 / 0 of a row of zeros.
        Maxs(largest, largest, 1e-30f, 64);
        Duplicate(inverse, 127.0f, 64);
        PipeBarrier<PIPE_V>();
        Div(inverse, inverse, largest, 64);
        PipeBarrier<PIPE_V>();
        Brcb(factors, inverse, static_cast<uint8_t>(div_up(rows, 8)), {1, 8});
        PipeBarrier<PIPE_V>();
        apply_per_row<ByMul>(values, factors, rows, t_.width, t_.width);
        PipeBarrier<PIPE_V>();
        Cast(whole, values, RoundMode::CAST_RINT, count);
        PipeBarrier<PIPE_V>();
        Cast(narrow, whole, RoundMode::CAST_NONE, count);
        PipeBarrier<PIPE_V>();
        Cast(out, narrow, RoundMode::CAST_NONE, count);
        SetFlag<HardEvent::V_MTE3>(slot);
        WaitFlag<HardEvent::V_MTE3>(slot);
        store_rows(global<int8_t>(t_.p.out)[row * t_.p.cols], out, rows, cols, cols, t_.width);
        store_rows(global<float>(t_.p.scale)[row], scales, 1, rows, rows, round_up(rows, 8));
        SetFlag<HardEvent::MTE3_V>(slot);
    }

    const DynamicQuantTiling& t_;
    TBuf<TPosition::VECCALC> in_, values_, work_, out_, largest_, inverse_, scales_, factors_;
};

__aicore__ inline void dynamic_quant_kernel(const DynamicQuantTiling& t) {
    TPipe pipe;
    DynamicQuant(pipe, t).process();
}

}  // namespace mmx::ascend
