#pragma once

#include <utility>

#include "cuda/kernels/moe/sm90_fp8_tile.cuh"

/// Weights are the first operand of the products, rows of x their columns: a tile has as many columns as an
/// expert has rows, in steps of 8.
namespace mmx::cuda::sm90 {

/// The scales of this thread's columns.
template <int kN>
__device__ __forceinline__ void fp8_load_scales(float (&scales)[kN / 4], const float* run) {
#pragma unroll
    for (int i = 0; i + 4 <= kN / 4; i += 4) {
        const float4 s = *reinterpret_cast<const float4*>(run + i);
        scales[i] = s.x, scales[i + 1] = s.y, scales[i + 2] = s.z, scales[i + 3] = s.w;
    }
    if constexpr (kN / 8 % 2 == 1) {
        const float2 s = *reinterpret_cast<const float2*>(run + kN / 4 - 2);
        scales[kN / 4 - 2] = s.x, scales[kN / 4 - 1] = s.y;
    }
}

/// acc += part * (scale of the column * that of the weights).
template <int kN>
__device__ __forceinline__ void fp8_promote(float (&acc)[kN / 2], const float (&part)[kN / 2],
                                            const float (&scales)[kN / 4], float weight_scale) {
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {
        const int j = i / 2 * 4 + i % 2;
        const float scale = scales[i] * weight_scale;
        acc[j] = fmaf(part[j], scale, acc[j]);
        acc[j + 2] = fmaf(part[j + 2], scale, acc[j + 2]);
    }
}

template <class C, int kN>
__device__ __forceinline__ void fp8_multiply_columns(float (&acc)[C::kHalves][kN / 2], Fp8Shared<C>& shared,
                                                     Ring<C::kStages>& ring, int num_steps, int group) {
    const int lane_idx = static_cast<int>(threadIdx.x) % 32;
    // Offset of the group's rows of half h in a stage of weights.
    const auto half_offset = [&](int h) {
        return C::kGateUp ? h * C::kBoxBytes + group * kFp8Half * kFp8Block
                          : (group * 2 + h) * kFp8Half * kFp8Block;
    };
    const auto multiply = [&](float (&part)[kN / 2], int stage, int h) {
        const uint64_t a = ptx::wgmma_operand(ptx::smem_address(shared.weights[stage]) + half_offset(h));
        const uint64_t b = ptx::wgmma_operand(ptx::smem_address(shared.rows[stage]));
        ptx::wgmma_begin();
#pragma unroll
        for (int k = 0; k < kFp8Block / 32; ++k)
            ptx::Wgmma<kN>::e4m3(part, a + (k * 32 >> 4), b + (k * 32 >> 4), k > 0);
        ptx::wgmma_commit();
    };
    const auto promote = [&](const float (&part)[kN / 2], int stage, int h) {
        const float* weights = shared.scale.weights[stage];
        float scales[kN / 4];
        fp8_load_scales<kN>(scales, shared.scale.rows[stage] + lane_idx % 4 * C::kScaleRun);
        fp8_promote<kN>(acc[h], part, scales, weights[C::kGateUp ? h : group]);
    };
    for (int step = 0; step < num_steps; ++step) {
        const int stage = ring.at;
        float part[C::kHalves][kN / 2];
        ptx::barrier_wait(shared.full[stage], ring.parity);
#pragma unroll
        for (int h = 0; h < C::kHalves; ++h) multiply(part[h], stage, h);
        [&]<int... kHalf>(std::integer_sequence<int, kHalf...>) {
            (
                [&] {
                    ptx::wgmma_wait<C::kHalves - 1 - kHalf>();
                    ptx::keep_registers(part[kHalf]);
                    promote(part[kHalf], stage, kHalf);
                }(),
                ...);
        }(std::make_integer_sequence<int, C::kHalves>{});
        fp8_release<C>(shared, stage);
        ring.advance();
    }
}

/// One exchange of fp8_column_amax: this lane keeps the lower or the upper kCount columns; returns which, as
/// the number of the first.
template <int kCount, int kColumns>
__device__ __forceinline__ int fp8_halve(float (&most)[kColumns], int offset) {
    const bool is_upper = (threadIdx.x & offset) != 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const float theirs = is_upper ? most[i] : most[i + kCount];
        most[i] = fmaxf(is_upper ? most[i + kCount] : most[i], __shfl_xor_sync(0xFFFFFFFFu, theirs, offset));
    }
    return is_upper ? kCount : 0;
}

