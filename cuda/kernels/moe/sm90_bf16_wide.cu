#include "cuda/kernels/moe/sm90_bf16_wide.h"

#include "cuda/common/ptx/cluster.cuh"
#include "cuda/kernels/moe/row_copies.cuh"
#include "cuda/kernels/moe/sm90_bf16.cuh"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kHeight = kMoeWideHeight;   // rows of x
constexpr int kHalf = kHeight / 2;        // of one product
constexpr int kStages = 4, kCluster = 2;  // two blocks share the rows of x and differ in weights
constexpr int kWeightRows = 128;          // 64 of each consumer warpgroup
constexpr int kThreads = 384;
constexpr int kClearThreads = kMoeCountBytes / 4;
static_assert(kClearThreads <= 1024);
constexpr int kNumBoxes = 5;           // sizes of boxes: 8, 16, 32, 64 and 128 rows of x
constexpr int kDrawnAt = 2 * kStages;  // chunk of an item at which the next one is told
static_assert(kHalf % 8 == 0 && kHalf <= 160);

struct Stage {
    char weight[kWeightRows * 128];
    char x[kHeight * 128];
};

struct Shared {
    alignas(1024) Stage stages[kStages];
    uint64_t full[kStages], empty[kStages];
    uint64_t drawn[2];
    int items[2];                  // drawn, in turn
    MoeWorkList<kHeight, 1> list;  // of pairs of weight tiles
    int expert;                    // the one whose rows are asked for now; of gate and up
};

struct WideMaps {
    CUtensorMap weight;        // (k, g, row g or g + 8, warp, expert)
    CUtensorMap x[kNumBoxes];  // (k, row, 0)
};

/// The items of a cluster, for each of its threads that goes through them: the first has its number, those
/// after are drawn, so that clusters with high tiles get fewer. Draws ascend: all clusters take the experts
/// in the same order. Without tickets the items go round.
struct Items {
    int item = static_cast<int>(blockIdx.x) / kCluster, count = 0;

    __device__ __forceinline__ void next(Shared& shared, const int32_t* ticket) {
        if (!ticket) {
            item += static_cast<int>(gridDim.x) / kCluster;
            return;
        }
        const int place = count % 2;
        ptx::barrier_wait(shared.drawn[place], count / 2 % 2);
        item = static_cast<volatile int&>(shared.items[place]);
        ++count;
    }

    /// By one thread of each block as it begins an item.
    __device__ __forceinline__ void expect_next(Shared& shared) const {
        ptx::barrier_arrive_expect(shared.drawn[count % 2], sizeof(int));
    }
    /// By that of block 0, once all threads of the cluster have begun the item: tells them the next one.
    __device__ __forceinline__ void tell_next(Shared& shared, int next) const {
#pragma unroll
        for (int rank = 0; rank < kCluster; ++rank)
            ptx::store_remote(ptx::cluster_address(ptx::smem_address(&shared.items[count % 2]), rank), next,
                              ptx::cluster_address(ptx::smem_address(&shared.drawn[count % 2]), rank));
    }
};

__device__ __forceinline__ void copy_rows(const Bf16Job& job, const RowCopies<bf16>& copies, Shared& shared) {
    const int pieces = job.num_chunks * 8;
    copy_rows(job, copies, shared, pieces, [&](const uint4* from, uint4* to, int lane_idx) {
        int i = lane_idx;
        for (; i + 96 < pieces; i += 128) {
            const uint4 a = from[i], b = from[i + 32], c = from[i + 64], d = from[i + 96];
            to[i] = a;
            to[i + 32] = b;
            to[i + 64] = c;
            to[i + 96] = d;
        }
        for (; i < pieces; i += 32) to[i] = from[i];
    });
}

/// Rows of the first product; the second one's are as many or 8 fewer.
__device__ __forceinline__ int first_half(int height) { return (height / 8 + 1) / 2 * 8; }

