#include "cuda/kernels/moe/sm90_fp8_wide.h"

#include <algorithm>
#include <type_traits>

#include "cuda/common/chain.h"
#include "cuda/common/ptx/elect.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/kernels/moe/choose_fp8.h"
#include "cuda/kernels/moe/row_copies.cuh"
#include "cuda/kernels/moe/sm90_fp8_wide_work.cuh"

/// Tiles of 128 rows of x x 256 weight rows: with rows first a thread needs the scales of two rows, not of 32
/// columns, and a row's largest magnitude lies in four lanes. Each of two warpgroups has 64 rows and all of
/// the tile's weights, and shares nothing with the other one but the ring: one may store its results while
/// the other multiplies. Of a tile with no more than 64 rows each has one of the two blocks of weights.
namespace mmx::cuda::sm90 {

namespace {

constexpr int kStages = 4, kThreads = 384, kProducts = 2;
constexpr int kN = kFp8Block;  // weight rows of one product: gate and up, or the tile's halves
constexpr int kTileRows = kProducts * kN, kMaxRows = kFp8WideRows;
constexpr int kBoxBytes = kN * kFp8Block;
constexpr int kScaleRun = 4;          // steps whose scales a quad has at a time, a step a lane
constexpr int kStagedRow = 128 + 16;  // bytes; 16 more than needed keep it free of bank conflicts
constexpr int kToldUnits = 2 * kStages;
constexpr int kCleared = kMoeCountBytes / 4;  // ticket and counts
static_assert(kCleared <= 1024);

/// Of one or both blocks of weights.
template <int kCount>
using Sums = float[kCount][kN / 2];

template <bool kGateUp>
using Items = std::conditional_t<kGateUp, Fp8DrawnItems, Fp8DealtItems>;

template <bool kGateUp>
struct Shared {
    alignas(1024) uint8_t weights[kStages][kProducts * kBoxBytes];
    alignas(1024) uint8_t rows[kStages][kMaxRows * kFp8Block];
    alignas(16) uint8_t staged[8][16 * kStagedRow];  // of each warp
    uint64_t full[kStages], empty[kStages];
    typename Items<kGateUp>::List list;
    Fp8WideUnit units[kToldUnits];  // those that the ring holds, in turn
    int expert;                     // the one whose rows are asked for now; of gate and up
    float amax[2][2][kFp8Half];     // of a split tile's rows, from each warpgroup; in turn
};

/// What a warpgroup does of a tile.
struct Part {
    bool is_split;
    int first_row, first_block;  // in the tile

