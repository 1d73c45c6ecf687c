#pragma once

#include "ascend/common/rows.h"
#include "ascend/common/tiling.h"
#include "cpp/core/params/qkv.h"

/// norm_rope_store: one token's heads at a time on a vector core; q, k and the index heads are normed and
/// rotated, k, v and index-k go to their pages.
namespace mmx::ascend {

struct QkvTiling {
    NormRopeStoreParams p;
    uint32_t dim, rows, normed, q_heads, kv_heads, index_heads, rotary;  // normed: heads before v
    int num_blocks;
};

constexpr int64_t kQkvMaxElements = 10240;

inline QkvTiling norm_rope_store_tiling(const NormRopeStoreParams& p, const Cores& cores) {
    const char* op = "norm_rope_store";
    require_bf16(op, "qkv", p.dtype);
    require_bf16(op, "q_weight", p.weight_dtype);
    MMX_CHECK(p.cache_dtype == DType::kBF16 && (!p.index_k_cache || p.index_cache_dtype == DType::kBF16), op,
              ": on Ascend pages must be bfloat16, got ", dtype_name(p.cache_dtype));
    MMX_CHECK(p.head_dim == 64 || p.head_dim == 128, op, ": on Ascend head_dim must be 64 or 128, got ",
              p.head_dim);
    MMX_CHECK(p.rotary_dim % 16 == 0 && p.rotary_dim <= 128, op,
              ": on Ascend rotary_dim must be a multiple of 16 up to 128, got ", p.rotary_dim);
    QkvTiling t{};
    t.p = p;
    t.dim = static_cast<uint32_t>(p.head_dim);
    t.q_heads = static_cast<uint32_t>(p.num_heads);
    t.kv_heads = static_cast<uint32_t>(p.num_kv_heads);
    t.index_heads = p.index_k_cache ? static_cast<uint32_t>(p.num_index_heads) + 1 : 0;
    t.normed = t.q_heads + t.kv_heads + t.index_heads;
    t.rows = t.normed + t.kv_heads;
    t.rotary = static_cast<uint32_t>(p.rotary_dim);
    MMX_CHECK(int64_t{t.rows} * t.dim <= kQkvMaxElements, op, ": on Ascend a token may have ",
              kQkvMaxElements, " elements of q, k and v, got ", int64_t{t.rows} * t.dim);
    t.num_blocks = vector_blocks(p.num_tokens, cores);
    return t;
}

class NormRopeStore {
  public:
    __aicore__ inline NormRopeStore(TPipe& pipe, const QkvTiling& t) : t_(t) {
        const uint32_t tile = t.rows * t.dim,
                       gains = t.p.norm_whole_projection ? t.normed * t.dim : 4 * t.dim;
        pipe.InitBuffer(in_, 2 * tile * sizeof(bfloat16_t));
        pipe.InitBuffer(values_, tile * sizeof(float));
        // Squares; then the four products of rope, each of half a rotary part per head.
        pipe.InitBuffer(work_, t.normed * most(t.dim, 2 * t.rotary) * sizeof(float));
        pipe.InitBuffer(gains_, gains * sizeof(float));
        pipe.InitBuffer(angles_, 2 * t.rotary * sizeof(float));
        pipe.InitBuffer(sums_, 2 * round_up(t.rows, 64) * sizeof(float));
        pipe.InitBuffer(factors_, round_up(t.rows, 8) * kBlock);
    }

    __aicore__ inline void process() {
        const Share tokens = share(t_.p.num_tokens, GetBlockIdx(), GetBlockNum());
        if (tokens.begin == tokens.end) return;
        load_gains();
        for (int32_t id = 0; id < 2; ++id) SetFlag<HardEvent::MTE3_MTE2>(id);
        int32_t slot = 0;
        for (int64_t token = tokens.begin; token < tokens.end; ++token, slot ^= 1) prepare(token, slot);
        for (int32_t id = 0; id < 2; ++id) WaitFlag<HardEvent::MTE3_MTE2>(id);
    }