/// One thread: the block's own weights, and its half of the rows of x for both blocks.
template <bool kGateUp>
__device__ __forceinline__ void produce(const Bf16Job& job, const WideMaps& maps,
                                        const RowCopies<bf16>& copies, int32_t* ticket, Shared& shared,
                                        int rank) {
    Ring<kStages> ring(0);
    int expert = -1;
    for (Items items; items.item < shared.list.num_items(); items.next(shared, ticket)) {
        const MoeUnit unit = shared.list.unit(items.item, 0);
        int drawn = 0;
        if (ticket) items.expect_next(shared);
        if (ticket && rank == 0) drawn = static_cast<int>(gridDim.x) / kCluster + atomicAdd(ticket, 1);
        if (kGateUp && unit.expert != expert) {
            expert = unit.expert;
            static_cast<volatile int&>(shared.expert) = expert;
            const int* first_row = shared.list.first_row + expert;
            wait_for_rows(copies.counts + expert, first_row[1] - first_row[0]);
        }
        const int warp = (unit.weight_tile * kCluster + rank) * (kWeightRows / 16);
        const int begin = rank * first_half(unit.height);
        const int count = rank == 0 ? first_half(unit.height) : unit.height - begin;
        for (int chunk = 0; chunk < job.num_chunks; ++chunk) {
            uint64_t& full = shared.full[ring.at];
            ptx::barrier_wait(shared.empty[ring.at], ring.parity ^ 1);
            // Why then: stages come back from products of this item, in both blocks.
            if (chunk == kDrawnAt && ticket && rank == 0) items.tell_next(shared, drawn);
            ptx::barrier_arrive_expect(full, (kWeightRows + unit.height) * 128);
            ptx::tma_load_5d(shared.stages[ring.at].weight, maps.weight, full, chunk * kChunk, 0, 0, warp,
                             unit.expert);
            int row = begin;
#pragma unroll
            for (int i = kNumBoxes - 1; i >= 0; --i) {
                const int rows = 8 << i;
                if (!(count & rows)) continue;
                ptx::tma_load_3d_multicast(shared.stages[ring.at].x + row * 128, maps.x[i], full,
                                           (1 << kCluster) - 1, chunk * kChunk, unit.first_row + row, 0);
                row += rows;
            }
            ring.advance();
        }
    }
    if (kGateUp) static_cast<volatile int&>(shared.expert) = job.num_experts;
}

/// kFirst and kSecond: rows of x of the two products.
template <int kFirst, int kSecond>
__device__ __forceinline__ void multiply(Shared& shared, Ring<kStages>& ring, int num_chunks, int group,
                                         float (&acc)[2][kHalf / 2]) {
    const int lane_idx = static_cast<int>(threadIdx.x) % 32;
    const auto release = [&](int stage) {
        if (lane_idx < kCluster) ptx::barrier_arrive_at(shared.empty[stage], lane_idx);
    };
    int previous = 0;
    for (int chunk = 0; chunk < num_chunks; ++chunk) {
        ptx::barrier_wait(shared.full[ring.at], ring.parity);
        const uint64_t weight =
            ptx::wgmma_operand(ptx::smem_address(shared.stages[ring.at].weight) + group * kBoxBytes);
        const uint64_t x = ptx::wgmma_operand(ptx::smem_address(shared.stages[ring.at].x));
        ptx::wgmma_begin();
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            ptx::Wgmma<kFirst>::bf16(acc[0], weight + (step * 32 >> 4), x + (step * 32 >> 4),
                                     chunk + step > 0);
            if constexpr (kSecond > 0)
                ptx::Wgmma<kSecond>::bf16(acc[1], weight + (step * 32 >> 4),
                                          x + ((kFirst * 128 + step * 32) >> 4), chunk + step > 0);
        }
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();
        if (chunk > 0) release(previous);
        previous = ring.at;
        ring.advance();
    }
    ptx::wgmma_wait<0>();
    release(previous);
}

/// f.template operator()<kFirst, kSecond>() for a tile of `eights` x 8 rows.
template <int kFirst = 8, class F>
__device__ __forceinline__ void dispatch_height(int eights, F&& f) {
    if constexpr (kFirst < kHalf) {
        if (eights > kFirst / 4) return dispatch_height<kFirst + 8>(eights, f);
    }
    if (eights % 2)
        f.template operator()<kFirst, kFirst - 8>();
    else
        f.template operator()<kFirst, kFirst>();
}

