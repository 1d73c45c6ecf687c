#pragma once

#include "ascend/common/gemm.h"
#include "ascend/common/rows.h"
#include "ascend/kernels/attention_tasks.h"

/// The vector cores' side of attention: softmax with running maximum and sum, running output, merge of
/// splits.
namespace mmx::ascend {

class AttentionVector {
  public:
    __aicore__ inline AttentionVector(TPipe& pipe, const AttentionTiling& t)
        : t_(t), dim_(static_cast<uint32_t>(t.p.head_dim)), used_(round_up(dim_, kLanes)) {
        pipe.InitBuffer(scores_, 2 * kScoreSlice * sizeof(float));
        pipe.InitBuffer(weights_, 2 * kScoreSlice * sizeof(bfloat16_t));
        pipe.InitBuffer(fold_, kSlice * kLanes * sizeof(float));
        pipe.InitBuffer(products_, 2 * kProductSlice * sizeof(float));
        pipe.InitBuffer(sum_, kMine * kMaxHeadDim * sizeof(float));
        pipe.InitBuffer(out_, 2 * kProductSlice * sizeof(bfloat16_t));
        pipe.InitBuffer(maxima_, 2 * kMine * sizeof(float));
        pipe.InitBuffer(totals_, 2 * kMine * sizeof(float));
        pipe.InitBuffer(decay_, 2 * kMine * sizeof(float));
        pipe.InitBuffer(per_row_, kMine * sizeof(float));
        pipe.InitBuffer(factors_, 2 * kMine * kBlock);
    }

    __aicore__ inline void process() {
        for (int32_t id = 0; id < 4; ++id) {
            SetFlag<HardEvent::V_MTE2>(id);
            SetFlag<HardEvent::MTE3_V>(id);
        }
        Duplicate(decay_.Get<float>(), 0.0f, static_cast<int32_t>(2 * kMine));
        // Lanes behind head_dim stay zero.
        if (dim_ < kMaxHeadDim)
            Duplicate(products_.Get<float>(), 0.0f, static_cast<int32_t>(2 * kProductSlice));
        SetFlag<HardEvent::V_MTE2>(EVENT_ID4);
        WaitFlag<HardEvent::V_MTE2>(EVENT_ID4);
        const int64_t core = GetBlockIdx() / 2;
        AttentionChunk before{};
        before.number = -1;
        each_chunk(t_, core, [&](const AttentionChunk& chunk) MMX_DEVICE_LAMBDA {
            weigh(chunk, core);
            if (before.number >= 0) accumulate(before, core);
            before = chunk;
        });
        if (before.number >= 0) accumulate(before, core);
        for (int32_t id = 0; id < 4; ++id) {
            WaitFlag<HardEvent::V_MTE2>(id);
            WaitFlag<HardEvent::MTE3_V>(id);
        }
    }

    /// After all cores are done: each task's splits into its output.
    __aicore__ inline void merge() {
        each_task(t_, GetBlockIdx(), GetBlockNum() * GetTaskRation(), 1,
                  [&](const AttentionTask& task) MMX_DEVICE_LAMBDA {
                      const uint32_t rows = task.tokens * t_.group;
                      for (uint32_t row = 0; row < rows; row += kSlice)
                          merge_slice(task, row, least(kSlice, rows - row));
                  });
    }

  private:
    static constexpr uint32_t kSlice = 16, kMine = kRows / 2;
    static constexpr uint32_t kScoreSlice = kSlice * kChunk, kProductSlice = kSlice * kMaxHeadDim;
    static constexpr float kLowest = -3.402823466e38f;

    __aicore__ inline static float minus_infinity() { return -1.0f / 0.0f; }

    __aicore__ inline void weigh(const AttentionChunk& chunk, int64_t core) {
        CrossCoreWaitFlag(kScoresReady);
        const AttentionTask& task = chunk.task;
        const Share rows = tile_rows(task.tokens * t_.group);
        if (chunk.first) {
            const int32_t base = static_cast<int32_t>(chunk.task_number % 2 * kMine);
            Duplicate(maxima_.Get<float>()[base], kLowest, static_cast<int32_t>(kMine));
            Duplicate(totals_.Get<float>()[base], 0.0f, static_cast<int32_t>(kMine));
        }
        for (int64_t row = rows.begin; row < rows.end; row += kSlice)
            weigh_slice(chunk, core, row, static_cast<uint32_t>(row - rows.begin),
                        static_cast<uint32_t>(least<int64_t>(kSlice, rows.end - row)));
        CrossCoreSetFlag<2, PIPE_MTE3>(kWeightsReady);
    }

