#include "cpp/core/math.h"
#include "cuda/common/batch.cuh"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/global.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/ptx/shared.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/ptx/wgmma_n.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/attention/sm90.h"
#include "cuda/kernels/attention/sm90_partial.cuh"
#include "cuda/kernels/attention/sm90_rows.cuh"
#include "cuda/kernels/attention/sm90_sparse_job.cuh"
#include "cuda/kernels/attention/sm90_tiles.h"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kPage = 128, kDim = 128, kHeads = 16;

/// Memory of one slab. Why from the host: kernel arguments cost no registers.
struct Slab {
    const PrefillItem* items;
    const int* num_items;
    int *next_item, *next_row;
    const int* list;
    char* partials;
    float2* max_sums;
    int first_token;

    Slab(const SparseJob& job, int64_t slab)
        : items(job.at<PrefillItem>(job.plan.items) + slab * job.plan.slab_items),
          num_items(job.at<int>(job.plan.num_items) + slab),
          next_item(job.at<int>(job.plan.next_item) + slab),
          next_row(job.at<int>(job.plan.next_row) + slab),
          list(job.at<int>(job.plan.lists) + slab * job.plan.slab_entries),
          partials(job.at<char>(job.plan.partials)),
          max_sums(job.at<float2>(job.plan.max_sums)),
          first_token(static_cast<int>(slab * job.plan.slab_tokens)) {}
};

// ---- partial attention of each (query, block) -----------------------------------------------------

constexpr int kConsumers = 3, kThreads = (1 + kConsumers) * 128;
constexpr int kQSlots = 2 * kConsumers, kStages = 2;
constexpr int kHalfPageBytes = kPage * 128;  // 64 of the 128 dimensions
constexpr int kHalfTileBytes = 64 * 128;

/// What a warp is told of its query in a row tile.
struct Note {
    static constexpr int kStage = 1, kParity = 2;  // of the page, and of the barrier that says it is there
    static constexpr int kLeave = 4;               // the warpgroup's last row tile of this page
    static constexpr int kEnd = 8;                 // no row tile

    int place;  // of the partial result in the slab; -1: padding
    int flags;
    int last_key;   // of the page that the query sees
    float k_scale;  // of e4m3 pages
};

struct Shared {
    alignas(1024) char k[kStages][2 * kHalfPageBytes];
    alignas(1024) char v[kStages][2 * kHalfPageBytes];
    alignas(1024) char q[kQSlots][2 * kHalfTileBytes];
    alignas(16) Note notes[kQSlots][kTileQueries];
    uint64_t kv_full[kStages], kv_empty[kStages], q_full[kQSlots], q_empty[kQSlots];
    uint64_t item_full[kStages], raw_full[kStages];
    PrefillItem item[kStages];  // no row tiles: the end
};

struct Maps {
    CUtensorMap q;     // (dimension, head, token)
    CUtensorMap k, v;  // (dimension, slot, head, page)
};

/// 16 e4m3 codes as bf16, exactly.
__device__ __forceinline__ void widen(const uint4& codes, uint4& low, uint4& high) {
    const auto pair = [](uint32_t halves) {
        float x, y;
        asm("{\n.reg .f16 a, b;\nmov.b32 {a, b}, %2;\ncvt.f32.f16 %0, a;\ncvt.f32.f16 %1, b;\n}"
            : "=f"(x), "=f"(y)
            : "r"(halves));
        return ptx::pack_bf16(x, y);
    };
    const auto four = [&](uint32_t word, uint32_t& a, uint32_t& b) {
        ptx::decode_e4m3(word, a, b);
        a = pair(a), b = pair(b);
    };
    four(codes.x, low.x, low.y);
    four(codes.y, low.z, low.w);
    four(codes.z, high.x, high.y);
    four(codes.w, high.z, high.w);
}

