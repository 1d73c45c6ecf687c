#pragma once

#include "ascend/common/rows.h"
#include "ascend/common/tiling.h"
#include "cpp/core/params/norm.h"

/// rms_norm and add_rms_norm. Each vector core takes a contiguous part of the rows and walks it in tiles of
/// as many rows as fit UB, two tiles in flight.
namespace mmx::ascend {

/// Rows of both ops as one list: row r lies at (r / inner) * outer_stride + (r % inner) * inner_stride.
struct RowList {
    int64_t inner, outer_stride, inner_stride;
};

struct NormTiling {
    const void *out, *x, *residual;  // [num_rows, hidden], rows as listed below; residual null for rms_norm
    const void* weight;              // [hidden]
    RowList out_rows, x_rows, residual_rows;
    int64_t num_rows;
    uint32_t hidden, width, rows_per_tile;  // width: hidden rounded up to 64 lanes
    float eps;
    bool gemma, f32_weight;
    int num_blocks;
};

/// A tile of one row must fit: six bytes of copies twice, eight of work, four of weights per element.
constexpr int64_t kNormMaxHidden = 7680;

inline RowList row_list(int64_t num_tokens, int64_t num_heads, int64_t token_stride, int64_t head_stride) {
    if (num_heads == 1) return {num_tokens, 0, token_stride};
    if (token_stride == num_heads * head_stride) return {num_tokens * num_heads, 0, head_stride};
    return {num_heads, token_stride, head_stride};
}

inline NormTiling norm_tiling(const char* op, DType dtype, DType weight_dtype, int64_t num_rows,
                              int64_t hidden, bool with_residual, const Cores& cores) {
    require_bf16(op, "x", dtype);
    MMX_CHECK(weight_dtype == DType::kBF16 || weight_dtype == DType::kF32, op,
              ": on Ascend weight must be bfloat16 or float32, got ", dtype_name(weight_dtype));
    MMX_CHECK(hidden <= kNormMaxHidden, op, ": on Ascend hidden must be at most ", kNormMaxHidden, ", got ",
              hidden);
    NormTiling t{};
    t.num_rows = num_rows;
    t.hidden = static_cast<uint32_t>(hidden);
    t.width = static_cast<uint32_t>(align_up(hidden, 64));
    t.f32_weight = weight_dtype == DType::kF32;
    // Per element: inputs and outputs twice in bf16, two fp32 work tiles; per row a sum and its broadcast.
    const uint32_t copies = with_residual ? 16 : 8;
    const uint32_t row_bytes = t.width * (copies + 8) + 64;
    t.rows_per_tile = std::clamp<uint32_t>((kUbBytes - t.width * 8 - 512) / row_bytes, 1, 128);
    t.num_blocks = vector_blocks(num_rows, cores);
    return t;
}

inline NormTiling rms_norm_tiling(const RmsNormParams& p, const Cores& cores) {
    NormTiling t =
        norm_tiling("rms_norm", p.dtype, p.weight_dtype, p.num_tokens * p.num_heads, p.hidden, false, cores);
    t.out = p.out, t.x = p.x, t.weight = p.weight;
    t.out_rows = row_list(p.num_tokens, p.num_heads, p.out_token_stride, p.out_head_stride);
    t.x_rows = row_list(p.num_tokens, p.num_heads, p.x_token_stride, p.x_head_stride);
    t.eps = p.eps, t.gemma = p.gemma;
    return t;
}

inline NormTiling add_rms_norm_tiling(const AddRmsNormParams& p, const Cores& cores) {
    NormTiling t = norm_tiling("add_rms_norm", p.dtype, p.weight_dtype, p.num_tokens, p.hidden, true, cores);
    t.out = p.out, t.x = p.x, t.weight = p.weight, t.residual = p.residual;
    t.out_rows = row_list(p.num_tokens, 1, p.out_stride, 0);
    t.x_rows = row_list(p.num_tokens, 1, p.x_stride, 0);
    t.residual_rows = row_list(p.num_tokens, 1, p.residual_stride, 0);
    t.eps = p.eps, t.gemma = p.gemma;
    return t;
}

template <bool kAdd>
class Norm {
  public:
    __aicore__ inline Norm(TPipe& pipe, const NormTiling& t) : t_(t) {
        const uint32_t tile = t.rows_per_tile * t.width;
        pipe.InitBuffer(x_in_, 2 * tile * sizeof(bfloat16_t));
        pipe.InitBuffer(out_, 2 * tile * sizeof(bfloat16_t));
        if constexpr (kAdd) {
            pipe.InitBuffer(residual_in_, 2 * tile * sizeof(bfloat16_t));
            pipe.InitBuffer(residual_out_, 2 * tile * sizeof(bfloat16_t));
        }
        pipe.InitBuffer(values_, tile * sizeof(float));
        pipe.InitBuffer(squares_, tile * sizeof(float));
        pipe.InitBuffer(gain_, t.width * sizeof(float));
        pipe.InitBuffer(sums_, round_up(t.rows_per_tile, 64) * sizeof(float));
        pipe.InitBuffer(factors_, round_up(t.rows_per_tile, 8) * kBlock);
    }

