#pragma once

#include "ascend/common/cube.h"
#include "ascend/common/gemm.h"
#include "ascend/common/tiling.h"
#include "ascend/kernels/selector_rank.h"
#include "cpp/core/params/selector.h"

/// select_blocks. First the cube scores tiles of (token, head) rows against chunks of 512 keys and the vector
/// cores keep the best score of each block in the workspace; after a barrier each vector core ranks rows.
///
/// No key is masked: a query sees every block before its own whole, and its own is forced.
namespace mmx::ascend {

constexpr int64_t kSelectorScoreBytes = int64_t{kSelectorRows} * kSelectorChunk * 4;

inline SelectorTiling select_blocks_tiling(const SelectBlocksParams& p, const Cores& cores) {
    const char* op = "select_blocks";
    require_bf16(op, "index_q", p.dtype);
    MMX_CHECK(p.cache_dtype == DType::kBF16, op, ": on Ascend index_k_cache must be bfloat16, got ",
              dtype_name(p.cache_dtype));
    MMX_CHECK(p.index_dim % 16 == 0 && p.index_dim <= 128, op,
              ": on Ascend index_dim must be a multiple of 16 up to 128, got ", p.index_dim);
    MMX_CHECK(p.block_size == 64 || p.block_size == 128, op, ": on Ascend block_size must be 64 or 128, got ",
              p.block_size);
    MMX_CHECK(p.topk <= kKeep, op, ": on Ascend topk must be at most ", kKeep, ", got ", p.topk);
    MMX_CHECK(p.local_blocks >= 1, op, ": on Ascend local_blocks must be at least 1, got ", p.local_blocks);
    MMX_CHECK(p.num_index_heads <= kSelectorRows, op, ": on Ascend num_index_heads must be at most ",
              kSelectorRows, ", got ", p.num_index_heads);
    MMX_CHECK(p.max_blocks_per_seq <= kMaxRanked, op, ": on Ascend max_blocks_per_seq must be at most ",
              kMaxRanked, ", got ", p.max_blocks_per_seq);
    SelectorTiling t{};
    t.p = p;
    t.heads = static_cast<uint32_t>(p.num_index_heads);
    t.tile_tokens = static_cast<uint32_t>(
        std::clamp<int64_t>(kSelectorRows / p.num_index_heads, 1, std::max<int64_t>(p.max_seqlen_q, 1)));
    t.score_pitch = align_up(p.max_blocks_per_seq, 8);
    t.best_offset = cores.aic * 2 * kSelectorScoreBytes;
    t.num_blocks = cores.aic;
    return t;
}

inline int64_t select_blocks_workspace_bytes(const SelectBlocksParams& p, const Cores& cores) {
    const SelectorTiling t = select_blocks_tiling(p, cores);
    return t.best_offset + p.num_tokens * p.num_index_heads * t.score_pitch * 4;
}

/// The cube's side: scores of one chunk at a time.
class SelectorCube {
  public:
    __aicore__ inline SelectorCube(TPipe& pipe, const SelectorTiling& t)
        : t_(t), dim_(static_cast<uint32_t>(t.p.index_dim)), block_(static_cast<uint32_t>(t.p.block_size)) {
        pipe.InitBuffer(pages_, kPages * kPageElements * sizeof(bfloat16_t));
        pipe.InitBuffer(q_, kSelectorRows * 128 * sizeof(bfloat16_t));
        pipe.InitBuffer(left_, 2 * kPageElements * sizeof(bfloat16_t));
        pipe.InitBuffer(right_, 2 * kPageElements * sizeof(bfloat16_t));
        pipe.InitBuffer(sums_, 2 * kPageElements * sizeof(float));
    }

    __aicore__ inline void process() {
        for (int32_t id = 0; id < 5; ++id) SetFlag<HardEvent::MTE1_MTE2>(id);
        for (int32_t id = 0; id < 2; ++id) {
            SetFlag<HardEvent::M_MTE1>(id);
            SetFlag<HardEvent::FIX_M>(id);
        }
        const int64_t core = GetBlockIdx();
        each_score_chunk(t_, core, [&](const ScoreChunk& chunk) MMX_DEVICE_LAMBDA {
            CrossCoreWaitFlag(kFlagFree);
            scores(chunk, score_slot(t_, core, chunk.number));
            CrossCoreSetFlag<2, PIPE_FIX>(kFlagReady);
        });
        for (int32_t id = 0; id < 5; ++id) WaitFlag<HardEvent::MTE1_MTE2>(id);
        for (int32_t id = 0; id < 2; ++id) {
            WaitFlag<HardEvent::M_MTE1>(id);
            WaitFlag<HardEvent::FIX_M>(id);
        }
        CrossCoreWaitFlag(kFlagFree);
        CrossCoreWaitFlag(kFlagFree);
    }