/// Key `key` of a page: its 128 codes, which the copy engine left in the second half of `page`, become its
/// row in both halves. In place: a thread reads a code before it writes there, and nobody else reads that
/// row.
__device__ __forceinline__ void widen_key(char* page, int key, bool wanted) {
    char *first = page + key * 128, *second = first + kHalfPageBytes;
#pragma unroll 1
    for (int chunk = 0; chunk < 8; ++chunk) {
        uint4 low{}, high{};
        if (wanted) widen(*reinterpret_cast<const uint4*>(second + ((chunk ^ key % 8) << 4)), low, high);
        char* out = chunk < 4 ? first : second;
        *reinterpret_cast<uint4*>(out + ((chunk % 4 * 2 ^ key % 8) << 4)) = low;
        *reinterpret_cast<uint4*>(out + ((chunk % 4 * 2 + 1 ^ key % 8) << 4)) = high;
    }
}

/// Four warps feed the ring: each a quarter of K and V of the next item, while this one is worked on, and one
/// of the four gathered queries of each row tile. One warp alone would issue its loads too slowly. The first
/// one draws the items, listed ones or each choice in turn. They also widen e4m3 pages and clear unused slots
/// of V, which may hold NaN: 0 x NaN is NaN.
template <class C, bool kListed>
__device__ __forceinline__ void produce(const SparseJob& job, const Slab& slab, const Maps& maps,
                                        Shared& shared) {
    const SparseAttentionParams& p = job.p;
    const int num_heads = static_cast<int>(p.base.num_kv_heads), topk = static_cast<int>(p.topk);
    const int warp_idx = static_cast<int>(threadIdx.x / 32), lane_idx = static_cast<int>(threadIdx.x % 32);
    const int half = warp_idx % 2;
    static_assert(kRunTiles <= 32);
    int choice = slab.first_token * num_heads * topk + static_cast<int>(blockIdx.x);
    /// By the first warp; the item is known to its first lane. Of a choice, first_tile is its entry.
    const auto draw = [&] {
        PrefillItem item{};
        if constexpr (kListed) {
            if (lane_idx == 0) {
                const int i = atomicAdd(slab.next_item, 1);
                if (i < *slab.num_items) item = slab.items[i];
            }
        } else {
            const int end = min(slab.first_token + static_cast<int>(job.plan.slab_tokens),
                                static_cast<int>(p.base.num_tokens)) *
                            num_heads * topk;
            for (bool found = false; !found && choice < end; choice += static_cast<int>(gridDim.x)) {
                const int block = p.block_ids[choice], row = choice / topk, token = row / num_heads;
                if (block < 0) continue;
                const TokenPlace place = warp_place_of(token, p.base.cu_seqlens_q, p.base.seq_lens,
                                                       static_cast<int>(p.base.num_seqs));
                if (place.seq < 0) continue;
                item = make_item(p.base, static_cast<int>(place.seq), block, row - token * num_heads,
                                 entry_of(token, choice - row * topk), 1);
                found = true;
            }
        }
        return item;
    };
    PrefillItem drawn{};
    if (warp_idx == 0) drawn = draw();
    int stage = 0, parity = 0, slot = 0, slot_parity = 1;
    int raw_parity = 0;  // bit i: of raw_full[i]
    /// By one lane: this warp's part of the next row tile.
    const auto load_query = [&](int entry, int head, const Note& note) {
        ptx::barrier_wait(shared.q_empty[slot], slot_parity);
        shared.notes[slot][warp_idx] = note;
        if (note.place < 0) {
            ptx::barrier_arrive(shared.q_full[slot]);
        } else {
            ptx::barrier_arrive_expect(shared.q_full[slot], 2 * kHeads * 128);
            char* rows = shared.q[slot] + warp_idx * kHeads * 128;
            const int token = entry >> kEntryTokenShift;
            ptx::tma_load_3d(rows, maps.q, shared.q_full[slot], 0, head * kHeads, token);
            ptx::tma_load_3d(rows + kHalfTileBytes, maps.q, shared.q_full[slot], 64, head * kHeads, token);
        }
    };
    const auto next_slot = [&] {
        if (++slot == kQSlots) slot = 0, slot_parity ^= 1;
    };
    const auto await_raw = [&] {
        ptx::barrier_wait(shared.raw_full[stage], raw_parity >> stage & 1);
        raw_parity ^= 1 << stage;
    };
    for (;;) {
        if (threadIdx.x == 0) {
            ptx::barrier_wait(shared.kv_empty[stage], parity ^ 1);
            shared.item[stage] = drawn;
            ptx::barrier_arrive(shared.item_full[stage]);
        }
        if (warp_idx == 0) drawn = draw();
        if (lane_idx == 0) ptx::barrier_wait(shared.item_full[stage], parity);
        __syncwarp();
        const PrefillItem item = shared.item[stage];
        const int num_tiles = item.num_tiles_and_head & 0xFF, head = item.num_tiles_and_head >> 8;
        if (num_tiles == 0) {
#pragma unroll 1
            for (int group = 0; group < kConsumers; ++group, next_slot())
                if (lane_idx == 0) load_query(0, 0, {-1, Note::kEnd, 0, 0});
            return;
        }
        // Warpgroups that get no row tile of this item will not say that they are done with it.
        if (threadIdx.x == 0)
            for (int i = num_tiles; i < kConsumers; ++i) ptx::barrier_arrive(shared.kv_empty[stage], 4);
        int entries = -1;  // a lane each of the row tiles
        if constexpr (kListed) {
            if (lane_idx < num_tiles)
                entries =
                    slab.list[(static_cast<int64_t>(item.first_tile) + lane_idx) * kTileQueries + warp_idx];
        } else {
            if (threadIdx.x == 0) entries = item.first_tile;
        }
        __syncwarp();  // all lanes have read the item
        if constexpr (sizeof(C) == 2) {
            const bool is_v = warp_idx >= 2, clears = is_v && item.num_keys < kPage;
            char* page = (is_v ? shared.v[stage] : shared.k[stage]) + half * kHalfPageBytes;
            if (lane_idx == 0) {
                uint64_t& full = clears ? shared.raw_full[stage] : shared.kv_full[stage];
                ptx::barrier_arrive_expect(full, kHalfPageBytes);
                ptx::tma_load_4d(page, is_v ? maps.v : maps.k, full, half * 64, 0, head, item.page);
            }
            if (clears) {
                await_raw();
                for (int i = item.num_keys * 8 + lane_idx; i < kPage * 8; i += 32)
                    *reinterpret_cast<uint4*>(page + i * 16) = make_uint4(0, 0, 0, 0);
                ptx::fence_async_proxy();
                __syncwarp();
                if (lane_idx == 0) ptx::barrier_arrive(shared.kv_full[stage]);
            }
        } else {
            if (threadIdx.x == 0) {
                ptx::barrier_arrive_expect(shared.raw_full[stage], 2 * kHalfPageBytes);
                ptx::tma_load_4d(shared.k[stage] + kHalfPageBytes, maps.k, shared.raw_full[stage], 0, 0, head,
                                 item.page);
                ptx::tma_load_4d(shared.v[stage] + kHalfPageBytes, maps.v, shared.raw_full[stage], 0, 0, head,
                                 item.page);
            }
            const int key = static_cast<int>(threadIdx.x);
            await_raw();
            widen_key(shared.k[stage], key, true);
            widen_key(shared.v[stage], key, key < item.num_keys);
            ptx::fence_async_proxy();
            __syncwarp();
            if (lane_idx == 0) ptx::barrier_arrive(shared.kv_full[stage]);
        }
        const float k_scale = sizeof(C) == 1 && p.base.k_scale ? p.base.k_scale[head] : 1.0f;
#pragma unroll 1
        for (int tile = 0; tile < num_tiles; ++tile, next_slot()) {
            const int entry = __shfl_sync(kFull, entries, tile);
            if (lane_idx == 0) {
                const int token = entry >> kEntryTokenShift;
                const int row = (token - slab.first_token) * num_heads + head;
                const int flags = stage * Note::kStage + parity * Note::kParity +
                                  (tile + kConsumers >= num_tiles ? Note::kLeave : 0);
                load_query(entry, head,
                           entry < 0 ? Note{-1, flags, kPage - 1, k_scale}
                                     : Note{row * topk + entry % (1 << kEntryTokenShift), flags,
                                            token - item.token_at_zero, k_scale});
            }
        }
        if (++stage == kStages) stage = 0, parity ^= 1;
    }
}

