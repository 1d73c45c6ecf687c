#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/ptx/wgmma.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/kernels/attention/sm90.h"
#include "cuda/kernels/attention/sm90_rows.cuh"
#include "cuda/kernels/attention/sm90_tiles.h"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kPage = 128, kDim = 128, kRows = kDenseTileRows;
constexpr int kStages = 2, kQSlots = 2, kConsumers = 2, kThreads = (1 + kConsumers) * 128;
constexpr int kHalfPageBytes = kPage * 128;  // 64 of the 128 dimensions
constexpr int kHalfQBytes = kRows * 128;
constexpr float kLog2e = 1.4426950408889634f;
constexpr unsigned kFull = 0xFFFFFFFFu;

/// Where the list of row tiles and the lists of their pages lie.
struct Job {
    PagedAttentionParams p;
    int group, group_inverse;  // query heads per KV head, and 2^16 / group rounded up
    float scale_log2;
    int tile_tokens, shared_heads;
    int *num_tiles, *next_unit;
    RowTile* tiles;
    const TilePage* pages;  // [tile, kMaxTilePages], from the last page to the first; null: every page
};

// ---- plan: row tiles, longest first ---------------------------------------------------------------

constexpr int kPlanThreads = 1024;

/// One thread block: a counting sort of the tiles by their number of pages, in kPlanThreads classes.
__global__ void __launch_bounds__(kPlanThreads) list_kernel(const __grid_constant__ Job job, int page_shift) {
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
            for (int token = begin + tid % team_size * tile_tokens; token < end;
                 token += team_size * tile_tokens) {
                const int num_tokens = min(tile_tokens, end - token), position = seq_len - end + token;
                const int last_page = (position + num_tokens - 1) / kPage;
                f(kPlanThreads - 1 - min(last_page >> page_shift, kPlanThreads - 1),
                  RowTile{token, position, seq, 0, num_tokens, last_page + 1,
                          min(kPage, seq_len - last_page * kPage), 0});
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

// ---- attention ------------------------------------------------------------------------------------

struct Shared {
    alignas(1024) char q[kQSlots][2 * kHalfQBytes];
    alignas(1024) char k[kStages][2 * kHalfPageBytes];
    alignas(1024) char v[kStages][2 * kHalfPageBytes];
    uint64_t q_full[kQSlots], q_empty[kQSlots];
    uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
    RowTile tile[kQSlots];  // no pages: the end
    int chosen[kStages];    // of listed pages: TilePage::block_and_tokens
};

struct Maps {
    CUtensorMap q;     // (dimension, head, token)
    CUtensorMap k, v;  // (dimension, slot, head, page)
};

/// Place in a ring of kSize; `parity` starts as the one that the first wait expects.
template <int kSize>
struct Ring {
    int at = 0, parity;

    __device__ __forceinline__ explicit Ring(int first_parity) : parity(first_parity) {}
    __device__ __forceinline__ void advance() {
        if (++at == kSize) at = 0, parity ^= 1;
    }
};

__device__ __forceinline__ void load_page(char* smem, const CUtensorMap& map, uint64_t& barrier, int head,
                                          int page) {
    ptx::barrier_arrive_expect(barrier, 2 * kHalfPageBytes);
    for (int half = 0; half < 2; ++half)
        ptx::tma_load_4d(smem + half * kHalfPageBytes, map, barrier, half * 64, 0, head, page);
}

/// One warp draws units, (tile, KV head) or a listed tile, and loads their Q, K and V; pages from the last to
/// the first, K one page ahead of V.
template <bool kListed>
__device__ __forceinline__ void produce(const Job& job, const Maps& maps, Shared& shared) {
    const PagedAttentionParams& p = job.p;
    const int lane_idx = static_cast<int>(threadIdx.x % 32);
    const int num_tiles = *job.num_tiles;
    const int num_units = kListed ? num_tiles : num_tiles * static_cast<int>(p.num_kv_heads);
    const int q_bytes = 2 * job.group * job.tile_tokens * 128;
    const auto draw = [&] { return lane_idx == 0 ? atomicAdd(job.next_unit, 1) : 0; };
    Ring<kQSlots> q(1);
    Ring<kStages> k(1), v(1);
    int drawn = draw();
    for (;;) {
        const int index = __shfl_sync(kFull, drawn, 0);
        const bool last = index >= num_units;
        RowTile tile{};
        if (!last) {
            drawn = draw();
            if constexpr (kListed) {
                tile = job.tiles[index];
            } else {
                const int first_head = index / (num_tiles * job.shared_heads) * job.shared_heads;
                const int rest = index - first_head * num_tiles;
                tile = job.tiles[rest / job.shared_heads];
                tile.head = first_head + rest % job.shared_heads;
            }
        }
        if (lane_idx == 0) {
            ptx::barrier_wait(shared.q_empty[q.at], q.parity);
            shared.tile[q.at] = tile;
            if (last) {
                ptx::barrier_arrive(shared.q_full[q.at]);
            } else {
                ptx::barrier_arrive_expect(shared.q_full[q.at], q_bytes);
                for (int half = 0; half < 2; ++half)
                    ptx::tma_load_3d(shared.q[q.at] + half * kHalfQBytes, maps.q, shared.q_full[q.at],
                                     half * 64, tile.head * job.group, tile.first_token);
            }
        }
        q.advance();
        if (last) return;
        const int32_t* table = p.block_table + tile.seq * p.block_table_stride;
        const TilePage* pages = job.pages + static_cast<int64_t>(index) * kMaxTilePages;
        TilePage ahead{};  // a lane each of the next 32
        int page = 0, page_before;
        for (int i = 0; i <= tile.num_pages; ++i) {
            page_before = page;
            if (i < tile.num_pages) {
                if (i % 32 == 0) {
                    const int mine = min(i + lane_idx, tile.num_pages - 1);
                    if constexpr (kListed)
                        ahead = pages[mine];
                    else
                        ahead.page = table[tile.num_pages - 1 - mine];
                }
                page = __shfl_sync(kFull, ahead.page, i % 32);
                const int chosen = kListed ? __shfl_sync(kFull, ahead.block_and_tokens, i % 32) : 0;
                if (lane_idx == 0) {
                    ptx::barrier_wait(shared.k_empty[k.at], k.parity);
                    if constexpr (kListed) shared.chosen[k.at] = chosen;
                    load_page(shared.k[k.at], maps.k, shared.k_full[k.at], tile.head, page);
                }
                k.advance();
            }
            if (i > 0) {
                if (lane_idx == 0) {
                    ptx::barrier_wait(shared.v_empty[v.at], v.parity);
                    load_page(shared.v[v.at], maps.v, shared.v_full[v.at], tile.head, page_before);
                }
                v.advance();
            }
        }
    }
}

/// A thread's two rows: running maximum of the raw scores and its own share of the sum of weights.
struct Rows {
    float best[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
};

/// Scores become weights 2^(score * scale - maximum * scale); `rescale` brings earlier sums to the new
/// maximum. Keys past last_key[row] do not count.
template <bool kMasked>
__device__ __forceinline__ void weigh(float (&s)[64], Rows& rows, float (&rescale)[2], float scale_log2,
                                      const int (&last_key)[2], int t) {
    if constexpr (kMasked) {
#pragma unroll
        for (int j = 0; j < 16; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (8 * j + 2 * t + e % 2 > last_key[e / 2]) s[4 * j + e] = -INFINITY;
    }
    float shift[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        float best = rows.best[row];
#pragma unroll
        for (int j = 0; j < 16; ++j) best = fmaxf(best, fmaxf(s[4 * j + 2 * row], s[4 * j + 2 * row + 1]));
        best = fmaxf(best, __shfl_xor_sync(kFull, best, 1));
        best = fmaxf(best, __shfl_xor_sync(kFull, best, 2));
        shift[row] = best == -INFINITY ? 0 : best * scale_log2;  // -inf - -inf would be NaN
        rescale[row] = ptx::exp2_approx(rows.best[row] * scale_log2 - shift[row]);
        rows.best[row] = best;
        rows.sum[row] *= rescale[row];
    }
#pragma unroll
    for (int j = 0; j < 16; ++j)
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float* pair = s + 4 * j + 2 * row;
            pair[0] = ptx::exp2_approx(fmaf(pair[0], scale_log2, -shift[row]));
            pair[1] = ptx::exp2_approx(fmaf(pair[1], scale_log2, -shift[row]));
            rows.sum[row] += pair[0] + pair[1];
        }
}

/// 64 rows of each tile. While the weights of a page are made, the product of the page before with V runs;
/// the two warpgroups issue their products in turn.
template <bool kListed>
__device__ __forceinline__ void consume(const Job& job, Shared& shared, int team) {
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
    const auto await_turn = [&] { ptx::named_barrier(2 + team, 2 * 128); };
    const auto pass_turn = [&] { ptx::named_barrier_arrive(2 + (team ^ 1), 2 * 128); };
    if (team == 1) pass_turn();

    Ring<kQSlots> q(0);
    Ring<kStages> k(0), v(0);
    float s[64], o[64], rescale[2];
    uint32_t weights[8][4];
    Rows rows;
    int block = 0;         // listed: TilePage::block_and_tokens
    int num_left = 0;      // pages of the tile after this one
    int num_keys = kPage;  // slots in use of the page whose V comes next
    const auto multiply_keys = [&] {
        const ptx::UniformOperand a(ptx::smem_address(shared.q[q.at]) + team * 64 * 128);
        const ptx::UniformOperand b(ptx::smem_address(shared.k[k.at]));
        ptx::wgmma_begin();
#pragma unroll
        for (int step = 0; step < 8; ++step)
            ptx::wgmma_64x128(s, a + (step / 4 * kHalfQBytes + step % 4 * 32),
                              b + (step / 4 * kHalfPageBytes + step % 4 * 32), step > 0);
        ptx::wgmma_commit();
    };
    const auto multiply_values = [&] {
        const ptx::UniformOperand b(ptx::smem_address(shared.v[v.at]), kHalfPageBytes);
        ptx::wgmma_begin();
#pragma unroll
        for (int step = 0; step < 8; ++step)
            ptx::wgmma_64x128_transposed(o, weights[step], b + step * 16 * 128, true);
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
    };
    const auto leave_values = [&] {
        ptx::keep_registers(o);
        release(shared.v_empty[v.at]);
        v.advance();
    };
    const auto weigh_page = [&]<bool kMasked>() {
        if constexpr (kListed) {
            // The 16 rows of a warp are one token.
            const int token = team * 4 + warp_idx;
            const int visible = shared.tile[q.at].first_position + token - (block >> kTilePageShift) * kPage;
            const int last = block >> token & 1 ? visible : -1;
            const int last_key[2] = {last, last};
            if (last >= kPage - 1)
                weigh<false>(s, rows, rescale, job.scale_log2, last_key, t);
            else
                weigh<true>(s, rows, rescale, job.scale_log2, last_key, t);
        } else {
            int last_key[2] = {};
            if constexpr (kMasked) {
                const int first = shared.tile[q.at].first_position - block * kPage;
                last_key[0] = first + token_of(0);
                last_key[1] = first + token_of(1);
            }
            weigh<kMasked>(s, rows, rescale, job.scale_log2, last_key, t);
        }
    };
    const auto pack_weights = [&] {
#pragma unroll
        for (int j = 0; j < 16; ++j)
#pragma unroll
            for (int row = 0; row < 2; ++row)
                weights[j / 2][j % 2 * 2 + row] = ptx::pack_bf16(s[4 * j + 2 * row], s[4 * j + 2 * row + 1]);
    };
    /// The tile in slot q, or none if there are no more.
    const auto next_tile = [&] {
        ptx::barrier_wait(shared.q_full[q.at], q.parity);
        num_left = block = shared.tile[q.at].num_pages;
        rows = Rows{};
        return num_left > 0;
    };
    const auto begin_values = [&] {
        num_keys = shared.tile[q.at].num_keys;
#pragma unroll
        for (int i = 0; i < 64; ++i) o[i] = 0;
    };
    /// Out of the tile in `slot`, which may be filled again then; `sum`: of each row, this lane's share.
    const auto store = [&](int slot, const float (&sum)[2]) {
        const RowTile& tile = shared.tile[slot];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float total = sum[half];
            total += __shfl_xor_sync(kFull, total, 1);
            total += __shfl_xor_sync(kFull, total, 2);
            const int token = token_of(half),
                      head = tile.head * job.group + row + 8 * half - token * job.group;
            bf16* out = static_cast<bf16*>(p.out) + (tile.first_token + token) * p.out_token_stride +
                        head * p.out_head_stride;
            store_row_bf16(out, o, half, total == 0 ? 0.0f : __fdividef(1.0f, total), t,
                           token < tile.num_tokens);
        }
        release(shared.q_empty[slot]);
    };

    if (!next_tile()) return;
    await_keys();
    multiply_keys();
    ptx::wgmma_wait<0>();
    leave_keys();
    weigh_page.template operator()<true>();
    pack_weights();
    begin_values();
    for (;;) {
        const auto next_page = [&]<bool kMasked>() {
            await_values();
            await_keys();
            await_turn();
            multiply_keys();
            multiply_values();
            pass_turn();
            ptx::wgmma_wait<1>();
            leave_keys();
            weigh_page.template operator()<kMasked>();
            ptx::wgmma_wait_after(rows.sum[0] + rows.sum[1]);
            leave_values();
            pack_weights();
            if (__any_sync(kFull, rescale[0] != 1 || rescale[1] != 1)) {
#pragma unroll
                for (int i = 0; i < 64; ++i) o[i] *= rescale[i / 2 % 2];
            }
        };
        if constexpr (kListed) {
            while (num_left > 0) next_page.template operator()<false>();
        } else {
            // Blocks that every row sees all of.
            const int num_whole = (shared.tile[q.at].first_position + 1) / kPage;
            while (block > num_whole) next_page.template operator()<true>();
            while (block > 0) next_page.template operator()<false>();
        }
        // The last product with V runs beside the first one of the next tile.
        await_values();
        const float done[2] = {rows.sum[0], rows.sum[1]};
        const int slot = q.at;
        q.advance();
        const bool more = next_tile();
        if (!more) {
            multiply_values();
            ptx::wgmma_wait<0>();
            leave_values();
            store(slot, done);
            return;
        }
        await_keys();
        await_turn();
        multiply_keys();
        multiply_values();
        pass_turn();
        ptx::wgmma_wait<1>();
        leave_keys();
        weigh_page.template operator()<true>();
        ptx::wgmma_wait_after(rows.sum[0] + rows.sum[1]);
        leave_values();
        pack_weights();
        store(slot, done);
        begin_values();
    }
}

template <bool kListed>
__global__ void __launch_bounds__(kThreads, 1)
    tile_kernel(const __grid_constant__ Job job, const __grid_constant__ Maps maps) {
    extern __shared__ char raw[];
    Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
    if (threadIdx.x == 0) {
        for (int i = 0; i < kQSlots; ++i) {
            ptx::barrier_init(shared.q_full[i], 1);
            ptx::barrier_init(shared.q_empty[i], kConsumers * 4);
        }
        for (int i = 0; i < kStages; ++i) {
            ptx::barrier_init(shared.k_full[i], 1);
            ptx::barrier_init(shared.v_full[i], 1);
            ptx::barrier_init(shared.k_empty[i], kConsumers * 4);
            ptx::barrier_init(shared.v_empty[i], kConsumers * 4);
        }
        ptx::barrier_init_done();
    }
    __syncthreads();
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int role = static_cast<int>(threadIdx.x) / 128;
    if (role == 0) {
        ptx::release_registers<24>();
        if (threadIdx.x < 32) produce<kListed>(job, maps, shared);
    } else {
        ptx::take_registers<240>();
        consume<kListed>(job, shared, role - 1);
    }
}

CUtensorMap page_map(const PagedAttentionParams& p, const void* cache, int64_t block_stride) {
    return make_tensor_map<4>(cache, {kDim, kPage, p.num_kv_heads, p.num_blocks},
                              {kDim, kPage * kDim, block_stride}, {64, kPage, 1, 1});
}

Job make_job(const PagedAttentionParams& p, const ListedTiles& list, int64_t tile_tokens,
             int64_t shared_heads) {
    const int group = static_cast<int>(p.num_heads / p.num_kv_heads);
    return {.p = p,
            .group = group,
            .group_inverse = static_cast<int>(ceil_div(65536, group)),
            .scale_log2 = p.scale * kLog2e,
            .tile_tokens = static_cast<int>(tile_tokens),
            .shared_heads = static_cast<int>(shared_heads),
            .num_tiles = list.num_tiles,
            .next_unit = list.next_unit,
            .tiles = list.tiles,
            .pages = list.pages};
}

template <bool kListed>
void attend(const char* op, const Job& job, Stream stream) {
    const PagedAttentionParams& p = job.p;
    const Maps maps{
        make_tensor_map<3>(p.q, {kDim, p.num_heads, p.num_tokens}, {p.q_head_stride, p.q_token_stride},
                           {64, p.num_heads / p.num_kv_heads, job.tile_tokens}),
        page_map(p, p.k_cache, p.k_cache_block_stride), page_map(p, p.v_cache, p.v_cache_block_stride)};
    LaunchChain{op, dim3(static_cast<unsigned>(num_multiprocessors())), kThreads, sizeof(Shared) + 1024,
                stream}(tile_kernel<kListed>, job, maps);
}

}  // namespace

void paged_prefill(const PagedAttentionParams& p, Stream stream) {
    constexpr const char* kOp = "paged_attention";
    const DensePlan plan = make_dense_plan(p);
    char* workspace = static_cast<char*>(p.workspace);
    const ListedTiles list{.num_tiles = reinterpret_cast<int*>(workspace + plan.num_tiles),
                           .next_unit = reinterpret_cast<int*>(workspace + plan.next_unit),
                           .tiles = reinterpret_cast<RowTile*>(workspace + plan.tiles),
                           .pages = nullptr};
    const Job job = make_job(p, list, plan.tile_tokens, plan.shared_heads);
    int page_shift = 0;
    while (p.max_blocks_per_seq >> page_shift > kPlanThreads) ++page_shift;
    LaunchChain{kOp, dim3(1), kPlanThreads, 0, stream}(list_kernel, job, page_shift);
    attend<false>(kOp, job, stream);
}

void listed_prefill(const char* op, const PagedAttentionParams& p, const ListedTiles& list, Stream stream) {
    attend<true>(op, make_job(p, list, kListedTokens, 1), stream);
}

}  // namespace mmx::cuda::sm90