  private:
    static constexpr uint32_t kPages = 4, kPageElements = 128 * 128;
    static constexpr int32_t kQ = 4;

    /// The flag of the next page, copied after it, says that it is there.
    __aicore__ inline void load_q(const ScoreChunk& chunk, uint32_t padded) {
        const GlobalTensor<bfloat16_t> q = global<bfloat16_t>(t_.p.index_q);
        WaitFlag<HardEvent::MTE1_MTE2>(kQ);
        for (uint32_t i = 0; i < chunk.tokens; ++i) {
            const bool last = i + 1 == chunk.tokens;
            load_matrix(q_.Get<bfloat16_t>()[i * t_.heads * kFractal],
                        q[(chunk.token + i) * t_.p.index_q_token_stride], t_.heads,
                        last ? padded - i * t_.heads : t_.heads, dim_, t_.p.index_q_head_stride, padded);
        }
    }

    __aicore__ inline void scores(const ScoreChunk& chunk, const GlobalTensor<float>& out) {
        const uint32_t rows = chunk.tokens * t_.heads, padded = round_up(rows, kFractal);
        load_q(chunk, padded);
        for (int64_t block = chunk.begin; block < chunk.end; ++block) {
            const int64_t page =
                global<int32_t>(t_.p.block_table).GetValue(chunk.seq * t_.p.block_table_stride + block);
            const LocalTensor<bfloat16_t> keys = pages_.Get<bfloat16_t>()[ring_ * kPageElements];
            const LocalTensor<bfloat16_t> left = left_.Get<bfloat16_t>()[l0_ * kPageElements];
            const LocalTensor<bfloat16_t> right = right_.Get<bfloat16_t>()[l0_ * kPageElements];
            const LocalTensor<float> tile = sums_.Get<float>()[l0_ * kPageElements];
            WaitFlag<HardEvent::MTE1_MTE2>(ring_);
            load_matrix(keys, global<bfloat16_t>(t_.p.index_k_cache)[page * t_.p.cache_block_stride], block_,
                        block_, dim_, dim_, block_);
            SetFlag<HardEvent::MTE2_MTE1>(ring_);
            WaitFlag<HardEvent::MTE2_MTE1>(ring_);
            WaitFlag<HardEvent::M_MTE1>(l0_);
            load_left(left, q_.Get<bfloat16_t>(), padded, dim_);
            load_right(right, keys, 0, block_, block_, dim_);
            SetFlag<HardEvent::MTE1_M>(l0_);
            SetFlag<HardEvent::MTE1_MTE2>(ring_);
            WaitFlag<HardEvent::MTE1_M>(l0_);
            WaitFlag<HardEvent::FIX_M>(l0_);
            multiply(tile, left, right, padded, block_, dim_, true);
            SetFlag<HardEvent::M_MTE1>(l0_);
            SetFlag<HardEvent::M_FIX>(l0_);
            WaitFlag<HardEvent::M_FIX>(l0_);
            store_tile(out[(block - chunk.begin) * block_], tile, rows, padded, block_, kSelectorChunk);
            SetFlag<HardEvent::FIX_M>(l0_);
            l0_ ^= 1;
            ring_ = (ring_ + 1) % static_cast<int32_t>(kPages);
        }
        SetFlag<HardEvent::MTE1_MTE2>(kQ);
    }

    const SelectorTiling& t_;
    const uint32_t dim_, block_;
    TBuf<TPosition::B1> pages_;
    TBuf<TPosition::A1> q_;
    TBuf<TPosition::A2> left_;
    TBuf<TPosition::B2> right_;
    TBuf<TPosition::CO1> sums_;
    int32_t ring_ = 0, l0_ = 0;
};

/// The vector cores' side of scoring: the best of each block.
class SelectorBest {
  public:
    __aicore__ inline SelectorBest(TPipe& pipe, const SelectorTiling& t)
        : t_(t), block_(static_cast<uint32_t>(t.p.block_size)) {
        pipe.InitBuffer(scores_, 2 * kSliceRowsOfScores * kSelectorChunk * sizeof(float));
        pipe.InitBuffer(numbers_, kSliceRowsOfScores * kSelectorChunk / 8);
        pipe.InitBuffer(best_, 2 * kSliceRowsOfScores * kBlock);
    }