/// Maximum and sum of weights of a thread's two rows.
struct Softmax {
    float best[2], sum[2];
};

/// Scores become weights, key c of the page visible iff c <= last_key.
__device__ __forceinline__ Softmax weigh(float (&s)[64], float scale_log2, int last_key, int t) {
    Softmax softmax;
    if (last_key < kPage - 1) {
#pragma unroll
        for (int j = 0; j < 16; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (8 * j + 2 * t + e % 2 > last_key) s[4 * j + e] = -INFINITY;
    }
    float shift[2];
#pragma unroll
    for (float& best : softmax.best) best = -INFINITY;
#pragma unroll
    for (int j = 0; j < 16; ++j)
#pragma unroll
        for (int row = 0; row < 2; ++row)
            softmax.best[row] = fmaxf(softmax.best[row], fmaxf(s[4 * j + 2 * row], s[4 * j + 2 * row + 1]));
    quad_max(softmax.best);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        softmax.best[row] *= scale_log2;
        softmax.sum[row] = 0;
        shift[row] = softmax.best[row] == -INFINITY ? 0 : softmax.best[row];
    }
#pragma unroll
    for (int j = 0; j < 16; ++j)
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float* pair = s + 4 * j + 2 * row;
            pair[0] = ptx::exp2_approx(fmaf(pair[0], scale_log2, -shift[row]));
            pair[1] = ptx::exp2_approx(fmaf(pair[1], scale_log2, -shift[row]));
            softmax.sum[row] += pair[0] + pair[1];
        }