    __aicore__ inline void process() {
        const Share rows = share(t_.num_rows, GetBlockIdx(), GetBlockNum());
        if (rows.begin == rows.end) return;
        clear_padding();
        load_gain();
        SetFlag<HardEvent::V_MTE2>(EVENT_ID0);
        SetFlag<HardEvent::V_MTE2>(EVENT_ID1);
        SetFlag<HardEvent::MTE3_V>(EVENT_ID0);
        SetFlag<HardEvent::MTE3_V>(EVENT_ID1);
        int32_t slot = 0;
        for (int64_t row = rows.begin; row < rows.end; row += t_.rows_per_tile, slot ^= 1) {
            const uint32_t count = static_cast<uint32_t>(least<int64_t>(t_.rows_per_tile, rows.end - row));
            copy_in(row, count, slot);
            compute(count, slot);
            copy_out(row, count, slot);
        }
        WaitFlag<HardEvent::V_MTE2>(EVENT_ID0);
        WaitFlag<HardEvent::V_MTE2>(EVENT_ID1);
        WaitFlag<HardEvent::MTE3_V>(EVENT_ID0);
        WaitFlag<HardEvent::MTE3_V>(EVENT_ID1);
    }

  private:
    __aicore__ inline LocalTensor<bfloat16_t> half_of(TBuf<TPosition::VECCALC>& buffer, int32_t slot) {
        return buffer.Get<bfloat16_t>()[slot * t_.rows_per_tile * t_.width];
    }

    /// Columns between hidden and width stay zero: copies do not touch them, or fill them with zeros.
    __aicore__ inline void clear_padding() {
        if (t_.hidden == t_.width) return;
        const int32_t count = static_cast<int32_t>(2 * t_.rows_per_tile * t_.width);
        Duplicate(x_in_.Get<bfloat16_t>(), bfloat16_t(), count);
        if constexpr (kAdd) Duplicate(residual_in_.Get<bfloat16_t>(), bfloat16_t(), count);
    }

    __aicore__ inline void load_gain() {
        const LocalTensor<float> gain = gain_.Get<float>();
        if (t_.hidden != t_.width) {
            Duplicate(gain, 0.0f, static_cast<int32_t>(t_.width));
            SetFlag<HardEvent::V_MTE2>(EVENT_ID0);
            WaitFlag<HardEvent::V_MTE2>(EVENT_ID0);
        }
        const LocalTensor<bfloat16_t> narrow = x_in_.Get<bfloat16_t>();
        if (t_.f32_weight)
            load_rows(gain, global<float>(t_.weight), 1, t_.hidden, t_.hidden, round_up(t_.hidden, 8));
        else
            load_rows(narrow, global<bfloat16_t>(t_.weight), 1, t_.hidden, t_.hidden,
                      round_up(t_.hidden, 16));
        SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
        WaitFlag<HardEvent::MTE2_V>(EVENT_ID0);
        if (!t_.f32_weight) Cast(gain, narrow, RoundMode::CAST_NONE, t_.hidden);
        if (t_.gemma) {
            PipeBarrier<PIPE_V>();
            Adds(gain, gain, 1.0f, static_cast<int32_t>(t_.hidden));
        }
    }

    template <class Tensor>
    __aicore__ inline void each_run(const RowList& list, int64_t row, uint32_t count, Tensor&& f) {
        for (uint32_t done = 0; done < count;) {
            const int64_t outer = (row + done) / list.inner, inner = (row + done) % list.inner;
            const uint32_t run = static_cast<uint32_t>(least<int64_t>(count - done, list.inner - inner));
            f(outer * list.outer_stride + inner * list.inner_stride, done * t_.width, run);
            done += run;
        }
    }

    __aicore__ inline void copy_in(int64_t row, uint32_t count, int32_t slot) {
        WaitFlag<HardEvent::V_MTE2>(slot);
        const LocalTensor<bfloat16_t> x = half_of(x_in_, slot);
        each_run(t_.x_rows, row, count, [&](int64_t offset, uint32_t at, uint32_t run) MMX_DEVICE_LAMBDA {
            load_rows(x[at], global<bfloat16_t>(t_.x)[offset], run, t_.hidden, t_.x_rows.inner_stride,
                      t_.width);
        });
        if constexpr (kAdd) {
            const LocalTensor<bfloat16_t> residual = half_of(residual_in_, slot);
            each_run(t_.residual_rows, row, count,
                     [&](int64_t offset, uint32_t at, uint32_t run) MMX_DEVICE_LAMBDA {
                         load_rows(residual[at], global<bfloat16_t>(t_.residual)[offset], run, t_.hidden,
                                   t_.residual_rows.inner_stride, t_.width);
                     });
        }
        SetFlag<HardEvent::MTE2_V>(slot);
    }

