#pragma once

#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/ptx/wgmma_n.cuh"
#include "cuda/kernels/attention/sm90_rows.cuh"
#include "cuda/kernels/attention/sm90_tile_feed.cuh"

/// What the two warpgroups do that work on the rows of a tile.
namespace mmx::cuda::sm90 {

/// A thread's two rows: running maximum of the raw scores and its own share of the sum of weights.
struct Rows {
    float best[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
};

/// Keys past last_key[row] do not count.
__device__ __forceinline__ void mask(float (&s)[64], const int (&last_key)[2], int t) {
#pragma unroll
    for (int j = 0; j < 16; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e)
            if (8 * j + 2 * t + e % 2 > last_key[e / 2]) s[4 * j + e] = -INFINITY;
}

/// Turns scores into weights 2^(score * scale - maximum * scale).
struct Softmax {
    float scale_log2[2], shift[2];

    /// `rescale` brings earlier sums to the new maximum. A maximum that weights exceed by no more than
    /// 2^kSlack stays as it is: they have the same relative errors, and sums need no rescaling.
    template <int kSlack>
    __device__ __forceinline__ void begin(const float (&s)[64], Rows& rows, float (&rescale)[2],
                                          const float (&scale)[2]) {
        float best[2] = {rows.best[0], rows.best[1]};
#pragma unroll
        for (int j = 0; j < 16; ++j)
#pragma unroll
            for (int row = 0; row < 2; ++row)
                best[row] = fmaxf(best[row], fmaxf(s[4 * j + 2 * row], s[4 * j + 2 * row + 1]));
        quad_max(best);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            scale_log2[row] = scale[row];
            if (kSlack > 0 && (best[row] - rows.best[row]) * scale[row] <= kSlack) best[row] = rows.best[row];
            // -inf - -inf would be NaN.
            shift[row] = best[row] == -INFINITY ? 0 : __fmul_rn(best[row], scale[row]);
            // Exactly 1 where the maximum stays: sums are then left alone. Rounded alike wherever the
            // compiler puts this: with parts, equal rows must get equal bits.
            const float change = ptx::exp2_approx(fmaf(rows.best[row], scale[row], -shift[row]));
            rescale[row] = best[row] == rows.best[row] ? 1.0f : change;
            rows.best[row] = best[row];
            rows.sum[row] = __fmul_rn(rows.sum[row], rescale[row]);
        }
    }
    /// Half of the keys.
    template <int kHalf>
    __device__ __forceinline__ void weigh(float (&s)[64], Rows& rows) const {
#pragma unroll
        for (int j = 8 * kHalf; j < 8 * kHalf + 8; ++j)
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                float* pair = s + 4 * j + 2 * row;
                pair[0] = ptx::exp2_approx(fmaf(pair[0], scale_log2[row], -shift[row]));
                pair[1] = ptx::exp2_approx(fmaf(pair[1], scale_log2[row], -shift[row]));
                rows.sum[row] += pair[0] + pair[1];
            }
    }
};

/// Products of bf16, or of f16 for codes.
template <bool kCodes>
__device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    if constexpr (kCodes)
        ptx::Wgmma<128>::f16(d, a, b, accumulate);
    else
        ptx::Wgmma<128>::bf16(d, a, b, accumulate);
}

template <bool kCodes>
__device__ __forceinline__ void multiply_transposed(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
    if constexpr (kCodes)
        ptx::wgmma_transposed_f16(d, a, b, true);
    else
        ptx::wgmma_transposed_bf16(d, a, b, true);
}

/// Zeros that the compiler does not know: where some warps have constants as operands, the assembler
/// serialises all products (C7512).
__device__ __forceinline__ void clear_operand(uint32_t (&a)[4]) {
#pragma unroll
    for (uint32_t& x : a) asm volatile("mov.b32 %0, 0;" : "=r"(x));
}

/// What brings two sums of weighted rows to their larger maximum (base 2).
struct JoinFactors {
    float max, total, part;

    __device__ __forceinline__ JoinFactors(float total_max, float part_max)
        : max(fmaxf(total_max, part_max)) {
        const float shift = max == -INFINITY ? 0.0f : max;
        total = ptx::exp2_approx(total_max - shift);
        part = ptx::exp2_approx(part_max - shift);
    }
    __device__ __forceinline__ float operator()(float total_sum, float part_sum) const {
        return fmaf(part_sum, part, __fmul_rn(total_sum, total));
    }
};

