#pragma once

#include "ascend/common/kernel.h"
#include "cpp/core/params/selector.h"

/// The tasks of select_blocks, and its second half: the best blocks of each row out of the blocks' scores.
namespace mmx::ascend {

constexpr uint32_t kSelectorRows = 128, kSelectorChunk = 512;
/// Records that every merge keeps of each list, the largest topk; blocks sorted at a time, and at all.
constexpr uint32_t kKeep = 16, kSorted = 2048, kMaxRanked = 65536;

struct SelectorTiling {
    SelectBlocksParams p;
    uint32_t heads, tile_tokens;
    int64_t score_pitch;  // of best scores: [num_tokens * heads, score_pitch]
    int64_t best_offset;
    int num_blocks;
};

/// Blocks [begin, end) of one sequence against `tokens` query tokens from `token` on.
struct ScoreChunk {
    int64_t seq, token, begin, end, number;
    uint32_t tokens;
};

__aicore__ inline constexpr float kMinusInfinity() { return -__builtin_inff(); }

/// Calls f(chunk) for the chunks of core `core`. Tiles whose tokens see no more blocks than they may keep
/// need no scores.
template <class F>
__aicore__ inline void each_score_chunk(const SelectorTiling& t, int64_t core, F&& f) {
    const GlobalTensor<int32_t> bounds = global<int32_t>(t.p.cu_seqlens_q),
                                lens = global<int32_t>(t.p.seq_lens);
    const int64_t step = kSelectorChunk / t.p.block_size;
    int64_t index = 0, number = 0;
    for (int64_t seq = 0; seq < t.p.num_seqs; ++seq) {
        const int64_t first = bounds.GetValue(seq), q_len = bounds.GetValue(seq + 1) - first;
        const int64_t position = lens.GetValue(seq) - q_len;
        for (int64_t token = 0; token < q_len; token += t.tile_tokens) {
            const int64_t tokens = least<int64_t>(t.tile_tokens, q_len - token);
            const int64_t blocks = (position + token + tokens - 1) / t.p.block_size + 1;
            if (blocks <= t.p.topk) continue;
            const int64_t chunks = (blocks + step - 1) / step;
            const int64_t mine = (core - index % t.num_blocks + t.num_blocks) % t.num_blocks;
            for (int64_t chunk = mine; chunk < chunks; chunk += t.num_blocks)
                f(ScoreChunk{seq, first + token, chunk * step, least((chunk + 1) * step, blocks), number++,
                             static_cast<uint32_t>(tokens)});
            index += chunks;
        }
    }
}

__aicore__ inline GlobalTensor<float> score_slot(const SelectorTiling& t, int64_t core, int64_t number) {
    return global<float>(t.p.workspace)[(2 * core + number % 2) * kSelectorRows * kSelectorChunk];
}
__aicore__ inline GlobalTensor<float> best_scores(const SelectorTiling& t, int64_t row) {
    return global<float>(t.p.workspace)[t.best_offset / sizeof(float) + row * t.score_pitch];
}

/// Ranks rows: forced blocks first, then by score, ties to the lower id; writes ids ascending.
class SelectorRank {
  public:
    __aicore__ inline SelectorRank(TPipe& pipe, const SelectorTiling& t) : t_(t) {
        pipe.InitBuffer(scores_, kSorted * sizeof(float));
        pipe.InitBuffer(ids_, kSorted * sizeof(int32_t));
        pipe.InitBuffer(records_, 2 * kSorted * kRecord * sizeof(float));
        pipe.InitBuffer(kept_, kMaxRanked / kSorted * kKeep * kRecord * sizeof(float));
        pipe.InitBuffer(keys_, 4 * 32 * sizeof(float));
        pipe.InitBuffer(out_, 32 * sizeof(int32_t));
    }

