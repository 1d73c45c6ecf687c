#pragma once

#include "ascend/common/gemm.h"
#include "ascend/common/tiling.h"
#include "cpp/core/params/moe.h"

/// moe_gate_up and moe_down: grouped GEMMs over rows in plan order. Every core walks the same list of
/// (expert, tile of rows, tile of columns), made from expert_offsets on the device, and takes each
/// num_blocks-th tile: the cube multiplies, the two vector cores finish the tile before.
namespace mmx::ascend {

struct MoeTiling {
    void* out;                      // [rows in plan order, n]
    void* ring;                     // [cores, 2] tiles between cube and vector cores
    void* rows;                     // [rows in plan order, k_pitch] x of gate_up, gathered; null for moe_down
    const void* x;                  // [tokens, k] of gate_up, [rows in plan order, k] of down
    const void* weight;             // as in MoeGateUpParams or MoeDownParams
    const int32_t* expert_offsets;  // [num_experts + 1]
    const int32_t* sorted_rows;     // [rows]; null for moe_down
    int64_t num_experts, topk, x_stride;
    uint32_t n, k, k_pitch;  // output columns, depth, elements of a gathered row
    bool oai;
    float alpha, limit;
    int num_blocks;
};

inline void require_moe(const char* op, DType dtype, DType weight_dtype, int64_t k) {
    require_bf16(op, "x", dtype);
    MMX_CHECK(weight_dtype == DType::kBF16, op,
              ": on Ascend weight must be bfloat16 (expand fp8 with fp8_block_dequant), got ",
              dtype_name(weight_dtype));
    MMX_CHECK(k <= 65535, op, ": on Ascend the depth must be at most 65535, got ", k);
}

inline int64_t ring_bytes(const Cores& cores) { return cores.aic * kRingBytes; }

inline int64_t moe_gate_up_workspace_bytes(const MoeGateUpParams& p, const Cores& cores) {
    return ring_bytes(cores) + p.num_tokens * p.topk * align_up(p.hidden, 16) * 2;
}
inline int64_t moe_down_workspace_bytes(const MoeDownParams&, const Cores& cores) {
    return ring_bytes(cores);
}

inline MoeTiling moe_gate_up_tiling(const MoeGateUpParams& p, const Cores& cores) {
    require_moe("moe_gate_up", p.dtype, p.weight_dtype, p.hidden);
    MoeTiling t{};
    t.out = p.out, t.x = p.x, t.weight = p.weight;
    t.ring = p.workspace;
    t.rows = static_cast<char*>(p.workspace) + ring_bytes(cores);
    t.expert_offsets = p.expert_offsets, t.sorted_rows = p.sorted_rows;
    t.num_experts = p.num_local_experts, t.topk = p.topk, t.x_stride = p.x_stride;
    t.n = static_cast<uint32_t>(p.inter), t.k = static_cast<uint32_t>(p.hidden);
    t.k_pitch = static_cast<uint32_t>(align_up(p.hidden, 16));
    t.oai = p.activation == Activation::kSwigluOai;
    t.alpha = p.alpha, t.limit = p.limit;
    t.num_blocks = cores.aic;
    return t;
}

inline MoeTiling moe_down_tiling(const MoeDownParams& p, const Cores& cores) {
    require_moe("moe_down", p.dtype, p.weight_dtype, p.inter);
    MoeTiling t{};
    t.out = p.out, t.x = p.x, t.weight = p.weight;
    t.ring = p.workspace;
    t.expert_offsets = p.expert_offsets;
    t.num_experts = p.num_local_experts, t.x_stride = p.inter;
    t.n = static_cast<uint32_t>(p.hidden), t.k = static_cast<uint32_t>(p.inter);
    t.num_blocks = cores.aic;
    return t;
}

/// One tile of the list.
struct MoeTile {
    int64_t expert, row;  // first row in plan order
    uint32_t rows, column, columns;
};

/// Calls f(tile, number) for the tiles of this core, `number` counting them from 0.
template <class F>
__aicore__ inline int64_t each_tile(const MoeTiling& t, int64_t core, uint32_t tile_columns, F&& f) {
    const GlobalTensor<int32_t> offsets = global<int32_t>(t.expert_offsets);
    const int64_t n_tiles = div_up(t.n, tile_columns);
    int64_t index = 0, number = 0, begin = offsets.GetValue(0);
    for (int64_t expert = 0; expert < t.num_experts; ++expert) {
        const int64_t end = offsets.GetValue(expert + 1);
        for (int64_t row = begin; row < end; row += kTileM) {
            // The first tile of this strip that is ours.
            const int64_t first = (core - index % t.num_blocks + t.num_blocks) % t.num_blocks;
            for (int64_t tile = first; tile < n_tiles; tile += t.num_blocks) {
                const uint32_t column = static_cast<uint32_t>(tile) * tile_columns;
                f(MoeTile{expert, row, static_cast<uint32_t>(least<int64_t>(kTileM, end - row)), column,
                          least(tile_columns, t.n - column)},
                  number++);
            }
            index += n_tiles;
        }
        begin = end;
    }
    return number;
}

__aicore__ inline GlobalTensor<float> ring_slot(const void* ring, int64_t core, int64_t number) {
    return global<float>(ring)[(core * kRingBytes + number % 2 * kTileBytes) / sizeof(float)];
}

/// The cube's side. kPair: gate and up columns share a tile, else a tile is 256 columns of one matrix.
template <bool kPair>
__aicore__ inline void moe_cube(const MoeTiling& t) {
    TPipe pipe;
    CubeTile<bfloat16_t, float> cube(pipe);
    cube.open();
    const int64_t core = GetBlockIdx();
    const GlobalTensor<bfloat16_t> weight = global<bfloat16_t>(t.weight);
    const GlobalTensor<bfloat16_t> x = global<bfloat16_t>(kPair ? t.rows : t.x);
    const int64_t x_stride = kPair ? t.k_pitch : t.x_stride;
    each_tile(t, core, kPair ? kHalfN : kTileN, [&](const MoeTile& tile, int64_t number) MMX_DEVICE_LAMBDA {
        CrossCoreWaitFlag(kFlagFree);
        const int64_t expert_rows = kPair ? 2 * int64_t{t.n} : t.n;
        const int64_t row0 = tile.expert * expert_rows + tile.column, row1 = row0 + (kPair ? t.n : kHalfN);
        const uint32_t n0 = least(tile.columns, kHalfN), n1 = kPair ? n0 : tile.columns - n0;
        // A half without rows must not point behind the weights.
        const Matrix<bfloat16_t> b0{weight[row0 * t.k], t.k}, b1{weight[(n1 > 0 ? row1 : row0) * t.k], t.k};
        cube.multiply(ring_slot(t.ring, core, number), {x[tile.row * x_stride], x_stride}, tile.rows, b0, n0,
                      b1, n1, t.k);
        CrossCoreSetFlag<2, PIPE_FIX>(kFlagReady);
    });
    cube.close();
    CrossCoreWaitFlag(kFlagFree);
    CrossCoreWaitFlag(kFlagFree);
}

/// The vector cores' side.
template <bool kPair>
class MoeFinish {
  public:
    __aicore__ inline MoeFinish(TPipe& pipe, const MoeTiling& t) : t_(t) {
        pipe.InitBuffer(in_, 2 * 2 * kSliceElements * sizeof(float));
        pipe.InitBuffer(work_, kSliceElements * sizeof(float));
        pipe.InitBuffer(out_, 2 * kSliceElements * sizeof(bfloat16_t));
    }