/// 64 rows of each tile. While the weights of a page are made, the product of the page before with V runs;
/// the two warpgroups issue their products in turn.
template <class C, TileMode kMode>
__device__ __forceinline__ void consume(const TileJob& job, Shared<C>& shared, int team) {
    constexpr bool kCodes = sizeof(C) == 1, kListed = kMode == TileMode::kListed,
                   kParts = kMode == TileMode::kParts;
    const PagedAttentionParams& p = job.p;
    const int tid = static_cast<int>(threadIdx.x) % 128, warp_idx = tid / 32, lane_idx = tid % 32;
    const int g = lane_idx / 4, t = lane_idx % 4;
    // Row r of a tile is token r / group, exactly so because r < 128.
    const int row = team * 64 + warp_idx * 16 + g;
    const auto token_of = [&](int half) { return (row + 8 * half) * job.group_inverse >> 16; };
    const auto release = [&](uint64_t& barrier) {
        __syncwarp();  // all lanes have read
        if (lane_idx == 0) ptx::barrier_arrive(barrier);
    };
    // Barrier 2 + i: team i may issue.
    const bool alone = kParts && job.num_teams == 1;
    const auto await_turn = [&] {
        if (!alone) ptx::named_barrier(2 + team, 2 * 128);
    };
    const auto pass_turn = [&] {
        if (!alone) ptx::named_barrier_arrive(2 + (team ^ 1), 2 * 128);
    };
    if (team == 1) pass_turn();

    Ring<kQSlots<C>> q(0);
    Ring<kTileSlots> slot(0);
    Ring<kStages> k(0), v(0);
    float s[64], o[64], rescale[2];
    uint32_t weights[8][4];
    Rows rows;
    int block = 0;         // listed: TilePage::block_and_tokens
    int num_left = 0;      // pages of the tile after this one
    int position = 0;      // of the tile's first token; listed: of this warp's
    int num_keys = kPage;  // slots in use of the page whose V comes next
    float scale_log2[2] = {job.scale_log2, job.scale_log2}, out_scale = 1;
    const auto multiply_keys = [&] {
        const ptx::UniformOperand a(ptx::smem_address(shared.q[q.at]) + team * 64 * 128);
        const ptx::UniformOperand b(ptx::smem_address(shared.k[k.at]));
        ptx::wgmma_begin();
#pragma unroll
        for (int step = 0; step < 8; ++step)
            multiply<kCodes>(s, a + (step / 4 * kHalfQBytes + step % 4 * 32),
                             b + (step / 4 * kHalfPageBytes + step % 4 * 32), step > 0);
        ptx::wgmma_commit();
    };
    const auto multiply_values = [&] {
        const ptx::UniformOperand b(ptx::smem_address(shared.v[v.at]), kHalfPageBytes);
        ptx::wgmma_begin();
#pragma unroll
        for (int step = 0; step < 8; ++step)
            multiply_transposed<kCodes>(o, weights[step], b + step * 16 * 128);
        ptx::wgmma_commit();
    };
    const auto await_keys = [&] {
        ptx::barrier_wait(shared.k_full[k.at], k.parity);
        block = kListed ? shared.chosen[k.at] : block - 1;
        --num_left;
    };
    const auto await_values = [&] {
        ptx::barrier_wait(shared.v_full[v.at], v.parity);
        if (num_keys == kPage) return;
        // Unused slots may hold NaN, and 0 x NaN is NaN. Both teams write the same zeros.
        for (int b = tid; b < (kPage - num_keys) * 16; b += 128) {
            const int key = num_keys + b / 16, half = b / 8 % 2;
            *reinterpret_cast<uint4*>(shared.v[v.at] + half * kHalfPageBytes + key * 128 + b % 8 * 16) =
                make_uint4(0, 0, 0, 0);
        }
        num_keys = kPage;
        ptx::fence_async_proxy();
        ptx::named_barrier(4 + team, 128);
    };
    const auto leave_keys = [&] {
        ptx::keep_registers(s);
        release(shared.k_empty[k.at]);
        k.advance();
        if (num_left > 0) return;
        release(shared.q_empty[q.at]);
        q.advance();
    };
    const auto leave_values = [&] {
        ptx::keep_registers(o);
        release(shared.v_empty[v.at]);
        v.advance();
    };
    /// Scores become weights; `leave_product` waits for the product before, whose sums are scaled to the new
    /// maximum if they are of the same tile.
    const auto weigh_page = [&]<bool kMasked, bool kSameTile>(auto&& leave_product) {
        // The 16 rows of a warp of a listed tile are one token, which may not attend to the page.
        const bool chosen = !kListed || (block >> (team * 4 + warp_idx) & 1) != 0;
        const int first = position - (kListed ? block >> kTilePageShift : block) * kPage;
        Softmax softmax;
        if (chosen) {
            if (kListed ? first < kPage - 1 : kMasked)
                mask(s, {first + (kListed ? 0 : token_of(0)), first + (kListed ? 0 : token_of(1))}, t);
            softmax.begin<kListed ? 8 : 0>(s, rows, rescale, scale_log2);
            softmax.weigh<0>(s, rows);
            if constexpr (!kListed) softmax.weigh<1>(s, rows);
        }
        leave_product();
        if (!chosen) {
#pragma unroll
            for (auto& step : weights) clear_operand(step);
            return;
        }
        // These hide what follows.
        if constexpr (kListed) softmax.weigh<1>(s, rows);
#pragma unroll
        for (int j = 0; j < 16; ++j)
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                const float *pair = s + 4 * j + 2 * row, low = pair[0], high = pair[1];
                weights[j / 2][j % 2 * 2 + row] =
                    kCodes ? ptx::pack_f16(low, high) : ptx::pack_bf16(low, high);
            }
        if (kSameTile && __any_sync(kFull, rescale[0] != 1 || rescale[1] != 1)) {
#pragma unroll
            for (int i = 0; i < 64; ++i) o[i] *= rescale[i / 2 % 2];
        }
    };
    /// The tile in `slot`, or none if there are no more.
    const auto next_tile = [&] {
        ptx::barrier_wait(shared.q_full[q.at], q.parity);
        num_left = shared.tile[slot.at].num_pages;
        block = kParts ? shared.tile[slot.at].first_block + num_left : num_left;
        position = shared.tile[slot.at].first_position + (kListed ? team * 4 + warp_idx : 0);
        rows = Rows{};
        if constexpr (kCodes) {
            if (num_left == 0) return false;
            const int head = shared.tile[slot.at].head;
            const float scale = job.scale_log2 * (p.k_scale ? p.k_scale[head] : 1.0f);
            out_scale = p.v_scale ? p.v_scale[head] : 1.0f;
            const float factor =
                rows_to_f16(ptx::smem_address(shared.q[q.at]) + team * 64 * 128, kHalfQBytes);
#pragma unroll
            for (int half = 0; half < 2; ++half)
                scale_log2[half] = scale * __shfl_sync(kFull, factor, 2 * g + 16 * half);
            ptx::fence_async_proxy();
            ptx::named_barrier(4 + team, 128);
        }
        return num_left > 0;
    };
    const auto clear_values = [&] {
#pragma unroll
        for (int i = 0; i < 64; ++i) o[i] = 0;
    };
    const auto row_sum = [&](float x) {
        x += __shfl_xor_sync(kFull, x, 1);
        return x + __shfl_xor_sync(kFull, x, 2);
    };
    /// Head of row g (half 0) or g + 8 of a tile.
    const auto head_of = [&](const RowTile& tile, int half) {
        return tile.head * job.group + row + 8 * half - token_of(half) * job.group;
    };
    /// `sum`: of each row's weights.
    const auto store = [&](const RowTile& tile, const float (&sum)[2], float scale) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int token = token_of(half);
            bf16* out = static_cast<bf16*>(p.out) + (tile.first_token + token) * p.out_token_stride +
                        head_of(tile, half) * p.out_head_stride;
            store_row_bf16(out, o, half, sum[half] == 0 ? 0.0f : __fdividef(scale, sum[half]), t,
                           token < tile.num_tokens);
        }
    };
    /// What is known of a tile or part when its last product with V is still on its way.
    struct Done {
        float sum[2], max[2], scale;
    };
    const auto done_now = [&] {
        Done done{{rows.sum[0], rows.sum[1]}, {}, out_scale};
        if constexpr (kParts) {
#pragma unroll
            for (int half = 0; half < 2; ++half)
                done.max[half] =
                    rows.best[half] == -INFINITY ? -INFINITY : __fmul_rn(rows.best[half], scale_log2[half]);
        }
        return done;
    };
    /// Sums of a part for the kernel that joins them.
    const auto store_part = [&](const RowTile& tile, const Done& done) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int token = token_of(half);
            if (token >= tile.num_tokens) continue;
            const int64_t place =
                (static_cast<int64_t>(tile.first_token + token) * p.num_heads + head_of(tile, half)) *
                    job.max_parts +
                tile.first_block / kPartPages;
            if (t == 0) job.part_stats[place] = make_float2(done.max[half], done.sum[half]);