    __device__ __forceinline__ Part(const Fp8WideUnit& unit, int group)
        : is_split(unit.num_rows <= kFp8Half),
          first_row(is_split ? 0 : group * kFp8Half),
          first_block(is_split ? group : 0) {}
    __device__ __forceinline__ int warp_row() const {
        return first_row + static_cast<int>(threadIdx.x) % 128 / 32 * 16;
    }
};

__device__ __forceinline__ void copy_rows(const Fp8Job& job, const RowCopies<uint8_t>& copies,
                                          Shared<true>& shared) {
    constexpr int kAtOnce = 2;
    const int pieces = job.num_steps * (kFp8Block / 16);
    copy_rows(job, copies, shared, pieces, [&](const uint4* from, uint4* to, int lane_idx) {
#pragma unroll 1
        for (int i = lane_idx; i < pieces; i += 32 * kAtOnce) {
            uint4 some[kAtOnce];
#pragma unroll
            for (int j = 0; j < kAtOnce; ++j)
                if (i + 32 * j < pieces) some[j] = __ldg(from + i + 32 * j);
#pragma unroll
            for (int j = 0; j < kAtOnce; ++j)
                if (i + 32 * j < pieces) to[i + 32 * j] = some[j];
        }
    });
}

/// By one thread.
template <bool kGateUp>
__device__ __forceinline__ void produce(const Fp8Job& job, const Fp8Maps& maps,
                                        const RowCopies<uint8_t>& copies, int32_t* ticket,
                                        Shared<kGateUp>& shared) {
    Ring<kStages> ring(0);
    auto items = [&] {
        if constexpr (kGateUp)
            return Fp8DrawnItems{shared.list, ticket};
        else
            return Fp8DealtItems(shared.list);
    }();
    int expert = -1;
    const auto wait_for_its_rows = [&](const Fp8WideUnit& unit) {
        if (!kGateUp || unit.expert == expert || unit.num_rows == 0) return;
        expert = unit.expert;
        static_cast<volatile int&>(shared.expert) = expert;
        const int* first_row = shared.list.first_row + expert;
        wait_for_rows(copies.counts + expert, first_row[1] - first_row[0]);
    };
    Fp8WideUnit unit = items.next();
    wait_for_its_rows(unit);
    for (int count = 0;; ++count) {
        // Why no barrier: its first stage, once full, publishes it; and no more units than stages are ahead.
        shared.units[count % kToldUnits] = unit;
        if (unit.num_rows == 0) break;
        const int row_boxes = unit.num_rows > kFp8Half ? 2 : 1;
        const int row = unit.weight_tile * (kGateUp ? kN : kTileRows);
        const int box_step = kGateUp ? job.weight_rows / 2 : kN;
        int step = 0;
        const auto ask_until = [&](int end) {
#pragma unroll 1
            for (; step < end; ++step) {
                uint64_t& full = shared.full[ring.at];
                uint8_t* to = shared.weights[ring.at];
                const int k = step * kFp8Block;
                ptx::barrier_wait(shared.empty[ring.at], ring.parity ^ 1);
                ptx::barrier_arrive_expect(full, kProducts * kBoxBytes + row_boxes * kFp8Half * kFp8Block);
                ptx::tma_load_3d(to, maps.weight, full, k, row, unit.expert);
                ptx::tma_load_3d(to + kBoxBytes, maps.weight, full, k, row + box_step, unit.expert);
                ptx::tma_load_3d(shared.rows[ring.at], maps.rows, full, k, unit.first_row, 0);
                if (row_boxes == 2)
                    ptx::tma_load_3d(shared.rows[ring.at] + kFp8Half * kFp8Block, maps.rows, full, k,
                                     unit.first_row + kFp8Half, 0);
                ring.advance();
            }
        };
        // The next unit is drawn, looked up and its rows waited for a step apart, while the ring is full;
        // what was dealt out is looked up longer before, as that takes several steps of a half tile.
        constexpr int kNext = kGateUp ? 2 : 9;  // steps before the last one's end
        ask_until(job.num_steps - kNext - 1);
        items.draw();
        ask_until(job.num_steps - kNext);
        const Fp8WideUnit next = items.next();
        ask_until(job.num_steps - 1);
        wait_for_its_rows(next);
        ask_until(job.num_steps);
        unit = next;
    }
    if (kGateUp) static_cast<volatile int&>(shared.expert) = job.num_experts;
    // A stage without contents publishes that there is no more.
    ptx::barrier_wait(shared.empty[ring.at], ring.parity ^ 1);
    ptx::barrier_arrive(shared.full[ring.at]);
}

/// Gives back a stage that this warp has read.
template <bool kGateUp>
__device__ __forceinline__ void release(Shared<kGateUp>& shared, int stage) {
    if (threadIdx.x % 32 == 0) ptx::barrier_arrive(shared.empty[stage]);
}

/// What is the same in all lanes, told to the compiler.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xFFFFFFFFu, x, 0); }

/// Scales on their way: of rows g and g + 8, and of both blocks of weights. A lane of a quad has one step of
/// a run, one run ahead.
struct Scales {
    uint32_t from[4];
    float next[4];