  private:
    /// The gain of the section that begins at head `head` of the normed ones.
    __aicore__ inline LocalTensor<float> gain(uint32_t section, uint32_t head) {
        return gains_.Get<float>()[(t_.p.norm_whole_projection ? head : section) * t_.dim];
    }

    __aicore__ inline void load_gains() {
        const LocalTensor<bfloat16_t> narrow = in_.Get<bfloat16_t>();
        const bool whole = t_.p.norm_whole_projection;
        const void* const weights[4] = {t_.p.q_weight, t_.p.k_weight, t_.p.index_q_weight,
                                        t_.p.index_k_weight};
        const uint32_t heads[4] = {whole ? t_.q_heads : 1, whole ? t_.kv_heads : 1, 1, 1};
        const uint32_t sections = t_.index_heads > 0 ? 4 : 2;
        uint32_t at = 0;
        for (uint32_t i = 0; i < sections; ++i) {
            const uint32_t count = heads[i] * t_.dim;
            load_rows(narrow[at], global<bfloat16_t>(weights[i]), 1, count, count, count);
            at += count;
        }
        SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
        WaitFlag<HardEvent::MTE2_V>(EVENT_ID0);
        const LocalTensor<float> gains = gains_.Get<float>();
        Cast(gains, narrow, RoundMode::CAST_NONE, at);
        PipeBarrier<PIPE_V>();
        if (t_.p.gemma) Adds(gains, gains, 1.0f, static_cast<int32_t>(at));
        SetFlag<HardEvent::V_MTE2>(EVENT_ID0);
        WaitFlag<HardEvent::V_MTE2>(EVENT_ID0);
    }

    __aicore__ inline void prepare(int64_t token, int32_t slot) {
        const uint32_t tile = t_.rows * t_.dim, normed = t_.normed * t_.dim;
        const LocalTensor<bfloat16_t> heads = in_.Get<bfloat16_t>()[slot * tile];
        const LocalTensor<float> angles = angles_.Get<float>()[slot * t_.rotary],
                                 values = values_.Get<float>();
        WaitFlag<HardEvent::MTE3_MTE2>(slot);
        load_rows(heads, global<bfloat16_t>(t_.p.qkv)[token * t_.p.qkv_stride], 1, tile, tile, tile);
        const int64_t position = global<int64_t>(t_.p.positions).GetValue(token);
        load_rows(angles, global<float>(t_.p.cos_sin)[position * t_.rotary], 1, t_.rotary, t_.rotary,
                  t_.rotary);
        SetFlag<HardEvent::MTE2_V>(slot);
        WaitFlag<HardEvent::MTE2_V>(slot);
        Cast(values, heads, RoundMode::CAST_NONE, normed);
        PipeBarrier<PIPE_V>();
        norm(values, token);
        // Every step rounds as the single ops do.
        Cast(heads, values, RoundMode::CAST_RINT, normed);
        PipeBarrier<PIPE_V>();
        Cast(values, heads, RoundMode::CAST_NONE, normed);
        PipeBarrier<PIPE_V>();
        rotate(values, angles);
        Cast(heads, values, RoundMode::CAST_RINT, normed);
        SetFlag<HardEvent::V_MTE3>(slot);
        WaitFlag<HardEvent::V_MTE3>(slot);
        store(token, heads);
        SetFlag<HardEvent::MTE3_MTE2>(slot);
    }