    __aicore__ inline void process() {
        const GlobalTensor<int32_t> bounds = global<int32_t>(t_.p.cu_seqlens_q),
                                    lens = global<int32_t>(t_.p.seq_lens);
        const int64_t worker = GetBlockIdx(), workers = GetBlockNum() * GetTaskRation();
        SetFlag<HardEvent::V_MTE2>(EVENT_ID0);
        SetFlag<HardEvent::MTE3_V>(EVENT_ID0);
        CreateVecIndex(ids_.Get<int32_t>(), 0, kSorted);
        PipeBarrier<PIPE_V>();
        for (int64_t seq = 0; seq < t_.p.num_seqs; ++seq) {
            const int64_t first = bounds.GetValue(seq), end = bounds.GetValue(seq + 1);
            const int64_t position = lens.GetValue(seq) - (end - first);
            const int64_t rows = (end - first) * t_.heads, base = first * t_.heads;
            for (int64_t row = (worker - base % workers + workers) % workers; row < rows; row += workers) {
                const int64_t blocks = (position + row / t_.heads) / t_.p.block_size + 1;
                if (blocks <= t_.p.topk)
                    all_blocks(base + row, static_cast<uint32_t>(blocks));
                else
                    rank(base + row, static_cast<uint32_t>(blocks));
            }
        }
        WaitFlag<HardEvent::V_MTE2>(EVENT_ID0);
        WaitFlag<HardEvent::MTE3_V>(EVENT_ID0);
    }

  private:
    static constexpr uint32_t kRecord = 2, kList = 32;  // floats of a record; records of a sorted list

    __aicore__ inline void all_blocks(int64_t row, uint32_t blocks) {
        const LocalTensor<int32_t> out = out_.Get<int32_t>();
        WaitFlag<HardEvent::MTE3_V>(EVENT_ID0);
        Duplicate(out, -1, 32);
        PipeBarrier<PIPE_V>();
        CreateVecIndex(out, 0, blocks);
        write(row);
    }

    __aicore__ inline void write(int64_t row) {
        SetFlag<HardEvent::V_MTE3>(EVENT_ID0);
        WaitFlag<HardEvent::V_MTE3>(EVENT_ID0);
        const uint32_t topk = static_cast<uint32_t>(t_.p.topk);
        store_rows(global<int32_t>(t_.p.block_ids)[row * topk], out_.Get<int32_t>(), 1, topk, topk,
                   round_up(topk, 8));
        SetFlag<HardEvent::MTE3_V>(EVENT_ID0);
    }

    /// Lanes [begin, end) of `values`.
    __aicore__ inline void fill(const LocalTensor<float>& values, uint32_t begin, uint32_t end, float value) {
        for (uint32_t base = begin / kLanes * kLanes; base < end; base += kLanes) {
            const uint32_t from = most(begin, base) - base, to = least(end, base + kLanes) - base;
            const uint64_t below = to == kLanes ? ~uint64_t{0} : (uint64_t{1} << to) - 1;
            uint64_t lanes[2] = {below & (~uint64_t{0} << from), 0};
            Duplicate(values[base], value, lanes, 1, 1, 8);
            PipeBarrier<PIPE_V>();
        }
    }

    /// The first kKeep records of the merge of `lists` lists, `stride` records apart in `from`, which is one
    /// half of records_ or kept_; both halves are used on the way. Returns where they are.
    __aicore__ inline LocalTensor<float> best_of(LocalTensor<float> from, uint32_t lists, uint32_t stride,
                                                 uint32_t half) {
        for (; lists > 1; lists = div_up(lists, 4), stride = 4 * kKeep, half ^= 1) {
            const LocalTensor<float> to = records_.Get<float>()[half * kSorted * kRecord];
            for (uint32_t group = 0; group < div_up(lists, 4); ++group) {
                const uint32_t count = least(4u, lists - 4 * group);
                const LocalTensor<float> source = from[4 * group * stride * kRecord];
                const LocalTensor<float> target = to[group * 4 * kKeep * kRecord];
                if (count == 1) {
                    DataCopy(target, source, kKeep * kRecord);
                    continue;
                }
                MrgSort4Info info;
                for (uint32_t i = 0; i < 4; ++i) info.elementLengths[i] = static_cast<uint16_t>(kKeep);
                info.validBit = static_cast<uint16_t>((1u << count) - 1);
                const uint32_t step = stride * kRecord;
                MrgSortSrcList<float> sources{source, source[step], source[count > 2 ? 2 * step : 0],
                                              source[count > 3 ? 3 * step : 0]};
                MrgSort(target, sources, info);
            }
            PipeBarrier<PIPE_V>();
            from = to;
        }
        return from;
    }