    __device__ __forceinline__ void load(const Fp8Job& job, int first_step) {
        const int step = min(first_step + static_cast<int>(threadIdx.x) % kScaleRun, job.num_steps - 1);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            next[i] =
                __ldg((i < 2 ? job.x_scale : job.weight_scale) + (from[i] + static_cast<uint32_t>(step)));
    }

    /// `rows`: of find_rows.
    template <bool kGateUp>
    __device__ __forceinline__ void begin(const Fp8Job& job, const Fp8WideUnit& unit, const int (&rows)[2],
                                          const Part& mine) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            from[i] = static_cast<uint32_t>((kGateUp ? rows[i] / job.topk : rows[i]) * job.num_steps);
            const int block = kGateUp ? unit.weight_tile + (mine.first_block | i) * (job.scale_rows / 2)
                                      : unit.weight_tile * kProducts + (mine.first_block | i);
            from[2 + i] = static_cast<uint32_t>(
                (unit.expert * job.scale_rows + min(block, job.scale_rows - 1)) * job.num_steps);
        }
        load(job, 0);
    }
};

/// Rows g and g + 8 of this warp: in the plan, or of gate and up what the plan says of them.
template <bool kGateUp>
__device__ __forceinline__ void find_rows(int (&rows)[2], const Fp8Job& job, const Fp8WideUnit& unit,
                                          int warp_row) {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int m = unit.first_row + min(warp_row + g + 8 * i, unit.num_rows - 1);
        rows[i] = kGateUp ? job.sorted_rows[m] : m;
    }
}

template <int kCount, bool kGateUp>
__device__ __forceinline__ void multiply(Sums<kCount>& sums, Shared<kGateUp>& shared, Ring<kStages>& ring,
                                         const Fp8Job& job, Scales& scales, const Part& mine) {
    const int quad = static_cast<int>(threadIdx.x) % 32 / 4 * 4;
    ring.at = uniform(ring.at);
    ring.parity = uniform(ring.parity);
    const uint32_t rows = ptx::smem_address(shared.rows[0]) + uniform(mine.first_row) * kFp8Block,
                   weights = ptx::smem_address(shared.weights[0]) + uniform(mine.first_block) * kBoxBytes;
    ptx::UniformOperand a(rows + ring.at * sizeof(shared.rows[0])),
        b(weights + ring.at * sizeof(shared.weights[0]));
    ptx::barrier_wait(shared.full[ring.at], ring.parity);
    for (int first = 0; first < job.num_steps; first += kScaleRun) {
        float now[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) now[i] = scales.next[i];
        // Why unrolled: what comes between the products of two runs would keep the tensor cores waiting.
        const auto multiply_steps = [&]<int kSteps>(int begin) {
#pragma unroll
            for (int i = begin; i < begin + kSteps; ++i) {
                const int stage = ring.at;
#pragma unroll
                for (int h = 0; h < kCount; ++h) {
                    float part[kN / 2];
                    ptx::wgmma_begin();
#pragma unroll
                    for (int k = 0; k < kFp8Block; k += 32)
                        ptx::Wgmma<kN>::e4m3(part, a + k, b + (h * kBoxBytes + k), k > 0);
                    ptx::wgmma_commit();
                    // Why here: the first products of a tile need not wait for its scales.
                    ptx::keep_registers(now);
                    const float upper = __shfl_sync(0xFFFFFFFFu, now[0] * now[2 + h], quad | i);
                    const float lower = __shfl_sync(0xFFFFFFFFu, now[1] * now[2 + h], quad | i);
                    if (kSteps == kScaleRun && i == 0 && h == 0 && first + kScaleRun < job.num_steps)
                        scales.load(job, first + kScaleRun);
                    if (h == kCount - 1) {
                        ring.advance();
                        a = ptx::UniformOperand(rows + ring.at * sizeof(shared.rows[0]));
                        b = ptx::UniformOperand(weights + ring.at * sizeof(shared.weights[0]));
                    }
                    ptx::wgmma_wait<0>();
                    uint32_t is_full = 1;
                    if (h == kCount - 1) {
                        release(shared, stage);
                        if (i + 1 < begin + kSteps || first + i + 1 < job.num_steps)
                            is_full = ptx::barrier_try(shared.full[ring.at], ring.parity);
                    }
                    ptx::keep_registers(part);
#pragma unroll
                    for (int j = 0; j < kN / 2; j += 4) {
                        sums[h][j] = fmaf(part[j], upper, sums[h][j]);
                        sums[h][j + 1] = fmaf(part[j + 1], upper, sums[h][j + 1]);
                        sums[h][j + 2] = fmaf(part[j + 2], lower, sums[h][j + 2]);
                        sums[h][j + 3] = fmaf(part[j + 3], lower, sums[h][j + 3]);
                    }
                    if (!is_full) ptx::barrier_wait(shared.full[ring.at], ring.parity);
                }
            }
        };
        if (first + kScaleRun <= job.num_steps) {
            multiply_steps.template operator()<kScaleRun>(0);
        } else {
#pragma unroll 1
            for (int i = 0; first + i < job.num_steps; ++i) multiply_steps.template operator()<1>(i);
        }
    }
}