    __aicore__ inline void process() {
        open();
        CrossCoreSetFlag<2, PIPE_MTE2>(kFlagFree);
        CrossCoreSetFlag<2, PIPE_MTE2>(kFlagFree);
        const int64_t core = GetBlockIdx() / 2;
        each_tile(
            t_, core, kPair ? kHalfN : kTileN, [&](const MoeTile& tile, int64_t number) MMX_DEVICE_LAMBDA {
                CrossCoreWaitFlag(kFlagReady);
                const GlobalTensor<float> values = ring_slot(t_.ring, core, number);
                const Share rows = tile_rows(tile.rows);
                for (int64_t row = rows.begin; row < rows.end; row += kSliceRows) {
                    const uint32_t count = static_cast<uint32_t>(least<int64_t>(kSliceRows, rows.end - row));
                    if constexpr (kPair) {
                        slice(values, tile, row, count, 0);
                    } else {
                        for (uint32_t half = 0; half * kHalfN < tile.columns; ++half)
                            slice(values, tile, row, count, half);
                    }
                }
                CrossCoreSetFlag<2, PIPE_MTE2>(kFlagFree);
            });
        close();
    }

    /// Before the products of gate_up: rows of x in plan order, dense.
    __aicore__ inline void gather() {
        const int64_t total = global<int32_t>(t_.expert_offsets).GetValue(t_.num_experts);
        const Share rows = share(total, GetBlockIdx(), GetBlockNum() * GetTaskRation());
        const GlobalTensor<int32_t> sorted = global<int32_t>(t_.sorted_rows);
        const LocalTensor<bfloat16_t> buffer = in_.Get<bfloat16_t>();
        const uint32_t half = 2 * kSliceElements * sizeof(float) / sizeof(bfloat16_t);
        SetFlag<HardEvent::MTE3_MTE2>(EVENT_ID0);
        SetFlag<HardEvent::MTE3_MTE2>(EVENT_ID1);
        int32_t slot = 0;
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            const int64_t token = sorted.GetValue(row) / t_.topk;
            for (uint32_t column = 0; column < t_.k; column += half, slot ^= 1) {
                const uint32_t count = least(half, t_.k - column);
                WaitFlag<HardEvent::MTE3_MTE2>(slot);
                load_rows(buffer[slot * half], global<bfloat16_t>(t_.x)[token * t_.x_stride + column], 1,
                          count, count, round_up(count, 16));
                SetFlag<HardEvent::MTE2_MTE3>(slot);
                WaitFlag<HardEvent::MTE2_MTE3>(slot);
                DataCopy(global<bfloat16_t>(t_.rows)[row * t_.k_pitch + column], buffer[slot * half],
                         round_up(count, 16));
                SetFlag<HardEvent::MTE3_MTE2>(slot);
            }
        }
        WaitFlag<HardEvent::MTE3_MTE2>(EVENT_ID0);
        WaitFlag<HardEvent::MTE3_MTE2>(EVENT_ID1);
    }