#pragma unroll
            for (int j = 0; j < 16; ++j)
                *reinterpret_cast<float2*>(job.part_sums + place * kDim + 8 * j + 2 * t) =
                    make_float2(o[4 * j + 2 * half], o[4 * j + 2 * half + 1]);
        }
    };
    float total_max[2], total_sum[2];  // of the tile's parts so far
    /// Joins a part with those before it, and stores the tile behind its last one.
    const auto join_part = [&](const RowTile& tile, const Done& done, bool first, bool last) {
        float4* totals =
            job.totals + static_cast<int64_t>(blockIdx.x) * (kDim / 2 / 4 * 256) + team * 128 + tid;
        if (first) {
#pragma unroll
            for (int half = 0; half < 2; ++half)
                total_max[half] = done.max[half], total_sum[half] = done.sum[half];
        } else {
            const JoinFactors join[2] = {{total_max[0], done.max[0]}, {total_max[1], done.max[1]}};
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                total_max[half] = join[half].max;
                total_sum[half] = join[half](total_sum[half], done.sum[half]);
            }
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const float4 x = totals[i * 256];
                o[4 * i] = join[0](x.x, o[4 * i]);
                o[4 * i + 1] = join[0](x.y, o[4 * i + 1]);
                o[4 * i + 2] = join[1](x.z, o[4 * i + 2]);
                o[4 * i + 3] = join[1](x.w, o[4 * i + 3]);
            }
        }
        if (last) return store(tile, total_sum, done.scale);