/// 16 rows of a warp as bf16.
template <int kCount>
__device__ __forceinline__ void store(const Fp8Job& job, const Sums<kCount>& sums, uint8_t* staged,
                                      const Fp8WideUnit& unit, const Part& mine) {
    const int lane_idx = static_cast<int>(threadIdx.x) % 32, piece = lane_idx % 8;  // of 16 bytes
    const int warp_row = mine.warp_row(), channel = unit.weight_tile * kTileRows + mine.first_block * kN;
    const uint32_t to = ptx::smem_address(staged) + lane_idx % 16 * kStagedRow + lane_idx / 16 * 16;
    const int num_rows = unit.num_rows - warp_row - lane_idx / 8;
    const uint8_t* from = staged + lane_idx / 8 * kStagedRow + piece * 16;
    bf16* out = static_cast<bf16*>(job.out) + (unit.first_row + warp_row + lane_idx / 8) * job.out_stride +
                channel + piece * 8;
#pragma unroll
    for (int h = 0; h < kCount; ++h) {
        if (channel + h * kN >= job.weight_rows) break;
#pragma unroll
        for (int j0 = 0; j0 < kN / 8; j0 += 8) {
            const auto pair = [&](int j, int i) {
                return ptx::pack_bf16(sums[h][4 * j + 2 * i], sums[h][4 * j + 2 * i + 1]);
            };
#pragma unroll
            for (int j = j0; j < j0 + 8; j += 2)
                ptx::store_matrices(to + (j - j0) * 16,
                                    {pair(j, 0), pair(j, 1), pair(j + 1, 0), pair(j + 1, 1)});
            __syncwarp();
#pragma unroll
            for (int row = 0; row < 16; row += 4) {
                const uint4 v = *reinterpret_cast<const uint4*>(from + row * kStagedRow);
                ptx::store_16_if(row < num_rows, out + row * job.out_stride + h * kN + j0 * 8, v.x, v.y, v.z,
                                 v.w);
            }
            __syncwarp();
        }
    }
}