  private:
    __aicore__ inline void open() {
        for (int32_t slot = 0; slot < 2; ++slot) {
            SetFlag<HardEvent::V_MTE2>(slot);
            SetFlag<HardEvent::MTE3_V>(slot);
        }
    }
    __aicore__ inline void close() {
        for (int32_t slot = 0; slot < 2; ++slot) {
            WaitFlag<HardEvent::V_MTE2>(slot);
            WaitFlag<HardEvent::MTE3_V>(slot);
        }
    }

    __aicore__ inline void slice(const GlobalTensor<float>& values, const MoeTile& tile, int64_t row,
                                 uint32_t rows, uint32_t half) {
        const LocalTensor<float> gate = in_.Get<float>()[slot_ * 2 * kSliceElements],
                                 up = gate[kSliceElements];
        const LocalTensor<bfloat16_t> out = out_.Get<bfloat16_t>()[slot_ * kSliceElements];
        const int32_t count = static_cast<int32_t>(rows * kHalfN);
        WaitFlag<HardEvent::V_MTE2>(slot_);
        load_half(gate, values, row, rows, half);
        if constexpr (kPair) load_half(up, values, row, rows, 1);
        SetFlag<HardEvent::MTE2_V>(slot_);
        WaitFlag<HardEvent::MTE2_V>(slot_);
        if constexpr (kPair) activate(gate, up, work_.Get<float>(), count);
        WaitFlag<HardEvent::MTE3_V>(slot_);
        Cast(out, gate, RoundMode::CAST_RINT, count);
        SetFlag<HardEvent::V_MTE2>(slot_);
        SetFlag<HardEvent::V_MTE3>(slot_);
        WaitFlag<HardEvent::V_MTE3>(slot_);
        const uint32_t columns = kPair ? tile.columns : least(kHalfN, tile.columns - half * kHalfN);
        store_rows(global<bfloat16_t>(t_.out)[(tile.row + row) * t_.n + tile.column + half * kHalfN], out,
                   rows, columns, t_.n, kHalfN);
        SetFlag<HardEvent::MTE3_V>(slot_);
        slot_ ^= 1;
    }

    /// gate = act(gate, up); up is spent.
    __aicore__ inline void activate(const LocalTensor<float>& gate, const LocalTensor<float>& up,
                                    const LocalTensor<float>& work, int32_t count) {
        float slope = -1.0f;
        if (t_.oai) {
            slope = -t_.alpha;
            Mins(gate, gate, t_.limit, count);
            Mins(up, up, t_.limit, count);
            PipeBarrier<PIPE_V>();
            Maxs(up, up, -t_.limit, count);
            PipeBarrier<PIPE_V>();
            Adds(up, up, 1.0f, count);
        }
        // exp overflows to infinity for very negative gates, and gate / infinity is the right 0.
        Muls(work, gate, slope, count);
        PipeBarrier<PIPE_V>();
        Exp(work, work, count);
        PipeBarrier<PIPE_V>();
        Adds(work, work, 1.0f, count);
        PipeBarrier<PIPE_V>();
        Div(gate, gate, work, count);
        PipeBarrier<PIPE_V>();
        Mul(gate, gate, up, count);
        PipeBarrier<PIPE_V>();
    }

    const MoeTiling& t_;
    TBuf<TPosition::VECCALC> in_, work_, out_;
    int32_t slot_ = 0;
};

__aicore__ inline void moe_gate_up_kernel(const MoeTiling& t) {
    if ASCEND_IS_AIV {
        TPipe pipe;
        MoeFinish<true> finish(pipe, t);
        finish.gather();
        SyncAll<false>();
        finish.process();
    } else {
        SyncAll<false>();
        moe_cube<true>(t);
    }
}

__aicore__ inline void moe_down_kernel(const MoeTiling& t) {
    if ASCEND_IS_AIV {
        TPipe pipe;
        MoeFinish<false>(pipe, t).process();
    } else {
        moe_cube<false>(t);
    }
}

}  // namespace mmx::ascend