    /// Rows [row, row + count) of the chunk; `mine` is the first one's place among this core's rows.
    __aicore__ inline void weigh_slice(const AttentionChunk& chunk, int64_t core, int64_t row, uint32_t mine,
                                       uint32_t count) {
        const uint32_t width = (chunk.end - chunk.begin) * static_cast<uint32_t>(t_.p.block_size);
        const uint32_t pitch = round_up(width, kLanes);
        const int32_t elements = static_cast<int32_t>(count * pitch), rows = static_cast<int32_t>(count);
        const LocalTensor<float> scores = scores_.Get<float>()[score_slot_ * kScoreSlice];
        const LocalTensor<bfloat16_t> weights = weights_.Get<bfloat16_t>()[score_slot_ * kScoreSlice];
        const LocalTensor<float> fold = fold_.Get<float>(), per_row = per_row_.Get<float>();
        const LocalTensor<float> factors = factors_.Get<float>();
        const uint32_t state = static_cast<uint32_t>(chunk.task_number % 2) * kMine + mine;
        const LocalTensor<float> maxima = maxima_.Get<float>()[state], totals = totals_.Get<float>()[state];
        const LocalTensor<float> decay =
            decay_.Get<float>()[static_cast<uint32_t>(chunk.number % 2) * kMine + mine];

        WaitFlag<HardEvent::V_MTE2>(score_slot_);
        const DataCopyParams in{static_cast<uint16_t>(count),
                                static_cast<uint16_t>(width * sizeof(float) / kBlock),
                                static_cast<uint16_t>((kChunk - width) * sizeof(float) / kBlock),
                                static_cast<uint16_t>((pitch - width) * sizeof(float) / kBlock)};
        DataCopy(scores, exchange<float>(t_, t_.score_offset, kScoreBytes, core, chunk.number)[row * kChunk],
                 in);
        SetFlag<HardEvent::MTE2_V>(score_slot_);
        WaitFlag<HardEvent::MTE2_V>(score_slot_);
        mask(chunk, scores, static_cast<uint32_t>(row), count, pitch);
        PipeBarrier<PIPE_V>();
        Muls(scores, scores, t_.p.scale, elements);
        PipeBarrier<PIPE_V>();
        max_rows(per_row, fold_into<FoldMax>(fold, scores, count, pitch), count,
                 pitch == kLanes ? pitch : kLanes);
        PipeBarrier<PIPE_V>();
        Max(per_row, maxima, per_row, rows);
        PipeBarrier<PIPE_V>();
        Sub(decay, maxima, per_row, rows);
        Max(maxima, maxima, per_row, rows);
        PipeBarrier<PIPE_V>();
        Exp(decay, decay, rows);
        Brcb(factors, maxima, static_cast<uint8_t>(div_up(count, 8)), {1, 8});
        PipeBarrier<PIPE_V>();
        apply_per_row<BySub>(scores, factors, count, pitch, pitch);
        PipeBarrier<PIPE_V>();
        Exp(scores, scores, elements);
        Mul(totals, totals, decay, rows);
        PipeBarrier<PIPE_V>();
        sum_rows(per_row, fold_into<FoldAdd>(fold, scores, count, pitch), count,
                 pitch == kLanes ? pitch : kLanes);
        PipeBarrier<PIPE_V>();
        Add(totals, totals, per_row, rows);
        WaitFlag<HardEvent::MTE3_V>(score_slot_);
        Cast(weights, scores, RoundMode::CAST_RINT, elements);
        SetFlag<HardEvent::V_MTE2>(score_slot_);
        SetFlag<HardEvent::V_MTE3>(score_slot_);
        WaitFlag<HardEvent::V_MTE3>(score_slot_);
        const DataCopyParams out{static_cast<uint16_t>(count),
                                 static_cast<uint16_t>(width * sizeof(bfloat16_t) / kBlock),
                                 static_cast<uint16_t>((pitch - width) * sizeof(bfloat16_t) / kBlock),
                                 static_cast<uint16_t>((kChunk - width) * sizeof(bfloat16_t) / kBlock)};
        DataCopy(exchange<bfloat16_t>(t_, t_.weight_offset, kWeightBytes, core, chunk.number)[row * kChunk],
                 weights, out);
        SetFlag<HardEvent::MTE3_V>(score_slot_);
        score_slot_ ^= 1;
    }