    __aicore__ inline void norm(const LocalTensor<float>& values, int64_t token) {
        const LocalTensor<float> squares = work_.Get<float>(), sums = sums_.Get<float>();
        const uint32_t index = t_.q_heads + t_.kv_heads;
        if (t_.p.mean_squares) {
            const GlobalTensor<float> given = global<float>(t_.p.mean_squares);
            for (uint32_t section = 0; section < 2; ++section) {
                Duplicate(sums, given.GetValue(2 * token + section), 8);
                PipeBarrier<PIPE_V>();
                scale_section(values, section * t_.q_heads, section == 0 ? t_.q_heads : t_.kv_heads, 1);
            }
        } else {
            Mul(squares, values, values, static_cast<int32_t>(t_.normed * t_.dim));
            PipeBarrier<PIPE_V>();
            fold_rows<FoldAdd>(squares, t_.normed, t_.dim, t_.dim);
            norm_by_squares(values, squares);
        }
        PipeBarrier<PIPE_V>();
        if (t_.p.norm_whole_projection) {
            Mul(values, values, gains_.Get<float>(), static_cast<int32_t>(t_.normed * t_.dim));
        } else {
            scale_columns(values, gain(0, 0), t_.q_heads, t_.dim);
            scale_columns(values[t_.q_heads * t_.dim], gain(1, 0), t_.kv_heads, t_.dim);
            if (t_.index_heads > 0) {
                scale_columns(values[index * t_.dim], gain(2, 0), t_.index_heads - 1, t_.dim);
                scale_columns(values[(t_.normed - 1) * t_.dim], gain(3, 0), 1, t_.dim);
            }
        }
        PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void norm_by_squares(const LocalTensor<float>& values,
                                           const LocalTensor<float>& squares) {
        const LocalTensor<float> sums = sums_.Get<float>(), ones = sums[round_up(t_.rows, 64)];
        const LocalTensor<float> factors = factors_.Get<float>();
        if (t_.p.norm_whole_projection) {
            norm_section(values, squares, 0, t_.q_heads);
            norm_section(values, squares, t_.q_heads, t_.kv_heads);
            return;
        }
        sum_rows(sums, squares, t_.normed, t_.dim);
        PipeBarrier<PIPE_V>();
        invert_root(sums, ones, t_.normed, t_.dim);
        Brcb(factors, ones, static_cast<uint8_t>(div_up(t_.normed, 8)), {1, 8});
        PipeBarrier<PIPE_V>();
        apply_per_row<ByMul>(values, factors, t_.normed, t_.dim, t_.dim);
    }

    /// All heads of a projection by one root mean square.
    __aicore__ inline void norm_section(const LocalTensor<float>& values, const LocalTensor<float>& squares,
                                        uint32_t head, uint32_t heads) {
        const LocalTensor<float> sums = sums_.Get<float>();
        // Lanes behind the last head add nothing.
        Duplicate(sums, 0.0f, static_cast<int32_t>(round_up(t_.rows, 64)));
        PipeBarrier<PIPE_V>();
        sum_rows(sums, squares[head * t_.dim], heads, t_.dim);
        PipeBarrier<PIPE_V>();
        fold_rows<FoldAdd>(sums, 1, round_up(t_.rows, 64), round_up(t_.rows, 64));
        WholeReduceSum(sums, sums, kLanes, 1, 1, 1, 8);
        PipeBarrier<PIPE_V>();
        scale_section(values, head, heads, heads * t_.dim);
    }

    /// All heads of a projection by 1 / sqrt(sums[0] / size + eps).
    __aicore__ inline void scale_section(const LocalTensor<float>& values, uint32_t head, uint32_t heads,
                                         uint32_t size) {
        const LocalTensor<float> sums = sums_.Get<float>(), ones = sums[round_up(t_.rows, 64)];
        const LocalTensor<float> factors = factors_.Get<float>(), section = values[head * t_.dim];
        invert_root(sums, ones, 8, size);
        Brcb(factors, ones, 1, {1, 8});
        PipeBarrier<PIPE_V>();
        const uint8_t pitch = static_cast<uint8_t>(t_.dim / 8);
        for (uint32_t lane = 0; lane < t_.dim; lane += kLanes)
            Mul(section[lane], section[lane], factors, static_cast<uint64_t>(kLanes),
                static_cast<uint8_t>(heads), BinaryRepeatParams{1, 1, 0, pitch, pitch, 0});
    }

    /// ones = 1 / sqrt(sums / size + eps).
    __aicore__ inline void invert_root(const LocalTensor<float>& sums, const LocalTensor<float>& ones,
                                       uint32_t count, uint32_t size) {
        const int32_t n = static_cast<int32_t>(count);
        Muls(sums, sums, 1.0f / static_cast<float>(size), n);
        PipeBarrier<PIPE_V>();
        Adds(sums, sums, t_.p.eps, n);
        PipeBarrier<PIPE_V>();
        Sqrt(sums, sums, n);
        Duplicate(ones, 1.0f, static_cast<int32_t>(round_up(count, 8)));
        PipeBarrier<PIPE_V>();
        Div(ones, ones, sums, n);
        PipeBarrier<PIPE_V>();
    }

    /// Pairs (i, i + rotary / 2) of every normed head.
    __aicore__ inline void rotate(const LocalTensor<float>& values, const LocalTensor<float>& angles) {
        const uint32_t half_dim = t_.rotary / 2, part = t_.normed * half_dim;
        const LocalTensor<float> work = work_.Get<float>(), second = values[half_dim],
                                 sine = angles[half_dim];
        const uint8_t head = static_cast<uint8_t>(t_.dim / 8), packed = static_cast<uint8_t>(half_dim / 8);
        const uint8_t heads = static_cast<uint8_t>(t_.normed);
        const BinaryRepeatParams in{1, 1, 1, packed, head, 0}, out{1, 1, 1, head, packed, packed};
        const uint64_t lanes = half_dim;
        Mul(work, values, angles, lanes, heads, in);
        Mul(work[part], second, sine, lanes, heads, in);
        Mul(work[2 * part], second, angles, lanes, heads, in);
        Mul(work[3 * part], values, sine, lanes, heads, in);
        PipeBarrier<PIPE_V>();
        Sub(values, work, work[part], lanes, heads, out);
        Add(second, work[2 * part], work[3 * part], lanes, heads, out);
        PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void store(int64_t token, const LocalTensor<bfloat16_t>& heads) {
        const uint32_t dim = t_.dim, k = t_.q_heads * dim, index = k + t_.kv_heads * dim;
        const GlobalTensor<bfloat16_t> row = global<bfloat16_t>(t_.p.qkv)[token * t_.p.qkv_stride];
        DataCopy(row, heads, k);
        if (t_.index_heads > 0) DataCopy(row[index], heads[index], (t_.index_heads - 1) * dim);
        const int64_t slot = global<int64_t>(t_.p.slot_mapping).GetValue(token);
        if (slot < 0) return;
        const int64_t block = slot / t_.p.block_size, offset = slot % t_.p.block_size * dim;
        const int64_t head_stride = t_.p.block_size * dim;
        store_rows(global<bfloat16_t>(t_.p.k_cache)[block * t_.p.k_cache_block_stride + offset], heads[k],
                   t_.kv_heads, dim, head_stride, dim);
        store_rows(global<bfloat16_t>(t_.p.v_cache)[block * t_.p.v_cache_block_stride + offset],
                   heads[t_.normed * dim], t_.kv_heads, dim, head_stride, dim);
        if (t_.index_heads > 0)
            DataCopy(global<bfloat16_t>(t_.p.index_k_cache)[block * t_.p.index_k_cache_block_stride + offset],
                     heads[(t_.normed - 1) * dim], dim);
    }

    const QkvTiling& t_;
    TBuf<TPosition::VECCALC> in_, values_, work_, gains_, angles_, sums_, factors_;
};

__aicore__ inline void norm_rope_store_kernel(const QkvTiling& t) {
    TPipe pipe;
    NormRopeStore(pipe, t).process();
}

}  // namespace mmx::ascend