#pragma unroll
        for (int i = 0; i < 16; ++i)
            totals[i * 256] = make_float4(o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]);
    };
    /// Behind the last product with V of a tile, or of a part of one.
    const auto finish = [&](const RowTile& tile, Done& done, bool first, bool last) {
#pragma unroll
        for (float& sum : done.sum) sum = row_sum(sum);
        if constexpr (kParts)
            job.part_sums ? store_part(tile, done) : join_part(tile, done, first, last);
        else
            store(tile, done.sum, done.scale);
    };
    /// Scores of a page beside the product with V of the page before, which has arrived.
    const auto step = [&]<bool kMasked, bool kSameTile>() {
        await_keys();
        await_turn();
        multiply_keys();
        multiply_values();
        pass_turn();
        ptx::wgmma_wait<1>();
        leave_keys();
        weigh_page.template operator()<kMasked, kSameTile>([&] {
            ptx::wgmma_wait_after(rows.sum[0] + rows.sum[1]);
            leave_values();
        });
    };
    const auto next_page = [&]<bool kMasked>() {
        await_values();
        step.template operator()<kMasked, true>();
    };

    if (!next_tile()) return;
    num_keys = shared.tile[slot.at].num_keys;
    await_keys();
    multiply_keys();
    ptx::wgmma_wait<0>();
    leave_keys();
    weigh_page.template operator()<true, false>([] {});
    clear_values();
    bool first_part = true;
    for (;;) {
        // The block at which the tile, or this part of it, ends.
        const int end = kParts ? block / kPartPages * kPartPages : 0;
        if constexpr (kListed) {
            while (num_left > 0) next_page.template operator()<false>();
        } else {
            // Blocks that every row sees all of.
            const int num_whole = (position + 1) / kPage;
            while (block > max(num_whole, end)) next_page.template operator()<true>();
            while (block > end) next_page.template operator()<false>();
        }
        // The last product with V runs beside the first one of the next tile or part.
        await_values();
        Done done = done_now();
        const RowTile& tile = shared.tile[slot.at];
        const bool last_part = !kParts || num_left == 0;
        if (last_part) {
            slot.advance();
            if (!next_tile()) {
                multiply_values();
                ptx::wgmma_wait<0>();
                leave_values();
                finish(tile, done, first_part, true);
                return;
            }
            num_keys = shared.tile[slot.at].num_keys;
        } else {
            rows = Rows{};
        }
        step.template operator()<true, false>();
        finish(tile, done, first_part, last_part);
        first_part = last_part;
        clear_values();
    }
}

}  // namespace mmx::cuda::sm90
