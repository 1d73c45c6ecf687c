#pragma once

#include "ascend/common/cube.h"
#include "ascend/kernels/attention_tasks.h"

/// The cube's side of attention: scores = q . k^T and product = weights . v.
namespace mmx::ascend {

class AttentionCube {
  public:
    __aicore__ inline AttentionCube(TPipe& pipe, const AttentionTiling& t)
        : t_(t), dim_(static_cast<uint32_t>(t.p.head_dim)), block_(static_cast<uint32_t>(t.p.block_size)) {
        pipe.InitBuffer(pages_, kPages * kPageElements * sizeof(bfloat16_t));
        pipe.InitBuffer(q_, kRows * kMaxHeadDim * sizeof(bfloat16_t));
        pipe.InitBuffer(weights_, kRows * kChunk * sizeof(bfloat16_t));
        pipe.InitBuffer(left_, 2 * kPageElements * sizeof(bfloat16_t));
        pipe.InitBuffer(right_, 2 * kPageElements * sizeof(bfloat16_t));
        pipe.InitBuffer(sums_, (2 * kScorePart + kRows * kMaxHeadDim) * sizeof(float));
    }

    __aicore__ inline void process() {
        open();
        const int64_t core = GetBlockIdx();
        AttentionChunk before{};
        before.number = -1;
        each_chunk(t_, core, [&](const AttentionChunk& chunk) MMX_DEVICE_LAMBDA {
            scores(chunk, core);
            if (before.number >= 0) product(before, core);
            before = chunk;
        });
        if (before.number >= 0) product(before, core);
        close();
    }

  private:
    static constexpr uint32_t kPages = 4, kPageElements = 128 * kMaxHeadDim;
    static constexpr uint32_t kScorePart =
        32 * 1024 / sizeof(float);                            // elements of one of two score tiles in L0C
    static constexpr int32_t kQ = 4, kWeights = 5, kSum = 2;  // flag ids beside those of ring slots

    __aicore__ inline void open() {
        for (int32_t id = 0; id < 6; ++id) SetFlag<HardEvent::MTE1_MTE2>(id);
        for (int32_t id = 0; id < 2; ++id) SetFlag<HardEvent::M_MTE1>(id);
        for (int32_t id = 0; id < 3; ++id) SetFlag<HardEvent::FIX_M>(id);
    }
    __aicore__ inline void close() {
        for (int32_t id = 0; id < 6; ++id) WaitFlag<HardEvent::MTE1_MTE2>(id);
        for (int32_t id = 0; id < 2; ++id) WaitFlag<HardEvent::M_MTE1>(id);
        for (int32_t id = 0; id < 3; ++id) WaitFlag<HardEvent::FIX_M>(id);
    }

    __aicore__ inline int64_t page_offset(const AttentionTask& task, int64_t block, int64_t block_stride) {
        const int64_t page =
            global<int32_t>(t_.p.block_table).GetValue(task.seq * t_.p.block_table_stride + block);
        return page * block_stride + task.head * t_.p.block_size * t_.p.head_dim;
    }

    /// `rows` rows of a page to the next ring slot; the rest of the page is zero.
    __aicore__ inline LocalTensor<bfloat16_t> load_page(const GlobalTensor<bfloat16_t>& page, uint32_t rows) {
        const LocalTensor<bfloat16_t> dst = pages_.Get<bfloat16_t>()[ring_ * kPageElements];
        WaitFlag<HardEvent::MTE1_MTE2>(ring_);
        load_matrix(dst, page, rows, block_, dim_, dim_, block_);
        SetFlag<HardEvent::MTE2_MTE1>(ring_);
        WaitFlag<HardEvent::MTE2_MTE1>(ring_);
        return dst;
    }
    __aicore__ inline void free_page() {
        SetFlag<HardEvent::MTE1_MTE2>(ring_);
        ring_ = (ring_ + 1) % static_cast<int32_t>(kPages);
    }

    /// The flag of the next page, copied after it, says that it is there.
    __aicore__ inline void load_q(const AttentionTask& task) {
        const uint32_t rows = task.tokens * t_.group, padded = round_up(rows, kFractal);
        const GlobalTensor<bfloat16_t> q = global<bfloat16_t>(t_.p.q);
        const LocalTensor<bfloat16_t> dst = q_.Get<bfloat16_t>();
        WaitFlag<HardEvent::MTE1_MTE2>(kQ);
        for (uint32_t i = 0; i < task.tokens; ++i) {
            const int64_t offset =
                (task.token + i) * t_.p.q_token_stride + task.head * t_.group * t_.p.q_head_stride;
            const bool last = i + 1 == task.tokens;
            load_matrix(dst[i * t_.group * kFractal], q[offset], t_.group,
                        last ? padded - i * t_.group : t_.group, dim_, t_.p.q_head_stride, padded);
        }
    }