#pragma unroll
    for (int offset = 1; offset <= 2; offset *= 2)
#pragma unroll
        for (float& sum : softmax.sum) sum += __shfl_xor_sync(kFull, sum, offset);
    return softmax;
}

/// A warpgroup takes every third row tile; a warp is one query with its 16 heads. Its partial result is
/// stored while the scores of its next tile are on their way; otherwise the warpgroups hide each other's
/// latencies.
template <class C>
__device__ __forceinline__ void consume(const SparseAttentionParams& p, const Slab& slab, Shared& shared,
                                        int group) {
    const int warp_idx = static_cast<int>(threadIdx.x) % 128 / 32,
              lane_idx = static_cast<int>(threadIdx.x) % 32;
    const int g = lane_idx / 4, t = lane_idx % 4;
    float s[64], o[64];
    Note note;
    int turn = 0;  // row tiles of this warpgroup so far
    const auto slot_now = [&] { return group + turn % 2 * kConsumers; };
    const auto release = [&](uint64_t& barrier) {
        __syncwarp();  // all lanes have read
        if (lane_idx == 0) ptx::barrier_arrive(barrier);
    };
    /// False at the end.
    const auto next_tile = [&] {
        ptx::barrier_wait(shared.q_full[slot_now()], turn / 2 % 2);
        uint32_t words[4];
        ptx::load_shared(words, ptx::smem_address(&shared.notes[slot_now()][warp_idx]));
        note = {static_cast<int>(words[0]), static_cast<int>(words[1]), static_cast<int>(words[2]),
                __uint_as_float(words[3])};
        return (note.flags & Note::kEnd) == 0;
    };
    const auto multiply_keys = [&] {
        const int slot = slot_now(), stage = note.flags & Note::kStage;
        ptx::barrier_wait(shared.kv_full[stage], (note.flags & Note::kParity) != 0);
        const ptx::UniformOperand a(ptx::smem_address(shared.q[slot]));
        const ptx::UniformOperand b(ptx::smem_address(shared.k[stage]));
#pragma unroll
        for (float& x : s) x = 0;
        ptx::wgmma_begin();
#pragma unroll
        for (int step = 0; step < 8; ++step)
            ptx::Wgmma<128>::bf16(s, a + (step / 4 * kHalfTileBytes + step % 4 * 32),
                                  b + (step / 4 * kHalfPageBytes + step % 4 * 32), step > 0);
        ptx::wgmma_commit();
    };
    const auto multiply_values = [&] {
        uint32_t weights[8][4];
#pragma unroll
        for (int j = 0; j < 16; ++j)
#pragma unroll
            for (int row = 0; row < 2; ++row)
                weights[j / 2][j % 2 * 2 + row] = ptx::pack_bf16(s[4 * j + 2 * row], s[4 * j + 2 * row + 1]);
        const ptx::UniformOperand b(ptx::smem_address(shared.v[note.flags & Note::kStage]), kHalfPageBytes);
#pragma unroll
        for (float& x : o) x = 0;
        ptx::wgmma_begin();
#pragma unroll
        for (int step = 0; step < 8; ++step)
            ptx::wgmma_transposed_bf16(o, weights[step], b + step * 16 * 128, step > 0);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        ptx::keep_registers(o);
    };
    while (next_tile()) {
        multiply_keys();
        ptx::wgmma_wait<0>();
        ptx::keep_registers(s);
        release(shared.q_empty[slot_now()]);
        ++turn;
        const float scale_log2 = p.base.scale * ptx::kLog2e * (sizeof(C) == 1 ? note.k_scale : 1.0f);
        const Softmax softmax = weigh(s, scale_log2, note.last_key, t);
        multiply_values();
        if (note.flags & Note::kLeave) release(shared.kv_empty[note.flags & Note::kStage]);
        if (note.place < 0) continue;
        if (t == 0) {
            float2* max_sum = slab.max_sums + static_cast<int64_t>(note.place) * kHeads + g;
            max_sum[0] = make_float2(softmax.best[0], softmax.sum[0]);
            max_sum[8] = make_float2(softmax.best[1], softmax.sum[1]);
        }
        char* out = slab.partials + static_cast<int64_t>(note.place) * kPartialBytes;
        PackedRow([&](int i) { return o[i / 2 * 4 + i % 2]; }).store<0>(out, lane_idx);
        PackedRow([&](int i) { return o[i / 2 * 4 + 2 + i % 2]; }).store<1>(out, lane_idx);
    }
}