    __aicore__ inline void compute(uint32_t rows, int32_t slot) {
        const LocalTensor<float> values = values_.Get<float>(), squares = squares_.Get<float>();
        const LocalTensor<float> sums = sums_.Get<float>(), factors = factors_.Get<float>();
        const int32_t count = static_cast<int32_t>(rows * t_.width);
        WaitFlag<HardEvent::MTE2_V>(slot);
        Cast(values, half_of(x_in_, slot), RoundMode::CAST_NONE, count);
        if constexpr (kAdd) {
            Cast(squares, half_of(residual_in_, slot), RoundMode::CAST_NONE, count);
            SetFlag<HardEvent::V_MTE2>(slot);
            PipeBarrier<PIPE_V>();
            Add(values, values, squares, count);
            PipeBarrier<PIPE_V>();
            WaitFlag<HardEvent::MTE3_V>(slot);
            Cast(half_of(residual_out_, slot), values, RoundMode::CAST_RINT, count);
            PipeBarrier<PIPE_V>();
            // The norm sees the sum as it is stored.
            Cast(values, half_of(residual_out_, slot), RoundMode::CAST_NONE, count);
        } else {
            SetFlag<HardEvent::V_MTE2>(slot);
        }
        PipeBarrier<PIPE_V>();
        Mul(squares, values, values, count);
        PipeBarrier<PIPE_V>();
        fold_rows<FoldAdd>(squares, rows, t_.width, t_.width);
        sum_rows(sums, squares, rows, t_.width);
        PipeBarrier<PIPE_V>();
        // 1 / sqrt(mean + eps). Why not Rsqrt: it is good to 12 bits only.
        const int32_t padded = static_cast<int32_t>(rows);
        Muls(sums, sums, 1.0f / static_cast<float>(t_.hidden), padded);
        PipeBarrier<PIPE_V>();
        Adds(sums, sums, t_.eps, padded);
        PipeBarrier<PIPE_V>();
        Sqrt(sums, sums, padded);
        Duplicate(squares, 1.0f, static_cast<int32_t>(round_up(rows, 8)));
        PipeBarrier<PIPE_V>();
        Div(squares, squares, sums, padded);
        PipeBarrier<PIPE_V>();
        Brcb(factors, squares, static_cast<uint8_t>(div_up(rows, 8)), {1, 8});
        PipeBarrier<PIPE_V>();
        apply_per_row<ByMul>(values, factors, rows, t_.width, t_.width);
        PipeBarrier<PIPE_V>();
        scale_columns(values, gain_.Get<float>(), rows, t_.width);
        PipeBarrier<PIPE_V>();
        if constexpr (!kAdd) WaitFlag<HardEvent::MTE3_V>(slot);
        Cast(half_of(out_, slot), values, RoundMode::CAST_RINT, count);
        SetFlag<HardEvent::V_MTE3>(slot);
    }

    __aicore__ inline void copy_out(int64_t row, uint32_t count, int32_t slot) {
        WaitFlag<HardEvent::V_MTE3>(slot);
        const LocalTensor<bfloat16_t> out = half_of(out_, slot);
        each_run(t_.out_rows, row, count, [&](int64_t offset, uint32_t at, uint32_t run) MMX_DEVICE_LAMBDA {
            store_rows(global<bfloat16_t>(t_.out)[offset], out[at], run, t_.hidden, t_.out_rows.inner_stride,
                       t_.width);
        });
        if constexpr (kAdd) {
            const LocalTensor<bfloat16_t> residual = half_of(residual_out_, slot);
            each_run(t_.residual_rows, row, count,
                     [&](int64_t offset, uint32_t at, uint32_t run) MMX_DEVICE_LAMBDA {
                         store_rows(global<bfloat16_t>(t_.residual)[offset], residual[at], run, t_.hidden,
                                    t_.residual_rows.inner_stride, t_.width);
                     });
        }
        SetFlag<HardEvent::MTE3_V>(slot);
    }

    const NormTiling& t_;
    TBuf<TPosition::VECCALC> x_in_, out_, residual_in_, residual_out_, values_, squares_, gain_, sums_,
        factors_;
};

__aicore__ inline void rms_norm_kernel(const NormTiling& t) {
    TPipe pipe;
    Norm<false>(pipe, t).process();
}

__aicore__ inline void add_rms_norm_kernel(const NormTiling& t) {
    TPipe pipe;
    Norm<true>(pipe, t).process();
}

}  // namespace mmx::ascend