/// Of a split tile warpgroup 0 has gate, 1 up: each gives the other one the half of its channels that it does
/// not go on with. `room`: 16 KB that no warp reads any more once both groups are here.
__device__ __forceinline__ void exchange(float (&gates_and_ups)[2][kN / 4], const float (&mine)[kN / 2],
                                         uint8_t* room, int group) {
    constexpr int kRounds = 2, kPieces = kN / 4 / 4 / kRounds;  // of four floats
    float4* const pieces = reinterpret_cast<float4*>(room) + threadIdx.x % 128;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
        ptx::named_barrier(1, 256);
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const float* low = mine + (round * kPieces + i) * 4;
            const float* high = low + kN / 4;
            pieces[(group * kPieces + i) * 128] =
                group ? float4{low[0], low[1], low[2], low[3]} : float4{high[0], high[1], high[2], high[3]};
        }
        ptx::named_barrier(1, 256);
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const float4 got = pieces[((group ^ 1) * kPieces + i) * 128];
            const float other[4] = {got.x, got.y, got.z, got.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int at = (round * kPieces + i) * 4 + j;
                gates_and_ups[0][at] = group ? other[j] : mine[at];
                gates_and_ups[1][at] = group ? mine[at + kN / 4] : other[j];
            }
        }
    }
    ptx::named_barrier(1, 256);  // the room may be written again
}

/// 16 rows of a warp: the activation in fp32, then e4m3 with a scale per row and 128 channels. `amax`:
/// [2][64] of a split tile, which no warpgroup writes again before both have read it.
template <int kWidth, class F>
__device__ __forceinline__ void store_gate_up(const Fp8Job& job, float (&sums)[2][kWidth / 2],
                                              uint8_t* staged, const Fp8WideUnit& unit, const Part& mine,
                                              float (&amax)[2][kFp8Half], F&& after_activation) {
    const int lane_idx = static_cast<int>(threadIdx.x) % 32, warp_row = mine.warp_row();
    const int group = mine.first_block;  // of a split tile
    float (&h)[kWidth / 2] = sums[0];
    fp8_activate(job, h, sums[1]);
    after_activation();
    float most[2] = {}, factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 2 * i; j < kWidth / 2; j += 4)
            most[i] = fmaxf(most[i], fmaxf(fabsf(h[j]), fabsf(h[j + 1])));
        most[i] = fmaxf(most[i], __shfl_xor_sync(0xFFFFFFFFu, most[i], 1));
        most[i] = fmaxf(most[i], __shfl_xor_sync(0xFFFFFFFFu, most[i], 2));
        if (kWidth < kN && lane_idx % 4 == 0) amax[group][warp_row + lane_idx / 4 + 8 * i] = most[i];
    }
    if constexpr (kWidth < kN) ptx::named_barrier(1, 256);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = warp_row + lane_idx / 4 + 8 * i;
        if constexpr (kWidth < kN) most[i] = fmaxf(most[i], amax[group ^ 1][row]);
        most[i] = fmaxf(most[i], kFp8LeastAmax);
        factor[i] = kFp8Max / most[i];
        if (lane_idx % 4 == 0 && mine.first_block == 0 && row < unit.num_rows)
            job.out_scale[static_cast<int64_t>(unit.first_row + row) * (job.scale_rows / 2) +
                          unit.weight_tile] = most[i] / kFp8Max;
    }
    // Two pairs of neighbours, 8 channels apart, travel as two 16-bit elements.
    const auto pairs = [&](int j, int i) {
        const float* d = h + 4 * j + 2 * i;
        return ptx::pack_e4m3(d[0] * factor[i], d[1] * factor[i]) |
               ptx::pack_e4m3(d[4] * factor[i], d[5] * factor[i]) << 16;
    };
    const uint32_t to = ptx::smem_address(staged) + lane_idx % 16 * kStagedRow + lane_idx / 16 * 16;
#pragma unroll
    for (int j = 0; j < kWidth / 8; j += 4)
        ptx::store_matrices(to + j * 8, {pairs(j, 0), pairs(j, 1), pairs(j + 2, 0), pairs(j + 2, 1)});
    __syncwarp();
    constexpr int kPieces = kWidth / 16, kRows = 32 / kPieces;  // 16 bytes in a row; rows at a time
    const int row = lane_idx / kPieces, piece = lane_idx % kPieces;
    const int num_rows = unit.num_rows - warp_row;
    uint4 some[16 / kRows];