/// amax[column] = largest magnitude of the warp's 16 rows. Lanes that differ in rows halve the columns
/// between them with every exchange.
template <int kN>
__device__ __forceinline__ void fp8_column_amax(float* amax, const float (&h)[kN / 2]) {
    constexpr int kColumns = (kN / 4 + 7) / 8 * 8;  // of a lane
    const int lane_idx = static_cast<int>(threadIdx.x) % 32;
    float most[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
        most[i] = i < kN / 4 ? fmaxf(fabsf(h[i / 2 * 4 + i % 2]), fabsf(h[i / 2 * 4 + i % 2 + 2])) : 0.0f;
    int first = fp8_halve<kColumns / 2>(most, 16) + fp8_halve<kColumns / 4>(most, 8);
    first += fp8_halve<kColumns / 8>(most, 4);
#pragma unroll
    for (int c = 0; c < kColumns / 8; ++c) {
        const int i = first + c, column = i / 2 * 8 + lane_idx % 4 * 2 + i % 2;
        if (column < kN) amax[column] = most[c];
    }
}

/// Gate and up: the activation in fp32, then e4m3 with a scale per row and 128 channels.
template <class C, int kN>
__device__ __forceinline__ void fp8_store_column_gate_up(const Fp8Job& job, float (&acc)[C::kHalves][kN / 2],
                                                         Fp8Shared<C>& shared, const MoeUnit& unit,
                                                         int group) {
    constexpr int kConsumers = 128 * C::kGroups;
    const int tid = static_cast<int>(threadIdx.x) - 128, warp_idx = tid / 32 % 4, lane_idx = tid % 32;
    const int t = lane_idx % 4;
    float (&h)[kN / 2] = acc[0];
    fp8_activate(job, h, acc[1]);
    fp8_column_amax<kN>(shared.scale.amax[group * 4 + warp_idx], h);
    ptx::named_barrier(1, kConsumers);
    if (tid < kN) {
        float most = 0;
#pragma unroll
        for (int i = 0; i < 4 * C::kGroups; ++i) most = fmaxf(most, shared.scale.amax[i][tid]);
        most = fmaxf(most, kFp8LeastAmax);
        shared.scale.factor[tid] = kFp8Max / most;
        if (tid < unit.num_rows)
            job.out_scale[static_cast<int64_t>(unit.first_row + tid) * (job.weight_rows / 256) +
                          unit.weight_tile] = most / kFp8Max;
    }
    ptx::named_barrier(1, kConsumers);
    // A pair of 8-bit channels g and g + 8 travels as one 16-bit element through the transpose.
    const int slab = group * 4 + warp_idx;
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
        const float2 f = *reinterpret_cast<const float2*>(&shared.scale.factor[8 * j + 2 * t]);
        const uint32_t left = ptx::pack_e4m3(h[4 * j] * f.x, h[4 * j + 2] * f.x);
        const uint32_t right = ptx::pack_e4m3(h[4 * j + 1] * f.y, h[4 * j + 3] * f.y);
        uint8_t* to = shared.staged + (8 * j + lane_idx % 8) * C::kStagedRow + slab * 16;
        ptx::store_matrix_transposed(ptx::smem_address(to), left | right << 16);
    }
    ptx::named_barrier(1, kConsumers);
    constexpr int kSlabs = 4 * C::kGroups;
    for (int i = tid; i < unit.num_rows * kSlabs; i += kConsumers) {
        const int row = i / kSlabs, column = i % kSlabs;
        const uint4 v = *reinterpret_cast<const uint4*>(shared.staged + row * C::kStagedRow + column * 16);
        const uint4 sorted = make_uint4(__byte_perm(v.x, v.y, 0x6420), __byte_perm(v.z, v.w, 0x6420),
                                        __byte_perm(v.x, v.y, 0x7531), __byte_perm(v.z, v.w, 0x7531));
        uint8_t* out = static_cast<uint8_t*>(job.out) +
                       static_cast<int64_t>(unit.first_row + row) * (job.weight_rows / 2) +
                       unit.weight_tile * 128 + column * 16;
        *reinterpret_cast<uint4*>(out) = sorted;
    }
}