/// Partial results, in the order of the accumulator fragments, with each row's maximum and sum of weights.
template <class C, bool kListed>
__global__ void __launch_bounds__(kThreads, 1)
    sparse_prefill_kernel(const __grid_constant__ SparseJob job, const __grid_constant__ Maps maps,
                          const __grid_constant__ Slab slab) {
    constexpr bool kCodes = sizeof(C) == 1;  // whose feeding warps widen them
    extern __shared__ char raw[];
    Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
    if (threadIdx.x == 0) {
        for (int i = 0; i < kStages; ++i) {
            ptx::barrier_init(shared.kv_full[i], 4);
            ptx::barrier_init(shared.kv_empty[i], kConsumers * 4);
            ptx::barrier_init(shared.item_full[i], 1);
            ptx::barrier_init(shared.raw_full[i], kCodes ? 1 : 2);
        }
        for (int i = 0; i < kQSlots; ++i) {
            ptx::barrier_init(shared.q_full[i], 4);
            ptx::barrier_init(shared.q_empty[i], 4);
        }
        ptx::barrier_init_done();
    }
    __syncthreads();
    ptx::wait_for_predecessors();
    // Successors are not let start: while the combine waits, this takes 2 to 4 % longer (measured).
    const int group = static_cast<int>(threadIdx.x) / 128;
    if (group == 0) {
        ptx::release_registers<32>();
        produce<C, kListed>(job, slab, maps, shared);
    } else {
        ptx::take_registers<160>();
        consume<C>(job.p, slab, shared, group - 1);
    }
}