    __aicore__ inline void process() {
        for (int32_t id = 0; id < 2; ++id) {
            SetFlag<HardEvent::V_MTE2>(id);
            SetFlag<HardEvent::MTE3_V>(id);
        }
        CrossCoreSetFlag<2, PIPE_MTE2>(kFlagFree);
        CrossCoreSetFlag<2, PIPE_MTE2>(kFlagFree);
        const int64_t core = GetBlockIdx() / 2;
        each_score_chunk(t_, core, [&](const ScoreChunk& chunk) MMX_DEVICE_LAMBDA {
            CrossCoreWaitFlag(kFlagReady);
            const GlobalTensor<float> scores = score_slot(t_, core, chunk.number);
            const Share rows = tile_rows(chunk.tokens * t_.heads);
            for (int64_t row = rows.begin; row < rows.end; row += kSliceRowsOfScores)
                slice(chunk, scores, row,
                      static_cast<uint32_t>(least<int64_t>(kSliceRowsOfScores, rows.end - row)));
            CrossCoreSetFlag<2, PIPE_MTE2>(kFlagFree);
        });
        for (int32_t id = 0; id < 2; ++id) {
            WaitFlag<HardEvent::V_MTE2>(id);
            WaitFlag<HardEvent::MTE3_V>(id);
        }
    }

  private:
    static constexpr uint32_t kSliceRowsOfScores = 16;

    __aicore__ inline void slice(const ScoreChunk& chunk, const GlobalTensor<float>& from, int64_t row,
                                 uint32_t rows) {
        const uint32_t blocks = static_cast<uint32_t>(chunk.end - chunk.begin), width = blocks * block_;
        const uint32_t elements = rows * width;
        const uint8_t pitch = static_cast<uint8_t>(width / 8);
        const LocalTensor<float> scores = scores_.Get<float>()[slot_ * kSliceRowsOfScores * kSelectorChunk];
        const LocalTensor<float> best = best_.Get<float>()[slot_ * kSliceRowsOfScores * 8];
        const LocalTensor<uint8_t> numbers = numbers_.Get<uint8_t>();
        WaitFlag<HardEvent::V_MTE2>(slot_);
        const DataCopyParams in{static_cast<uint16_t>(rows),
                                static_cast<uint16_t>(width * sizeof(float) / kBlock),
                                static_cast<uint16_t>((kSelectorChunk - width) * sizeof(float) / kBlock), 0};
        DataCopy(scores, from[row * kSelectorChunk], in);
        SetFlag<HardEvent::MTE2_V>(slot_);
        WaitFlag<HardEvent::MTE2_V>(slot_);
        // A NaN equals nothing, itself neither; it counts as minus infinity.
        Compare(numbers, scores, scores, CMPMODE::EQ, elements);
        PipeBarrier<PIPE_V>();
        Select(scores, numbers, scores, kMinusInfinity(), SELMODE::VSEL_TENSOR_SCALAR_MODE, elements);
        PipeBarrier<PIPE_V>();
        if (block_ == 2 * kLanes) {
            // Blocks lie 128 lanes apart over all rows.
            Max(scores, scores, scores[kLanes], static_cast<uint64_t>(kLanes),
                static_cast<uint8_t>(rows * blocks), BinaryRepeatParams{1, 1, 1, 16, 16, 16});
            PipeBarrier<PIPE_V>();
        }
        WaitFlag<HardEvent::MTE3_V>(slot_);
        for (uint32_t block = 0; block < blocks; ++block) {
            WholeReduceMax(best[block], scores[block * block_], kLanes, rows, 8, 1, pitch,
                           ReduceOrder::ORDER_ONLY_VALUE);
            PipeBarrier<PIPE_V>();
        }
        SetFlag<HardEvent::V_MTE2>(slot_);
        SetFlag<HardEvent::V_MTE3>(slot_);
        WaitFlag<HardEvent::V_MTE3>(slot_);
        store_rows(best_scores(t_, chunk.token * t_.heads + row)[chunk.begin], best, rows, blocks,
                   t_.score_pitch, 8);
        SetFlag<HardEvent::MTE3_V>(slot_);
        slot_ ^= 1;
    }

    const SelectorTiling& t_;
    const uint32_t block_;
    TBuf<TPosition::VECCALC> scores_, numbers_, best_;
    int32_t slot_ = 0;
};

__aicore__ inline void select_blocks_kernel(const SelectorTiling& t) {
    if ASCEND_IS_AIC {
        TPipe pipe;
        SelectorCube(pipe, t).process();
        SyncAll<false>();
    } else {
        TPipe pipe;
        SelectorBest(pipe, t).process();
        SyncAll<false>();
        SelectorRank(pipe, t).process();
    }
}

}  // namespace mmx::ascend