template <class C, int kN>
__device__ __forceinline__ void fp8_store_columns(const Fp8Job& job, const float (&acc)[C::kHalves][kN / 2],
                                                  Fp8Shared<C>& shared, const MoeUnit& unit, int group) {
    const int tid = static_cast<int>(threadIdx.x) % 128, warp_idx = tid / 32, lane_idx = tid % 32;
    uint8_t* staged = shared.staged + group * 32 * C::kStagedRow;
    const int channel = unit.weight_tile * C::kTileRows + group * 128;
    const bool in_range = channel < job.weight_rows;
    bf16* out = static_cast<bf16*>(job.out) + unit.first_row * job.out_stride + channel;
    // Where this lane's matrix row starts: matrices are the halves' rows 0 to 7 and 8 to 15 of the warp.
    const int matrix = C::kHalves == 2 ? lane_idx / 8 : 0;
    const int column = matrix / 2 * 64 + warp_idx * 16 + matrix % 2 * 8;
#pragma unroll
    for (int j0 = 0; j0 < kN / 8; j0 += 4) {
#pragma unroll
        for (int j = j0; j < kN / 8 && j < j0 + 4; ++j) {
            const auto pair = [&](int h, int i) {
                return ptx::pack_bf16(acc[h][4 * j + 2 * i], acc[h][4 * j + 2 * i + 1]);
            };
            const uint32_t to =
                ptx::smem_address(staged + ((j - j0) * 8 + lane_idx % 8) * C::kStagedRow) + column * 2;
            if constexpr (C::kHalves == 2) {
                ptx::store_matrices_transposed(to, {pair(0, 0), pair(0, 1), pair(1, 0), pair(1, 1)});
            } else if (warp_idx * 16 < C::kChannels) {
                ptx::store_matrix_transposed(to, pair(0, 0));
                ptx::store_matrix_transposed(to + 16, pair(0, 1));
            }
        }
        ptx::named_barrier(2 + group, 128);
        constexpr int kPieces = C::kChannels / 8;  // of 16 bytes per row
        const int count = min(32, unit.num_rows - 8 * j0);
        if (in_range)
            for (int i = tid; i < count * kPieces; i += 128) {
                const int row = i / kPieces, piece = i % kPieces;
                const uint4 v = *reinterpret_cast<const uint4*>(staged + row * C::kStagedRow + piece * 16);
                *reinterpret_cast<uint4*>(out + (8 * j0 + row) * job.out_stride + piece * 8) = v;
            }
        ptx::named_barrier(2 + group, 128);
    }
}

template <class C>
__device__ __forceinline__ void fp8_consume_columns(const Fp8Job& job, Fp8Shared<C>& shared, int first_item,
                                                    int item_step) {
    const int group = static_cast<int>(threadIdx.x) / 128 - 1;
    Ring<C::kStages> ring(0);
    for (int item = first_item; item < shared.list.num_items(); item += item_step) {
        const MoeUnit unit = shared.list.unit(item, 0);
        ptx::dispatch_columns<C::kMaxHeight>(unit.height, [&]<int kN>() {
            float acc[C::kHalves][kN / 2] = {};
            fp8_multiply_columns<C, kN>(acc, shared, ring, job.num_steps, group);
            if constexpr (C::kGateUp)
                fp8_store_column_gate_up<C, kN>(job, acc, shared, unit, group);
            else
                fp8_store_columns<C, kN>(job, acc, shared, unit, group);
        });
    }
}

}  // namespace mmx::cuda::sm90
