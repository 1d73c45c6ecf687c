#include "cpp/core/math.h"
#include "cuda/common/batch.cuh"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/kernels/attention/sm90.h"
#include "cuda/kernels/attention/sm90_tile_rows.cuh"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kPlanThreads = 1024, kJoinThreads = 128;

/// One thread block: a counting sort of the tiles by their number of pages, in kPlanThreads classes.
__global__ void __launch_bounds__(kPlanThreads)
    list_kernel(const __grid_constant__ TileJob job, int page_shift) {
    __shared__ int count[kPlanThreads];  // class 0: the most pages
    __shared__ int warp_total[kPlanThreads / 32];
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const PagedAttentionParams& p = job.p;
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    const int tile_tokens = job.tile_tokens;
    count[tid] = 0;
    __syncthreads();
    int num_teams = 1;  // teams of threads that take sequences in turn
    while (num_teams < 32 && num_teams < p.num_seqs) num_teams *= 2;
    const int team_size = kPlanThreads / num_teams, team = tid / team_size;
    const auto for_my_tile = [&](auto&& f) {
        for (int seq = team; seq < p.num_seqs; seq += num_teams) {
            const int begin = p.cu_seqlens_q[seq], end = p.cu_seqlens_q[seq + 1], seq_len = p.seq_lens[seq];
            // Parts are tiles of their own if a second kernel joins them.
            const int parts = job.part_sums ? (seq_len - 1) / (kPage * kPartPages) + 1 : 1;
            const int count = (end - begin + tile_tokens - 1) / tile_tokens * parts;
            for (int i = tid % team_size; i < count; i += team_size) {
                const int token = begin + i / parts * tile_tokens, num_tokens = min(tile_tokens, end - token);
                const int position = seq_len - end + token;
                const int last_page = (position + num_tokens - 1) / kPage;
                const int first_block = i % parts * kPartPages;
                if (first_block > last_page) continue;
                const int end_block =
                    job.part_sums ? min(last_page + 1, first_block + kPartPages) : last_page + 1;
                const int num_keys = min(kPage, seq_len - (end_block - 1) * kPage);
                f(kPlanThreads - 1 - min((end_block - first_block - 1) >> page_shift, kPlanThreads - 1),
                  RowTile{token, position, seq, 0, num_tokens, end_block - first_block, num_keys,
                          first_block});
            }
        }
    };
    for_my_tile([&](int place, const RowTile&) { atomicAdd(count + place, 1); });
    __syncthreads();
    const int mine = count[tid];
    const int sum = warp_prefix_sum(mine);
    if (lane_idx == 31) warp_total[warp_idx] = sum;
    __syncthreads();
    int before = 0;
    for (int w = 0; w < warp_idx; ++w) before += warp_total[w];
    count[tid] = before + sum - mine;
    if (tid == kPlanThreads - 1) {
        *job.num_tiles = before + sum;
        *job.next_unit = 0;
    }
    __syncthreads();
    for_my_tile([&](int place, const RowTile& tile) { job.tiles[atomicAdd(count + place, 1)] = tile; });
}

template <class C, TileMode kMode>
__global__ void __launch_bounds__(kThreads, 1)
    tile_kernel(const __grid_constant__ TileJob job, const __grid_constant__ Maps maps) {
    extern __shared__ char raw[];
    constexpr bool kCodes = sizeof(C) == 1;
    auto& shared = *reinterpret_cast<Shared<C>*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
    const int num_teams = kMode == TileMode::kParts ? job.num_teams : kConsumers;
    if (threadIdx.x == 0) {
        for (int i = 0; i < kQSlots<C>; ++i) {
            ptx::barrier_init(shared.q_full[i], 1);
            ptx::barrier_init(shared.q_empty[i], num_teams * 4);
        }
        for (int i = 0; i < kStages; ++i) {
            ptx::barrier_init(shared.k_full[i], kCodes ? kWideners : 1);
            ptx::barrier_init(shared.v_full[i], kCodes ? kWideners : 1);
            ptx::barrier_init(shared.k_empty[i], num_teams * 4);
            ptx::barrier_init(shared.v_empty[i], num_teams * 4);
        }
        if constexpr (kCodes) {
            for (int i = 0; i < kCodeSlots; ++i) {
                ptx::barrier_init(shared.codes_full[i], 1);
                ptx::barrier_init(shared.codes_empty[i], kWideners);
            }
        }
        ptx::barrier_init_done();
    }
    __syncthreads();
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int role = static_cast<int>(threadIdx.x) / 128;
    if (role == 0) {
        ptx::release_registers<40>();
        const int warp_idx = static_cast<int>(threadIdx.x) / 32;
        if (warp_idx == 0)
            produce<C, kMode>(job, maps, shared);
        else if constexpr (kCodes)
            widen<kMode == TileMode::kListed>(shared, warp_idx - 1);
    } else {
        ptx::take_registers<232>();
        if (role <= num_teams) consume<C, kMode>(job, shared, role - 1);
    }
}

