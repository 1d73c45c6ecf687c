#pragma once

#include "ascend/common/kernel.h"
#include "ascend/common/tiling.h"
#include "cpp/core/params/moe.h"

/// moe_combine: each vector core gathers the expert rows of its tokens, weighs them in ascending k and adds
/// the shared expert, a strip of columns at a time, two rows in flight.
namespace mmx::ascend {

struct CombineTiling {
    MoeCombineParams p;
    int num_blocks;
};

inline CombineTiling moe_combine_tiling(const MoeCombineParams& p, const Cores& cores) {
    require_bf16("moe_combine", "x", p.dtype);
    return {p, vector_blocks(p.num_tokens, cores)};
}

class MoeCombine {
  public:
    __aicore__ inline MoeCombine(TPipe& pipe, const CombineTiling& t) : p_(t.p) {
        pipe.InitBuffer(in_, 2 * kStrip * sizeof(bfloat16_t));
        pipe.InitBuffer(values_, kStrip * sizeof(float));
        pipe.InitBuffer(sum_, kStrip * sizeof(float));
        pipe.InitBuffer(out_, 2 * kStrip * sizeof(bfloat16_t));
    }

    __aicore__ inline void process() {
        for (int32_t id = 0; id < 2; ++id) {
            SetFlag<HardEvent::V_MTE2>(id);
            SetFlag<HardEvent::MTE3_V>(id);
        }
        const Share tokens = share(p_.num_tokens, GetBlockIdx(), GetBlockNum());
        for (int64_t token = tokens.begin; token < tokens.end; ++token)
            for (int64_t column = 0; column < p_.hidden; column += kStrip)
                combine(token, column, static_cast<uint32_t>(least<int64_t>(kStrip, p_.hidden - column)));
        for (int32_t id = 0; id < 2; ++id) {
            WaitFlag<HardEvent::V_MTE2>(id);
            WaitFlag<HardEvent::MTE3_V>(id);
        }
    }

  private:
    static constexpr uint32_t kStrip = 6144;

    __aicore__ inline void combine(int64_t token, int64_t column, uint32_t count) {
        const LocalTensor<float> sum = sum_.Get<float>();
        Duplicate(sum, 0.0f, static_cast<int32_t>(count));
        for (int64_t k = 0; k < p_.topk; ++k) {
            const int64_t row = global<int32_t>(p_.row_positions).GetValue(token * p_.topk + k);
            if (row < 0) continue;
            const float weight = global<float>(p_.topk_weights).GetValue(token * p_.topk + k);
            add(sum, global<bfloat16_t>(p_.x)[row * p_.hidden + column], weight, count);
        }
        if (p_.shared)
            add(sum, global<bfloat16_t>(p_.shared)[token * p_.shared_stride + column], 1.0f, count);
        const LocalTensor<bfloat16_t> out = out_.Get<bfloat16_t>()[out_slot_ * kStrip];
        PipeBarrier<PIPE_V>();
        WaitFlag<HardEvent::MTE3_V>(out_slot_);
        Cast(out, sum, RoundMode::CAST_RINT, count);
        SetFlag<HardEvent::V_MTE3>(out_slot_);
        WaitFlag<HardEvent::V_MTE3>(out_slot_);
        store_rows(global<bfloat16_t>(p_.out)[token * p_.out_stride + column], out, 1, count, count,
                   round_up(count, 16));
        SetFlag<HardEvent::MTE3_V>(out_slot_);
        out_slot_ ^= 1;
    }

    /// sum += weight * row, each product rounded before it is added.
    __aicore__ inline void add(const LocalTensor<float>& sum, const GlobalTensor<bfloat16_t>& row,
                               float weight, uint32_t count) {
        const LocalTensor<bfloat16_t> in = in_.Get<bfloat16_t>()[in_slot_ * kStrip];
        const LocalTensor<float> values = values_.Get<float>();
        const int32_t n = static_cast<int32_t>(count);
        WaitFlag<HardEvent::V_MTE2>(in_slot_);
        load_rows(in, row, 1, count, count, round_up(count, 16));
        SetFlag<HardEvent::MTE2_V>(in_slot_);
        WaitFlag<HardEvent::MTE2_V>(in_slot_);
        Cast(values, in, RoundMode::CAST_NONE, count);
        SetFlag<HardEvent::V_MTE2>(in_slot_);
        PipeBarrier<PIPE_V>();
        Muls(values, values, weight, n);
        PipeBarrier<PIPE_V>();
        Add(sum, sum, values, n);
        in_slot_ ^= 1;
    }

    const MoeCombineParams& p_;
    TBuf<TPosition::VECCALC> in_, values_, sum_, out_;
    int32_t in_slot_ = 0, out_slot_ = 0;
};

__aicore__ inline void moe_combine_kernel(const CombineTiling& t) {
    TPipe pipe;
    MoeCombine(pipe, t).process();
}

}  // namespace mmx::ascend