    __aicore__ inline void rank(int64_t row, uint32_t blocks) {
        const LocalTensor<float> scores = scores_.Get<float>(), records = records_.Get<float>(),
                                 kept = kept_.Get<float>();
        const LocalTensor<int32_t> ids = ids_.Get<int32_t>();
        const uint32_t local = blocks - static_cast<uint32_t>(t_.p.local_blocks);
        const uint32_t chunks = div_up(blocks, kSorted);
        LocalTensor<float> best;
        for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
            const uint32_t base = chunk * kSorted, count = least(kSorted, blocks - base);
            const uint32_t padded = round_up(count, kList);
            WaitFlag<HardEvent::V_MTE2>(EVENT_ID0);
            load_rows(scores, best_scores(t_, row)[base], 1, count, count, round_up(count, 8));
            SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
            if (chunks > 1) CreateVecIndex(ids, static_cast<int32_t>(base), kSorted);
            WaitFlag<HardEvent::MTE2_V>(EVENT_ID0);
            // Above every score stand the forced ones alone.
            Mins(scores, scores, 3.402823466e38f, static_cast<int32_t>(count));
            PipeBarrier<PIPE_V>();
            fill(scores, count, padded, kMinusInfinity());
            if (chunk == 0 && t_.p.init_blocks > 0)
                fill(scores, 0, least(count, static_cast<uint32_t>(t_.p.init_blocks)), -kMinusInfinity());
            if (base + count > local) fill(scores, local > base ? local - base : 0, count, -kMinusInfinity());
            Sort32(records, scores, ids.ReinterpretCast<uint32_t>(), static_cast<int32_t>(padded / kList));
            SetFlag<HardEvent::V_MTE2>(EVENT_ID0);
            PipeBarrier<PIPE_V>();
            best = best_of(records, padded / kList, kList, 1);
            if (chunks == 1) break;
            DataCopy(kept[chunk * kKeep * kRecord], best, kKeep * kRecord);
            PipeBarrier<PIPE_V>();
        }
        if (chunks > 1) best = best_of(kept, chunks, kKeep, 0);
        ascending(best);
        write(row);
    }

    /// The ids of the first topk records to out_, sorted: as negative keys, largest first.
    __aicore__ inline void ascending(const LocalTensor<float>& best) {
        const int32_t topk = static_cast<int32_t>(t_.p.topk);
        const LocalTensor<float> keys = keys_.Get<float>(), pairs = keys[32];
        const LocalTensor<int32_t> chosen = keys[96].ReinterpretCast<int32_t>();
        uint64_t taken = 0;
        const GatherMaskParams once{1, 1, 8, 8};
        GatherMask(chosen, best.ReinterpretCast<int32_t>(), 2, true, kKeep * kRecord, once, taken);
        Duplicate(keys, kMinusInfinity(), 32);
        PipeBarrier<PIPE_V>();
        Cast(keys, chosen, RoundMode::CAST_NONE, static_cast<uint32_t>(topk));
        PipeBarrier<PIPE_V>();
        Muls(keys, keys, -1.0f, topk);
        PipeBarrier<PIPE_V>();
        Sort32(pairs, keys, ids_.Get<int32_t>().ReinterpretCast<uint32_t>(), 1);
        PipeBarrier<PIPE_V>();
        GatherMask(keys, pairs, 1, true, 32 * kRecord, once, taken);
        PipeBarrier<PIPE_V>();
        Muls(keys, keys, -1.0f, topk);
        PipeBarrier<PIPE_V>();
        WaitFlag<HardEvent::MTE3_V>(EVENT_ID0);
        Cast(out_.Get<int32_t>(), keys, RoundMode::CAST_RINT, static_cast<uint32_t>(topk));
    }

    const SelectorTiling& t_;
    TBuf<TPosition::VECCALC> scores_, ids_, records_, kept_, keys_, out_;
};

}  // namespace mmx::ascend