/// Joins the parts of each (token, query head), from the last to the first; a warp each.
__global__ void __launch_bounds__(kJoinThreads) join_kernel(const __grid_constant__ TileJob job) {
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const PagedAttentionParams& p = job.p;
    const int lane_idx = static_cast<int>(threadIdx.x % 32), num_heads = static_cast<int>(p.num_heads);
    const int64_t row = static_cast<int64_t>(blockIdx.x) * (kJoinThreads / 32) + threadIdx.x / 32;
    if (row >= p.num_tokens * num_heads) return;
    const int token = static_cast<int>(row / num_heads), head = static_cast<int>(row % num_heads);
    const TokenPlace place = warp_place_of(token, p.cu_seqlens_q, p.seq_lens, static_cast<int>(p.num_seqs));
    if (place.seq < 0) return;
    const float4* sums = reinterpret_cast<const float4*>(job.part_sums) + row * job.max_parts * (kDim / 4);
    const float2* stats = job.part_stats + row * job.max_parts;
    const int last = static_cast<int>(place.position / (kPage * kPartPages));
    float4 total = sums[last * (kDim / 4) + lane_idx];
    float max = stats[last].x, sum = stats[last].y;
#pragma unroll 4
    for (int part = last - 1; part >= 0; --part) {
        const float4 x = sums[part * (kDim / 4) + lane_idx];
        const float2 stat = stats[part];
        const JoinFactors join(max, stat.x);
        total = make_float4(join(total.x, x.x), join(total.y, x.y), join(total.z, x.z), join(total.w, x.w));
        sum = join(sum, stat.y);
        max = join.max;
    }
    const float scale = p.v_scale ? p.v_scale[head / job.group] : 1.0f;
    const float factor = sum == 0 ? 0.0f : __fdividef(scale, sum);
    bf16* out = static_cast<bf16*>(p.out) + token * p.out_token_stride + head * p.out_head_stride;
    *reinterpret_cast<uint2*>(out + 4 * lane_idx) =
        make_uint2(ptx::pack_bf16(total.x * factor, total.y * factor),
                   ptx::pack_bf16(total.z * factor, total.w * factor));
}

CUtensorMap page_map(const PagedAttentionParams& p, const void* cache, int64_t block_stride) {
    const bool codes = p.cache_dtype == DType::kE4M3;
    return make_tensor_map<4>(cache, {kDim, kPage, p.num_kv_heads, p.num_blocks},
                              {kDim, kPage * kDim, block_stride}, {codes ? 128 : 64, kPage, 1, 1},
                              codes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
}

TileJob make_job(const PagedAttentionParams& p, const ListedTiles& list, int64_t tile_tokens,
                 int64_t shared_heads) {
    const int group = static_cast<int>(p.num_heads / p.num_kv_heads);
    return {.p = p,
            .group = group,
            .group_inverse = static_cast<int>(ceil_div(65536, group)),
            .scale_log2 = p.scale * ptx::kLog2e,
            .tile_tokens = static_cast<int>(tile_tokens),
            .shared_heads = static_cast<int>(shared_heads),
            .num_teams = tile_tokens * group <= kDenseTileRows / 2 ? 1 : kConsumers,
            .num_tiles = list.num_tiles,
            .next_unit = list.next_unit,
            .tiles = list.tiles,
            .order = list.order,
            .pages = list.pages,
            .part_sums = nullptr,
            .part_stats = nullptr,
            .totals = nullptr,
            .max_parts = 0};
}

template <TileMode kMode>
void attend(const char* op, const TileJob& job, Stream stream) {
    const PagedAttentionParams& p = job.p;
    const Maps maps{
        make_tensor_map<3>(p.q, {kDim, p.num_heads, p.num_tokens}, {p.q_head_stride, p.q_token_stride},
                           {64, p.num_heads / p.num_kv_heads, job.tile_tokens}),
        page_map(p, p.k_cache, p.k_cache_block_stride), page_map(p, p.v_cache, p.v_cache_block_stride)};
    const dim3 grid(static_cast<unsigned>(std::min(num_multiprocessors(), kDenseMaxGrid)));
    const auto launch = [&]<class C>(C) {
        LaunchChain{op, grid, kThreads, sizeof(Shared<C>) + 1024, stream}(tile_kernel<C, kMode>, job, maps);
    };
    p.cache_dtype == DType::kE4M3 ? launch(e4m3{}) : launch(bf16{});
}

}  // namespace

void paged_prefill(const PagedAttentionParams& p, Stream stream) {
    constexpr const char* kOp = "paged_attention";
    const DensePlan plan = make_dense_plan(p);
    char* workspace = static_cast<char*>(p.workspace);
    const ListedTiles list{.num_tiles = reinterpret_cast<int*>(workspace + plan.num_tiles),
                           .next_unit = reinterpret_cast<int*>(workspace + plan.next_unit),
                           .tiles = reinterpret_cast<RowTile*>(workspace + plan.tiles),
                           .order = nullptr,
                           .pages = nullptr};
    TileJob job = make_job(p, list, plan.tile_tokens, plan.shared_heads);
    const bool joins = plan.parts == DensePlan::kJoined;
    if (joins) {
        job.part_sums = reinterpret_cast<float*>(workspace + plan.part_sums);
        job.part_stats = reinterpret_cast<float2*>(workspace + plan.part_stats);
        job.max_parts = static_cast<int>(plan.max_parts);
    }
    job.totals = reinterpret_cast<float4*>(workspace + plan.totals);
    int page_shift = 0;
    while (p.max_blocks_per_seq >> page_shift > kPlanThreads) ++page_shift;
    LaunchChain{kOp, dim3(1), kPlanThreads, 0, stream}(list_kernel, job, page_shift);
    if (plan.parts == DensePlan::kNone) return attend<TileMode::kWhole>(kOp, job, stream);
    attend<TileMode::kParts>(kOp, job, stream);
    if (!joins) return;
    const int64_t blocks = ceil_div(p.num_tokens * p.num_heads, kJoinThreads / 32);
    LaunchChain{kOp, dim3(static_cast<unsigned>(blocks)), kJoinThreads, 0, stream}(join_kernel, job);
}

void listed_prefill(const char* op, const PagedAttentionParams& p, const ListedTiles& list, Stream stream) {
    attend<TileMode::kListed>(op, make_job(p, list, kListedTokens, 1), stream);
}

}  // namespace mmx::cuda::sm90