    /// [rows, 64] that holds the fold of all column groups of `tile`; `tile` itself when it has one.
    template <class Op>
    __aicore__ inline LocalTensor<float> fold_into(const LocalTensor<float>& fold,
                                                   const LocalTensor<float>& tile, uint32_t rows,
                                                   uint32_t width) {
        if (width == kLanes) return tile;
        const uint8_t pitch = static_cast<uint8_t>(width / 8), repeat = static_cast<uint8_t>(rows);
        Op::apply(fold, tile, tile[kLanes], static_cast<uint64_t>(kLanes), repeat,
                  BinaryRepeatParams{1, 1, 1, 8, pitch, pitch});
        for (uint32_t column = 2 * kLanes; column < width; column += kLanes) {
            PipeBarrier<PIPE_V>();
            Op::apply(fold, fold, tile[column], static_cast<uint64_t>(kLanes), repeat,
                      BinaryRepeatParams{1, 1, 1, 8, 8, pitch});
        }
        PipeBarrier<PIPE_V>();
        return fold;
    }

    /// Columns of the chunk that a token at `position` sees: always the first ones.
    __aicore__ inline uint32_t visible_columns(const AttentionChunk& chunk, int64_t position) {
        uint32_t columns = 0;
        for (uint32_t index = chunk.begin; index < chunk.end; ++index) {
            const int64_t seen = position + 1 - logical_block(t_, chunk.task, index) * t_.p.block_size;
            if (seen <= 0) break;
            columns += static_cast<uint32_t>(least<int64_t>(seen, t_.p.block_size));
        }
        return columns;
    }

    /// Minus infinity where a row's token does not see: whatever lies there, NaN too, is replaced.
    __aicore__ inline void mask(const AttentionChunk& chunk, const LocalTensor<float>& scores, uint32_t row,
                                uint32_t count, uint32_t pitch) {
        const uint8_t step = static_cast<uint8_t>(pitch / 8);
        for (uint32_t done = 0; done < count;) {
            const uint32_t token = (row + done) / t_.group;
            const uint32_t run = least(count - done, (token + 1) * t_.group - (row + done));
            const uint32_t seen = visible_columns(chunk, chunk.task.position + token);
            const LocalTensor<float> rows = scores[done * pitch];
            uint32_t column = seen / kLanes * kLanes;
            if (seen > column) {
                uint64_t lanes[2] = {~uint64_t{0} << (seen - column), 0};
                Duplicate(rows[column], minus_infinity(), lanes, static_cast<uint8_t>(run), 1, step);
                column += kLanes;
            }
            for (; column < pitch; column += kLanes)
                Duplicate(rows[column], minus_infinity(), static_cast<uint64_t>(kLanes),
                          static_cast<uint8_t>(run), 1, step);
            done += run;
        }
    }

    __aicore__ inline void accumulate(const AttentionChunk& chunk, int64_t core) {
        CrossCoreWaitFlag(kProductReady);
        const AttentionTask& task = chunk.task;
        const Share rows = tile_rows(task.tokens * t_.group);
        const LocalTensor<float> sum = sum_.Get<float>(), factors = factors_.Get<float>();
        const LocalTensor<float> decay = decay_.Get<float>()[static_cast<uint32_t>(chunk.number % 2) * kMine];
        if (chunk.first) Duplicate(sum, 0.0f, static_cast<int32_t>(kMine * kMaxHeadDim));
        for (int64_t row = rows.begin; row < rows.end; row += kSlice) {
            const uint32_t mine = static_cast<uint32_t>(row - rows.begin);
            const uint32_t count = static_cast<uint32_t>(least<int64_t>(kSlice, rows.end - row));
            const LocalTensor<float> product = products_.Get<float>()[product_slot_ * kProductSlice];
            const LocalTensor<float> part = sum[mine * kMaxHeadDim];
            const int32_t id = 2 + product_slot_;
            WaitFlag<HardEvent::V_MTE2>(id);
            load_product(product, exchange<float>(t_, t_.product_offset, kProductBytes, core, chunk.number),
                         row, count);
            SetFlag<HardEvent::MTE2_V>(id);
            Brcb(factors, decay[mine], static_cast<uint8_t>(div_up(count, 8)), {1, 8});
            PipeBarrier<PIPE_V>();
            apply_per_row<ByMul>(part, factors, count, kMaxHeadDim, used_);
            PipeBarrier<PIPE_V>();
            WaitFlag<HardEvent::MTE2_V>(id);
            Add(part, part, product, static_cast<int32_t>(count * kMaxHeadDim));
            SetFlag<HardEvent::V_MTE2>(id);
            product_slot_ ^= 1;
        }
        if (!chunk.last || rows.begin == rows.end) return;
        const uint32_t state = static_cast<uint32_t>(chunk.task_number % 2) * kMine;
        if (t_.num_splits > 1)
            keep_part(task, rows, state);
        else
            finish(task, rows, state);
    }