// ---- combine --------------------------------------------------------------------------------------

constexpr int kCombineWarps = 4, kCombineBlocks = 5;  // of a block, on a multiprocessor
constexpr int kHalfHeads = kHeads / 2;                // rows g, or g + 8, of the fragments

/// By a warp: the partial results of (token, KV head) `place`, half `row` of the query heads, weighed by
/// their sums, in ascending order of blocks.
__device__ __forceinline__ void combine_row(const SparseJob& job, const Slab& slab, int place, int row,
                                            float (&weights)[kDecodeMaxTopk][kHalfHeads]) {
    const SparseAttentionParams& p = job.p;
    const int lane_idx = static_cast<int>(threadIdx.x % 32), g = lane_idx / 4, t = lane_idx % 4;
    const int num_heads = static_cast<int>(p.base.num_kv_heads), head = place % num_heads;
    const int64_t token = slab.first_token + place / num_heads;
    if (job.in_union(static_cast<int>(token), head)) return;
    const int32_t* ids = p.block_ids + (token * num_heads + head) * p.topk;
    int used = 0;
    for (int first = 0; first < p.topk; first += 32)
        used += __popc(__ballot_sync(kFull, first + lane_idx < p.topk && ids[first + lane_idx] >= 0));
    {
        constexpr int kLanes = 32 / kHalfHeads;  // that share a head
        const int mine = lane_idx % kHalfHeads, first = lane_idx / kHalfHeads;
        const auto across = [](float x, auto&& f) {
#pragma unroll
            for (int offset = kHalfHeads; offset < 32; offset *= 2)
                x = f(x, __shfl_xor_sync(kFull, x, offset));
            return x;
        };
        const float2* max_sum = slab.max_sums + place * p.topk * kHeads + row * kHalfHeads + mine;
        float best = -INFINITY, sum = 0;
#pragma unroll 4
        for (int k = first; k < used; k += kLanes) best = fmaxf(best, max_sum[k * kHeads].x);
        best = across(best, [](float x, float y) { return fmaxf(x, y); });
        if (best == -INFINITY) best = 0;
#pragma unroll 4
        for (int k = first; k < used; k += kLanes) {
            const float2 part = max_sum[k * kHeads];
            const float weight = ptx::exp2_approx(part.x - best);
            weights[k][mine] = weight;
            sum += weight * part.y;
        }
        sum = across(sum, [](float x, float y) { return x + y; });
        const float v_scale = p.base.v_scale ? p.base.v_scale[head] : 1.0f;
        const float inverse = sum == 0 ? 0.0f : v_scale * PackedRow::kUnit / sum;
        for (int k = first; k < used; k += kLanes) weights[k][mine] *= inverse;
        __syncwarp();
    }
    const char* partial =
        slab.partials + static_cast<int64_t>(place) * p.topk * kPartialBytes + row * PackedRow::kBytes;
    float o[32] = {};
#pragma unroll 4
    for (int k = 0; k < used; ++k) {
        PackedRow x;
        x.load(partial + k * kPartialBytes, lane_idx);
        x.for_each(weights[k][g], [&](int i, float unit, float value) { o[i] = fmaf(unit, value, o[i]); });
    }
    bf16* out = static_cast<bf16*>(p.base.out) + token * p.base.out_token_stride +
                (head * kHeads + row * kHalfHeads + g) * p.base.out_head_stride;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        uint32_t pairs[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) pairs[j] = ptx::pack_bf16(o[8 * i + 2 * j], o[8 * i + 2 * j + 1]);
        quad_transpose(pairs, t);
        *reinterpret_cast<uint4*>(out + 32 * i + 8 * t) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
}