/// Lanes of even and odd g exchange results, so that each has twice as many neighbouring channels of one row.
template <bool kGateUp, Activation kActivation>
__device__ __forceinline__ void store(const Bf16Job& job, const MoeUnit& unit, int rank, int group,
                                      const float (&acc)[2][kHalf / 2]) {
    const int tid = static_cast<int>(threadIdx.x) % 128, g = tid % 32 / 4, t = tid % 4, odd = g % 2;
    const int warp = ((unit.weight_tile * kCluster + rank) * 2 + group) * 4 + tid / 32;
    const int channel = (warp * 8 + g - odd) * (kGateUp ? 1 : 2), first = first_half(unit.height);
    if (channel >= job.n) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int begin = half * first, rows = half ? unit.num_rows - first : min(unit.num_rows, first);
        bf16* out = job.out + (unit.first_row + begin + 2 * t + odd) * job.n + channel;
#pragma unroll
        for (int j = 0; j < kHalf / 8; ++j) {
            if (8 * j >= rows) break;
            const float* d = acc[half] + 4 * j;  // d[e], d[2 + e]: weight rows g and g + 8 of row 2t + e of x
            const bool has_row = 8 * j + 2 * t + odd < rows;
            bf16* to = out + 8 * j * job.n;
            if constexpr (kGateUp) {
                const float even_row = fast_gated_act(d[0], d[2], kActivation, job.alpha, job.limit);
                const float odd_row = fast_gated_act(d[1], d[3], kActivation, job.alpha, job.limit);
                const float other = __shfl_xor_sync(kFull, odd ? even_row : odd_row, 4);
                if (!has_row) continue;
                *reinterpret_cast<uint32_t*>(to) =
                    odd ? ptx::pack_bf16(other, odd_row) : ptx::pack_bf16(even_row, other);
            } else {
                const uint32_t even_row = ptx::pack_bf16(d[0], d[2]), odd_row = ptx::pack_bf16(d[1], d[3]);
                const uint32_t other = __shfl_xor_sync(kFull, odd ? even_row : odd_row, 4);
                if (!has_row) continue;
                *reinterpret_cast<uint2*>(to) =
                    odd ? make_uint2(other, odd_row) : make_uint2(even_row, other);
            }
        }
    }
}

template <bool kGateUp>
__global__ void __launch_bounds__(kThreads, 1)
    moe_bf16_wide_kernel(const __grid_constant__ Bf16Job job, const __grid_constant__ WideMaps maps,
                         const __grid_constant__ RowCopies<bf16> copies, int32_t* ticket) {
    extern __shared__ char raw[];
    Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
    const int rank = ptx::cluster_rank();
    if (threadIdx.x == 0) {
        shared.expert = 0;
        ptx::prefetch_map(maps.weight);
        for (int i = 0; i < kNumBoxes; ++i) ptx::prefetch_map(maps.x[i]);
        for (int i = 0; i < kStages; ++i) {
            ptx::barrier_init(shared.full[i], 1);
            ptx::barrier_init(shared.empty[i], 8 * kCluster);
        }
        for (uint64_t& barrier : shared.drawn) ptx::barrier_init(barrier, 1);
        ptx::barrier_init_done();
    }
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    shared.list.fill(job.offsets, job.num_experts, job.num_weight_tiles);
    ptx::cluster_sync();
    const int group = static_cast<int>(threadIdx.x) / 128 - 1;
    if (group < 0) {
        ptx::release_registers<56>();
        if (threadIdx.x == 0) produce<kGateUp>(job, maps, copies, ticket, shared, rank);
        if (kGateUp && threadIdx.x >= 32) copy_rows(job, copies, shared);
    } else {
        ptx::take_registers<224>();
        Ring<kStages> ring(0);
        for (Items items; items.item < shared.list.num_items(); items.next(shared, ticket)) {
            const MoeUnit unit = shared.list.unit(items.item, 0);
            float acc[2][kHalf / 2];
            dispatch_height(unit.height / 8, [&]<int kFirst, int kSecond>() {
                multiply<kFirst, kSecond>(shared, ring, job.num_chunks, group, acc);
            });
            if (kGateUp && job.activation == Activation::kSwigluOai)
                store<kGateUp, Activation::kSwigluOai>(job, unit, rank, group, acc);
            else
                store<kGateUp, Activation::kSilu>(job, unit, rank, group, acc);
        }
    }
    // Why: the other block may still copy into this one's memory or arrive on its barriers.
    ptx::cluster_sync();
}