    __aicore__ inline void load_product(const LocalTensor<float>& dst, const GlobalTensor<float>& src,
                                        int64_t row, uint32_t count) {
        const auto gap = static_cast<uint16_t>((kMaxHeadDim - dim_) * sizeof(float) / kBlock);
        const DataCopyParams copy{static_cast<uint16_t>(count),
                                  static_cast<uint16_t>(dim_ * sizeof(float) / kBlock), gap, gap};
        DataCopy(dst, src[row * kMaxHeadDim], copy);
    }

    /// factors[r] = 1 / totals[r] as blocks, for the rows of this core.
    __aicore__ inline void finish(const AttentionTask& task, const Share& rows, uint32_t state) {
        const LocalTensor<float> inverse = fold_.Get<float>(), factors = factors_.Get<float>();
        const LocalTensor<float> sum = sum_.Get<float>();
        Duplicate(inverse, 1.0f, static_cast<int32_t>(kMine));
        PipeBarrier<PIPE_V>();
        Div(inverse, inverse, totals_.Get<float>()[state], static_cast<int32_t>(kMine));
        PipeBarrier<PIPE_V>();
        Brcb(factors, inverse, kMine / 8, {1, 8});
        PipeBarrier<PIPE_V>();
        for (int64_t row = rows.begin; row < rows.end; row += kSlice) {
            const uint32_t mine = static_cast<uint32_t>(row - rows.begin);
            const uint32_t count = static_cast<uint32_t>(least<int64_t>(kSlice, rows.end - row));
            apply_per_row<ByMul>(sum[mine * kMaxHeadDim], factors[mine * 8], count, kMaxHeadDim, used_);
            PipeBarrier<PIPE_V>();
            write_rows(task, sum[mine * kMaxHeadDim], static_cast<uint32_t>(row), count);
        }
    }

    /// fp32 rows to the output.
    __aicore__ inline void write_rows(const AttentionTask& task, const LocalTensor<float>& values,
                                      uint32_t row, uint32_t count) {
        const LocalTensor<bfloat16_t> out = out_.Get<bfloat16_t>()[out_slot_ * kProductSlice];
        const int32_t id = 2 + out_slot_;
        WaitFlag<HardEvent::MTE3_V>(id);
        Cast(out, values, RoundMode::CAST_RINT, count * kMaxHeadDim);
        SetFlag<HardEvent::V_MTE3>(id);
        WaitFlag<HardEvent::V_MTE3>(id);
        for (uint32_t done = 0; done < count;) {
            const uint32_t token = (row + done) / t_.group, head = (row + done) % t_.group;
            const uint32_t run = least(count - done, t_.group - head);
            const int64_t offset = (task.token + token) * t_.p.out_token_stride +
                                   (task.head * t_.group + head) * t_.p.out_head_stride;
            store_rows(global<bfloat16_t>(t_.p.out)[offset], out[done * kMaxHeadDim], run, dim_,
                       t_.p.out_head_stride, kMaxHeadDim);
            done += run;
        }
        SetFlag<HardEvent::MTE3_V>(id);
        out_slot_ ^= 1;
    }

    __aicore__ inline GlobalTensor<float> part_of(int64_t part) {
        return global<float>(t_.p.workspace)[(t_.part_offset + part * kPartBytes) / sizeof(float)];
    }
    static constexpr uint32_t kPartMaxima = kRows * kMaxHeadDim, kPartTotals = kPartMaxima + kRows * 8;

    __aicore__ inline void keep_part(const AttentionTask& task, const Share& rows, uint32_t state) {
        const LocalTensor<float> maxima = factors_.Get<float>(), totals = maxima[kMine * 8];
        const GlobalTensor<float> part = part_of(task.part);
        const uint32_t count = static_cast<uint32_t>(rows.end - rows.begin),
                       first = static_cast<uint32_t>(rows.begin);
        Brcb(maxima, maxima_.Get<float>()[state], kMine / 8, {1, 8});
        Brcb(totals, totals_.Get<float>()[state], kMine / 8, {1, 8});
        SetFlag<HardEvent::V_MTE3>(EVENT_ID4);
        WaitFlag<HardEvent::V_MTE3>(EVENT_ID4);
        DataCopy(part[first * kMaxHeadDim], sum_.Get<float>(), count * kMaxHeadDim);
        DataCopy(part[kPartMaxima + first * 8], maxima, count * 8);
        DataCopy(part[kPartTotals + first * 8], totals, count * 8);
        SetFlag<HardEvent::MTE3_V>(EVENT_ID4);
        WaitFlag<HardEvent::MTE3_V>(EVENT_ID4);
    }