    __aicore__ inline void scores(const AttentionChunk& chunk, int64_t core) {
        const AttentionTask& task = chunk.task;
        const uint32_t rows = task.tokens * t_.group, padded = round_up(rows, kFractal);
        // Two tiles of scores share half of L0C: the second is multiplied while the first leaves.
        const uint32_t columns = least(block_, kScorePart / padded / kFractal * kFractal);
        const GlobalTensor<float> out = exchange<float>(t_, t_.score_offset, kScoreBytes, core, chunk.number);
        if (chunk.first) load_q(task);
        for (uint32_t index = chunk.begin; index < chunk.end; ++index) {
            const int64_t block = logical_block(t_, task, index);
            const LocalTensor<bfloat16_t> page = load_page(
                global<bfloat16_t>(t_.p.k_cache)[page_offset(task, block, t_.p.k_cache_block_stride)],
                block_);
            for (uint32_t column = 0; column < block_; column += columns) {
                const uint32_t width = least(columns, block_ - column);
                const LocalTensor<float> tile = sums_.Get<float>()[tile_ * kScorePart];
                const LocalTensor<bfloat16_t> left = left_.Get<bfloat16_t>()[l0_ * kPageElements];
                const LocalTensor<bfloat16_t> right = right_.Get<bfloat16_t>()[l0_ * kPageElements];
                WaitFlag<HardEvent::M_MTE1>(l0_);
                load_left(left, q_.Get<bfloat16_t>(), padded, dim_);
                load_right(right, page, column, width, block_, dim_);
                SetFlag<HardEvent::MTE1_M>(l0_);
                WaitFlag<HardEvent::MTE1_M>(l0_);
                WaitFlag<HardEvent::FIX_M>(tile_);
                multiply(tile, left, right, padded, width, dim_, true);
                SetFlag<HardEvent::M_MTE1>(l0_);
                SetFlag<HardEvent::M_FIX>(tile_);
                WaitFlag<HardEvent::M_FIX>(tile_);
                store_tile(out[(index - chunk.begin) * block_ + column], tile, rows, padded, width, kChunk);
                SetFlag<HardEvent::FIX_M>(tile_);
                l0_ ^= 1;
                tile_ ^= 1;
            }
            free_page();
        }
        if (chunk.last) SetFlag<HardEvent::MTE1_MTE2>(kQ);
        CrossCoreSetFlag<2, PIPE_FIX>(kScoresReady);
    }

    __aicore__ inline void product(const AttentionChunk& chunk, int64_t core) {
        const AttentionTask& task = chunk.task;
        const uint32_t rows = task.tokens * t_.group, padded = round_up(rows, kFractal);
        const LocalTensor<bfloat16_t> weights = weights_.Get<bfloat16_t>();
        const LocalTensor<float> sum = sums_.Get<float>()[2 * kScorePart];
        CrossCoreWaitFlag(kWeightsReady);
        WaitFlag<HardEvent::MTE1_MTE2>(kWeights);
        load_matrix(weights, exchange<bfloat16_t>(t_, t_.weight_offset, kWeightBytes, core, chunk.number),
                    rows, padded, (chunk.end - chunk.begin) * block_, kChunk, padded);
        WaitFlag<HardEvent::FIX_M>(kSum);
        for (uint32_t index = chunk.begin; index < chunk.end; ++index) {
            const int64_t block = logical_block(t_, task, index);
            // Keys behind the last token may hold anything, NaN too: zero them, for 0 * NaN is NaN.
            const LocalTensor<bfloat16_t> page = load_page(
                global<bfloat16_t>(t_.p.v_cache)[page_offset(task, block, t_.p.v_cache_block_stride)],
                visible_keys(t_, task, block));
            const LocalTensor<bfloat16_t> left = left_.Get<bfloat16_t>()[l0_ * kPageElements];
            const LocalTensor<bfloat16_t> right = right_.Get<bfloat16_t>()[l0_ * kPageElements];
            WaitFlag<HardEvent::M_MTE1>(l0_);
            load_left(left, weights[(index - chunk.begin) * block_ * padded], padded, block_);
            load_right_transposed(right, page, block_, dim_);
            SetFlag<HardEvent::MTE1_M>(l0_);
            WaitFlag<HardEvent::MTE1_M>(l0_);
            if (index > chunk.begin) order_small_tiles(padded, dim_);
            multiply(sum, left, right, padded, dim_, block_, index == chunk.begin);
            SetFlag<HardEvent::M_MTE1>(l0_);
            l0_ ^= 1;
            free_page();
        }
        SetFlag<HardEvent::MTE1_MTE2>(kWeights);
        SetFlag<HardEvent::M_FIX>(kSum);
        WaitFlag<HardEvent::M_FIX>(kSum);
        store_tile(exchange<float>(t_, t_.product_offset, kProductBytes, core, chunk.number), sum, rows,
                   padded, dim_, kMaxHeadDim);
        SetFlag<HardEvent::FIX_M>(kSum);
        CrossCoreSetFlag<2, PIPE_FIX>(kProductReady);
    }

    const AttentionTiling& t_;
    const uint32_t dim_, block_;
    TBuf<TPosition::B1> pages_;
    TBuf<TPosition::A1> q_, weights_;
    TBuf<TPosition::A2> left_;
    TBuf<TPosition::B2> right_;
    TBuf<TPosition::CO1> sums_;
    int32_t ring_ = 0, l0_ = 0, tile_ = 0;
};

}  // namespace mmx::ascend