#pragma unroll
    for (int i = 0; i < 16 / kRows; ++i)
        some[i] = *reinterpret_cast<const uint4*>(staged + (row + kRows * i) * kStagedRow + piece * 16);
    __syncwarp();
    uint8_t* out = static_cast<uint8_t*>(job.out) + (unit.first_row + warp_row + row) * job.out_stride +
                   unit.weight_tile * kN + mine.first_block * (kN / 2) + piece * 16;
#pragma unroll
    for (int i = 0; i < 16 / kRows; ++i) {
        const uint4 v = some[i];
        ptx::store_16_if(row + kRows * i < num_rows, out + kRows * i * job.out_stride,
                         __byte_perm(v.x, v.y, 0x5410), __byte_perm(v.z, v.w, 0x5410),
                         __byte_perm(v.x, v.y, 0x7632), __byte_perm(v.z, v.w, 0x7632));
    }
}

template <bool kGateUp>
__device__ __forceinline__ void consume(const Fp8Job& job, Shared<kGateUp>& shared) {
    const int warp_idx = static_cast<int>(threadIdx.x) / 32 - 4, group = uniform(warp_idx / 4);
    Ring<kStages> ring(0);
    Scales scales;
    int rows[2];
    // Rows of unit number `count`; 0: there is none.
    const auto find = [&](int count) {
        ptx::barrier_wait(shared.full[ring.at], ring.parity);
        const Fp8WideUnit& unit = shared.units[count % kToldUnits];
        const int num_rows = uniform(unit.num_rows);
        if (num_rows == 0) return 0;
        find_rows<kGateUp>(rows, job, unit, Part(unit, group).warp_row());
        return num_rows;
    };
    const auto begin = [&](int count) {
        const Fp8WideUnit& unit = shared.units[count % kToldUnits];
        scales.begin<kGateUp>(job, unit, rows, Part(unit, group));
    };
    int next_rows = find(0);
    if (next_rows) begin(0);
    for (int count = 0, num_split = 0; next_rows; ++count) {
        const Fp8WideUnit unit = shared.units[count % kToldUnits];
        const Part mine(unit, group);
        const auto work = [&]<int kCount>() {
            Sums<kCount> sums = {};
            multiply<kCount, kGateUp>(sums, shared, ring, job, scales, mine);
            next_rows = find(count + 1);
            const auto begin_next = [&] {
                if (next_rows) begin(count + 1);
            };
            if constexpr (kGateUp) {
                uint8_t* staged = shared.staged[warp_idx];
                float (&amax)[2][kFp8Half] = shared.amax[num_split % 2];
                if constexpr (kCount == kProducts) {
                    store_gate_up<kN>(job, sums, staged, unit, mine, amax, begin_next);
                } else {
                    float gates_and_ups[2][kN / 4];
                    exchange(gates_and_ups, sums[0], shared.staged[0], group);
                    store_gate_up<kN / 2>(job, gates_and_ups, staged, unit, mine, amax, begin_next);
                }
            } else {
                begin_next();
                store<kCount>(job, sums, shared.staged[warp_idx], unit, mine);
            }
        };
        if (mine.is_split)
            work.template operator()<1>();
        else
            work.template operator()<kProducts>();
        num_split += mine.is_split;
    }
}