    /// out = sum of e^(m - M) O over the splits, over the sum of e^(m - M) l.
    __aicore__ inline void merge_slice(const AttentionTask& task, uint32_t row, uint32_t count) {
        // All row values as blocks of 8: [split][row][8].
        const uint32_t plane = kSlice * 8;
        const LocalTensor<float> maxima = scores_.Get<float>(), totals = maxima[kMaxSplits * plane];
        const LocalTensor<float> best = totals[kMaxSplits * plane], total = best[plane];
        const LocalTensor<float> sum = sum_.Get<float>(), product = products_.Get<float>();
        const int32_t blocks = static_cast<int32_t>(count * 8);
        uint32_t parts = 0;
        for (uint32_t split = 0; split < t_.num_splits; ++split) {
            const Share share_of_split = share(task.end, split, t_.num_splits);
            if (share_of_split.begin == share_of_split.end) continue;
            const GlobalTensor<float> part = part_of(task.part * t_.num_splits + split);
            DataCopy(maxima[parts * plane], part[kPartMaxima + row * 8], count * 8);
            DataCopy(totals[parts * plane], part[kPartTotals + row * 8], count * 8);
            ++parts;
        }
        SetFlag<HardEvent::MTE2_V>(EVENT_ID4);
        WaitFlag<HardEvent::MTE2_V>(EVENT_ID4);
        Duplicate(best, kLowest, blocks);
        Duplicate(total, 0.0f, blocks);
        Duplicate(sum, 0.0f, static_cast<int32_t>(kProductSlice));
        PipeBarrier<PIPE_V>();
        for (uint32_t i = 0; i < parts; ++i) {
            Max(best, best, maxima[i * plane], blocks);
            PipeBarrier<PIPE_V>();
        }
        parts = 0;
        for (uint32_t split = 0; split < t_.num_splits; ++split) {
            const Share share_of_split = share(task.end, split, t_.num_splits);
            if (share_of_split.begin == share_of_split.end) continue;
            const LocalTensor<float> weight = maxima[parts * plane], mass = totals[parts * plane];
            SetFlag<HardEvent::V_MTE2>(EVENT_ID4);
            WaitFlag<HardEvent::V_MTE2>(EVENT_ID4);
            load_product(product, part_of(task.part * t_.num_splits + split), row, count);
            SetFlag<HardEvent::MTE2_V>(EVENT_ID4);
            Sub(weight, weight, best, blocks);
            PipeBarrier<PIPE_V>();
            Exp(weight, weight, blocks);
            PipeBarrier<PIPE_V>();
            Mul(mass, mass, weight, blocks);
            PipeBarrier<PIPE_V>();
            Add(total, total, mass, blocks);
            WaitFlag<HardEvent::MTE2_V>(EVENT_ID4);
            apply_per_row<ByMul>(product, weight, count, kMaxHeadDim, used_);
            PipeBarrier<PIPE_V>();
            Add(sum, sum, product, static_cast<int32_t>(count * kMaxHeadDim));
            ++parts;
        }
        Duplicate(best, 1.0f, blocks);
        PipeBarrier<PIPE_V>();
        Div(best, best, total, blocks);
        PipeBarrier<PIPE_V>();
        apply_per_row<ByMul>(sum, best, count, kMaxHeadDim, used_);
        PipeBarrier<PIPE_V>();
        for (int32_t id = 2; id < 4; ++id) SetFlag<HardEvent::MTE3_V>(id);
        write_rows(task, sum, row, count);
        for (int32_t id = 2; id < 4; ++id) WaitFlag<HardEvent::MTE3_V>(id);
        SetFlag<HardEvent::V_MTE2>(EVENT_ID4);
        WaitFlag<HardEvent::V_MTE2>(EVENT_ID4);
    }

    const AttentionTiling& t_;
    const uint32_t dim_, used_;
    TBuf<TPosition::VECCALC> scores_, weights_, fold_, products_, sum_, out_, maxima_, totals_, decay_,
        per_row_, factors_;
    int32_t score_slot_ = 0, product_slot_ = 0, out_slot_ = 0;
};

}  // namespace mmx::ascend