/// Ticket and counts, or the ticket alone.
__global__ void __launch_bounds__(kClearThreads) clear_kernel(int32_t* words) {
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    words[threadIdx.x] = 0;
}

template <bool kGateUp>
void launch(const char* op, Bf16Job job, const void* weight, int64_t k, int64_t num_rows,
            const RowCopies<bf16>& copies, void* workspace, Stream stream) {
    constexpr int64_t kThreadRows = kGateUp ? 1 : 2;  // neighbours, of gate or of up
    const int64_t expert_rows = kGateUp ? 2 * job.n : job.n;
    job.num_chunks = static_cast<int>(k / kChunk);
    job.num_weight_tiles = static_cast<int>(ceil_div(expert_rows, int64_t{kWeightRows * kCluster}));
    WideMaps maps;
    maps.weight =
        make_tensor_map<5>(weight, {k, 8, 2, job.n / (8 * kThreadRows), job.num_experts},
                           {kThreadRows * k, (kGateUp ? job.n : 1) * k, 8 * kThreadRows * k, expert_rows * k},
                           {kChunk, 8, 2, kWeightRows / 16, 1});
    for (int i = 0; i < kNumBoxes; ++i)
        maps.x[i] = make_tensor_map<3>(job.x, {k, num_rows, 1}, {job.x_stride, job.x_stride * num_rows},
                                       {kChunk, 8 << i, 1});
    // The host does not know the rows per expert: at most one part-filled tile each.
    const int64_t tiles = num_rows / kHeight + std::min<int64_t>(job.num_experts, num_rows);
    constexpr size_t kSmemBytes = sizeof(Shared) + 1024;
    static const int64_t resident =
        num_resident_blocks(moe_bf16_wide_kernel<kGateUp>, kThreads, kSmemBytes, kCluster);
    const int64_t blocks = std::min(resident, tiles * job.num_weight_tiles * kCluster);
    const LaunchChain launch_chain{op,      dim3(static_cast<unsigned>(blocks)), kThreads, kSmemBytes, stream,
                                   kCluster};
    int32_t* ticket = static_cast<int32_t*>(workspace);
    LaunchChain{op, dim3(1), kGateUp ? kClearThreads : 1, 0, stream}(clear_kernel, ticket);
    launch_chain(moe_bf16_wide_kernel<kGateUp>, job, maps, copies,
                 job.num_chunks > kDrawnAt ? ticket : nullptr);
}

}  // namespace

void moe_gate_up_wide(Bf16Job job, const void* weight, int64_t k, int64_t num_rows, void* workspace,
                      Stream stream) {
    const RowCopies<bf16> copies{
        .from = job.x,
        .to = reinterpret_cast<bf16*>(static_cast<char*>(workspace) + kMoeCountBytes),
        .counts = reinterpret_cast<int32_t*>(static_cast<char*>(workspace) + kMoeTicketBytes),
        .from_stride = job.x_stride};
    job.x = copies.to;
    job.x_stride = k;
    launch<true>("moe_gate_up", job, weight, k, num_rows, copies, workspace, stream);
}

void moe_down_wide(const Bf16Job& job, const void* weight, int64_t k, int64_t num_rows, void* workspace,
                   Stream stream) {
    launch<false>("moe_down", job, weight, k, num_rows, {}, workspace, stream);
}

}  // namespace mmx::cuda::sm90