template <bool kGateUp>
__global__ void __launch_bounds__(kThreads, 1)
    fp8_wide_kernel(const __grid_constant__ Fp8Job job, const __grid_constant__ Fp8Maps maps,
                    const __grid_constant__ RowCopies<uint8_t> copies, int32_t* ticket) {
    extern __shared__ uint8_t raw[];
    auto& shared = *reinterpret_cast<Shared<kGateUp>*>(raw + (1024 - ptx::smem_address(raw) % 1024) % 1024);
    const int tid = static_cast<int>(threadIdx.x);
    if (tid == 0) {
        shared.expert = 0;
        ptx::prefetch_map(maps.weight);
        ptx::prefetch_map(maps.rows);
        for (int i = 0; i < kStages; ++i) {
            ptx::barrier_init(shared.full[i], 1);
            ptx::barrier_init(shared.empty[i], 8);
        }
        ptx::barrier_init_done();
    }
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    if (job.offsets)
        shared.list.fill(job.offsets, job.num_experts, job.num_weight_tiles);
    else if (tid == 0)
        shared.list.fill_one(job.num_rows, job.num_weight_tiles);
    __syncthreads();
    if (tid < 128) {
        ptx::release_registers<40>();
        if (tid < 32 && ptx::elect_one()) produce<kGateUp>(job, maps, copies, ticket, shared);
        if constexpr (kGateUp)
            if (tid >= 32) copy_rows(job, copies, shared);
    } else {
        ptx::take_registers<232>();
        consume<kGateUp>(job, shared);
    }
}

__global__ void __launch_bounds__(kCleared) clear_kernel(int32_t* workspace) {
    ptx::let_successors_start();
    ptx::wait_for_predecessors();
    workspace[threadIdx.x] = 0;
}

/// `ticket`: of gate and up.
template <bool kGateUp>
void launch(const char* op, Fp8Job job, const void* x, const void* weight, const RowCopies<uint8_t>& copies,
            int32_t* ticket, Stream stream) {
    const int64_t k = int64_t{job.num_steps} * kFp8Block, rows = job.weight_rows;
    // Weights of experts are read once, as boxes need them; those of a dense product stay in the L2.
    const auto promotion = job.offsets ? CU_TENSOR_MAP_L2_PROMOTION_NONE : CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    const Fp8Maps maps{make_tensor_map<3>(weight, {k, rows, job.num_experts}, {k, rows * k},
                                          {kFp8Block, kN, 1}, CU_TENSOR_MAP_DATA_TYPE_UINT8, promotion),
                       make_tensor_map<3>(x, {k, job.num_rows, 1}, {k, job.num_rows * k},
                                          {kFp8Block, kFp8Half, 1}, CU_TENSOR_MAP_DATA_TYPE_UINT8)};
    job.num_weight_tiles = static_cast<int>(ceil_div(rows, int64_t{kTileRows}));
    constexpr size_t kSmemBytes = sizeof(Shared<kGateUp>) + 1024;
    static_assert(kSmemBytes <= 227 * 1024);
    // The host does not know the rows per expert: at most one part-filled tile each.
    const int64_t tiles = job.num_rows / kMaxRows + std::min(job.num_experts, job.num_rows);
    static const int64_t resident = num_resident_blocks(fp8_wide_kernel<kGateUp>, kThreads, kSmemBytes, 1);
    const int64_t blocks = std::min(resident, tiles * job.num_weight_tiles);
    LaunchChain{op, dim3(static_cast<unsigned>(blocks)), kThreads, kSmemBytes, stream}(
        fp8_wide_kernel<kGateUp>, job, maps, copies, ticket);
}

}  // namespace

void fp8_wide(const char* op, Fp8Job job, const void* weight, Stream stream) {
    launch<false>(op, job, job.x, weight, {}, nullptr, stream);
}

void fp8_gate_up_wide(const char* op, Fp8Job job, const void* weight, void* workspace, Stream stream) {
    char* bytes = static_cast<char*>(workspace);
    int32_t* ticket = static_cast<int32_t*>(workspace);
    const RowCopies<uint8_t> copies{.from = job.x,
                                    .to = reinterpret_cast<uint8_t*>(bytes + kMoeCountBytes),
                                    .counts = reinterpret_cast<int32_t*>(bytes + kMoeTicketBytes),
                                    .from_stride = job.x_stride};
    LaunchChain{op, dim3(1), kCleared, 0, stream}(clear_kernel, ticket);
    launch<true>(op, job, copies.to, weight, copies, ticket, stream);
}

}  // namespace mmx::cuda::sm90