/// Warps draw rows as they come, the next one beside this one; few rows, which nobody counts, have a warp
/// each or are taken in turn.
__global__ void __launch_bounds__(kCombineWarps * 32, kCombineBlocks)
    combine_kernel(const __grid_constant__ SparseJob job, const __grid_constant__ Slab slab) {
    __shared__ float weights[kCombineWarps][kDecodeMaxTopk][kHalfHeads];
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    if (job.plan.buckets && *slab.num_items == 0) return;
    const int warp_idx = static_cast<int>(threadIdx.x / 32), lane_idx = static_cast<int>(threadIdx.x % 32);
    const PagedAttentionParams& b = job.p.base;
    const int num_tokens =
        min(b.cu_seqlens_q[b.num_seqs] - slab.first_token, static_cast<int>(job.plan.slab_tokens));
    const int num_rows = num_tokens * static_cast<int>(b.num_kv_heads) * 2;
    const int num_warps = static_cast<int>(gridDim.x) * kCombineWarps;
    int index = static_cast<int>(blockIdx.x) * kCombineWarps + warp_idx;
    while (index < num_rows) {
        int next = index;
        if (job.plan.buckets && lane_idx == 0) next = ptx::draw_number(slab.next_row);
        combine_row(job, slab, index / 2, index % 2, weights[warp_idx]);
        index = num_warps + __shfl_sync(kFull, next, 0);  // all lanes have read the weights
    }
}

CUtensorMap page_map(const PagedAttentionParams& p, const void* cache, int64_t block_stride) {
    const bool codes = p.cache_dtype == DType::kE4M3;
    return make_tensor_map<4>(cache, {kDim, kPage, p.num_kv_heads, p.num_blocks},
                              {kDim, kPage * kDim, block_stride}, {codes ? 128 : 64, kPage, 1, 1},
                              codes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
}

}  // namespace

void sparse_prefill(const SparseAttentionParams& p, Stream stream) {
    constexpr const char* kOp = "sparse_attention";
    const PagedAttentionParams& b = p.base;
    const SparseJob job{p, make_prefill_plan(p)};
    const PrefillPlan& plan = job.plan;
    const Maps maps{make_tensor_map<3>(b.q, {kDim, b.num_heads, b.num_tokens},
                                       {b.q_head_stride, b.q_token_stride}, {64, kHeads, 1}),
                    page_map(b, b.k_cache, b.k_cache_block_stride),
                    page_map(b, b.v_cache, b.v_cache_block_stride)};
    if (plan.buckets) list_choices(job, stream);
    if (plan.unions)
        listed_prefill(kOp, b,
                       {.num_tiles = job.at<int>(plan.counters),
                        .next_unit = job.at<int>(plan.counters) + 1,
                        .tiles = job.at<RowTile>(plan.union_tiles),
                        .order = job.at<int>(plan.union_order),
                        .pages = job.at<TilePage>(plan.union_pages)},
                       stream);
    const LaunchChain attend{kOp, dim3(static_cast<unsigned>(num_multiprocessors())), kThreads,
                             sizeof(Shared) + 1024, stream};
    const int64_t combine_blocks = std::min(ceil_div(plan.slab_tokens * b.num_kv_heads * 2, kCombineWarps),
                                            num_multiprocessors() * kCombineBlocks);
    const LaunchChain combine{kOp, dim3(static_cast<unsigned>(combine_blocks)), kCombineWarps * 32, 0,
                              stream};
    const auto attend_slab = [&]<class C>(C, const Slab& slab) {
        attend(plan.buckets ? sparse_prefill_kernel<C, true> : sparse_prefill_kernel<C, false>, job, maps,
               slab);
    };
    for (int64_t i = 0; i < plan.num_slabs; ++i) {
        const Slab slab(job, i);
        b.cache_dtype == DType::kE4M3 ? attend_slab(e4m3{}, slab) : attend_slab(bf16{}, slab);
        combine(combine_kernel, job, slab);
    }
}

}  // namespace mmx::cuda::sm90
