#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/multicast.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/search.cuh"
#include "cuda/kernels/attention/choose.h"
#include "cuda/kernels/attention/sm90.h"
#include "cuda/kernels/attention/sm90_decode.cuh"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kTokens = static_cast<int>(kPagedDecodeTokens), kBlocks = static_cast<int>(kPagedDecodeBlocks);

/// The tokens of a launch and the pages before each: (token, KV head, page) as one list of items. With
/// kCrosses, thread blocks take equal shares of it, whatever the lengths are; otherwise a (token, KV head) is
/// cut into chunks, at most kBlocks in all, and a thread block takes one.
struct TokenList {
    int cu_pages[kTokens + 1];
    int position[kTokens];
    uint16_t seq[kTokens], cu_chunks[kTokens + 1];
};

/// By one warp: cu[t + 1] = the sum of count(0) to count(t).
template <class T, class F>
__device__ __forceinline__ void fill_prefix(T* cu, int size, F&& count) {
    const int lane_idx = static_cast<int>(threadIdx.x % 32);
    int before = 0;
#pragma unroll 1
    for (int first = 0; first < size; first += 32) {
        const int t = first + lane_idx, sum = before + warp_prefix_sum(t < size ? count(t) : 0);
        if (t < size) cu[t + 1] = static_cast<T>(sum);
        before = __shfl_sync(kFull, sum, 31);
    }
    if (lane_idx == 0) cu[0] = 0;
    __syncwarp();
}

/// By a whole block of kThreads threads. Whatever the lengths are, what is listed lies within the page table.
/// Returns what the thread read last.
template <int kThreads, bool kCrosses>
__device__ __forceinline__ SeqLens list_tokens(TokenList& list, const PagedAttentionParams& p,
                                               int first_token, int num_tokens) {
    const int tid = static_cast<int>(threadIdx.x), most = static_cast<int>(p.max_blocks_per_seq);
    SeqLens lens{};
#pragma unroll 1
    for (int t = tid; t < num_tokens; t += kThreads) {
        list.cu_pages[t + 1] = list.position[t] = 0;
        list.seq[t] = 0;
    }
    __syncthreads();
#pragma unroll 1
    for (int s = tid; s < p.num_seqs; s += kThreads) {
        lens = peek_lens(p.cu_seqlens_q, p.seq_lens, s);
        const int last = min(lens.end - first_token, num_tokens);
#pragma unroll 1
        for (int t = max(lens.begin - first_token, 0); t < last; ++t) {
            const int position = lens.len - lens.end + first_token + t;
            list.cu_pages[t + 1] = min(max(position / kPage + 1, 0), most);
            list.position[t] = position;
            list.seq[t] = static_cast<uint16_t>(s);
        }
    }
    __syncthreads();
    if (tid < 32) {
        fill_prefix(list.cu_pages, num_tokens, [&](int t) { return list.cu_pages[t + 1]; });
        if (!kCrosses) {
            const int heads = static_cast<int>(p.num_kv_heads), items = heads * list.cu_pages[num_tokens];
            const auto chunks = [&](int t, int pages) {
                return (list.cu_pages[t + 1] - list.cu_pages[t] + pages - 1) / pages;
            };
            // The least pages a chunk with which kBlocks of them do.
            const int tried = max(1, (items + kBlocks - 1) / kBlocks) + tid;
            int sum = 0;
#pragma unroll 1
            for (int t = 0; t < num_tokens; ++t) sum += chunks(t, tried);
            const unsigned fits = __ballot_sync(kFull, heads * sum <= kBlocks);
            const int pages = fits ? __shfl_sync(kFull, tried, __ffs(fits) - 1)
                                   : items / (kBlocks - heads * num_tokens) + 1;
            fill_prefix(list.cu_chunks, num_tokens, [&](int t) { return chunks(t, pages); });
        }
    }
    __syncthreads();
    return lens;
}

/// Pages of a token and KV head.
struct Item {
    int token, kv_head, page;  // token: in the list
    int num_pages;             // of the token
};

__device__ __forceinline__ Item item_of(const TokenList& list, int num_tokens, int num_heads, int item) {
    const int token = place_in(list.cu_pages, num_tokens, item / num_heads);
    const int pages = list.cu_pages[token + 1] - list.cu_pages[token];
    const int in_token = item - num_heads * list.cu_pages[token];
    const int head = in_token / max(pages, 1);
    return {token, head, in_token - head * pages, pages};
}

/// The items of a thread block.
struct Share {
    int begin, count;
};

/// Equal shares: the first `extra` blocks take one item more.
struct EqualShares {
    int each, extra;

    __device__ __forceinline__ explicit EqualShares(int items)
        : each(items / kBlocks), extra(items - each * kBlocks) {}
    __device__ __forceinline__ int begin_of(int block) const { return each * block + min(block, extra); }
    __device__ __forceinline__ int owner_of(int item) const {
        const int in_larger = extra * (each + 1);
        return item < in_larger ? item / (each + 1) : extra + (item - in_larger) / each;
    }
};

template <bool kCrosses>
__device__ __forceinline__ Share share_of(const TokenList& list, int num_tokens, int num_heads, int block) {
    if constexpr (kCrosses) {
        const EqualShares shares(num_heads * list.cu_pages[num_tokens]);
        const int begin = shares.begin_of(block);
        return {begin, shares.begin_of(block + 1) - begin};
    } else {
        if (block >= num_heads * list.cu_chunks[num_tokens]) return {0, 0};
        const int token = place_in(list.cu_chunks, num_tokens, block / num_heads);
        const int chunks = list.cu_chunks[token + 1] - list.cu_chunks[token];
        const int pages = list.cu_pages[token + 1] - list.cu_pages[token];
        const int in_token = block - num_heads * list.cu_chunks[token];
        const int head = in_token / chunks, chunk = in_token - head * chunks;
        const int first = pages * chunk / chunks;
        return {num_heads * list.cu_pages[token] + head * pages + first,
                pages * (chunk + 1) / chunks - first};
    }
}

/// The parts of a (token, KV head): their places in the workspace. Without kCrosses a block has one; with it,
/// one at most that begins within the pages of its first unit and one that begins with its last unit.
struct Parts {
    int first, second, step, count;

    __device__ __forceinline__ int at(int i) const { return i == 0 ? first : second + (i - 1) * step; }
};

template <bool kCrosses>
__device__ __forceinline__ int place_of_part(int block, bool begins_unit) {
    return kCrosses ? 2 * block + (begins_unit ? 1 : 0) : block;
}

template <bool kCrosses>
__device__ __forceinline__ Parts parts_of(const TokenList& list, int num_tokens, int num_heads, int token,
                                          int kv_head) {
    const int pages = list.cu_pages[token + 1] - list.cu_pages[token];
    if (pages == 0) return {0, 0, 0, 0};
    if constexpr (kCrosses) {
        const EqualShares shares(num_heads * list.cu_pages[num_tokens]);
        const int begin = num_heads * list.cu_pages[token] + kv_head * pages;
        const int first = shares.owner_of(begin), last = shares.owner_of(begin + pages - 1);
        return {2 * first + 1, 2 * first + 2, 2, last - first + 1};
    } else {
        const int chunks = list.cu_chunks[token + 1] - list.cu_chunks[token];
        const int first = num_heads * list.cu_chunks[token] + kv_head * chunks;
        return {first, first + 1, 1, chunks};
    }
}

__device__ __forceinline__ float* part_at(const PagedAttentionParams& p, int place) {
    return static_cast<float*>(p.workspace) + place * static_cast<int>(kDecodePartialFloats);
}

/// By the workers: the result of a (token, KV head) whose pages are `pages` from the item on, or a part of
/// it.
template <class C, bool kCrosses>
__device__ __forceinline__ void store_part(const PagedAttentionParams& p, const TokenList& list,
                                           int first_token, const Item& item, int pages, const Rows& rows) {
    const int warp_idx = static_cast<int>(threadIdx.x / 32), lane_idx = static_cast<int>(threadIdx.x % 32);
    const Unit unit{first_token + item.token, item.kv_head,
                    static_cast<int>(p.num_heads) / static_cast<int>(p.num_kv_heads), list.seq[item.token],
                    list.position[item.token]};
    if (pages == item.num_pages) return store_rows<C>(p, unit, rows);
    float* part = part_at(p, place_of_part<kCrosses>(static_cast<int>(blockIdx.x), item.page == 0));
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int head = lane_idx / 4 + 8 * row;
        if (head >= unit.group) continue;
        Pages<C>::for_each_run(rows.o, row, warp_idx, [&](int d, float x, float y, auto... more) {
            *reinterpret_cast<float2*>(part + head * kDim + d) = make_float2(x, y);
            if constexpr (sizeof...(more) > 0)
                *reinterpret_cast<float2*>(part + head * kDim + d + 2) = make_float2(more...);
        });
        if (warp_idx == 0 && lane_idx % 4 == 0)
            reinterpret_cast<float2*>(part + kRows * kDim)[head] = make_float2(rows.max[row], rows.sum(row));
    }
}

template <class C, int kSlots, bool kCrosses>
struct PagedShared {
    PageRing<C, kSlots> ring;
    TokenList list;
    Queries more_queries[kCrosses ? 1 : 0];  // units take turns with ring.queries
};

/// The first pages are asked for by lengths and page tables as they were before the wait, as soon as it ends;
/// both are read again meanwhile. If they have changed, those pages are thrown away.
template <class C, int kSlots, bool kCrosses>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    paged_decode_kernel(const __grid_constant__ PagedAttentionParams p, const __grid_constant__ Maps maps,
                        int first_token, int num_tokens) {
    extern __shared__ __align__(1024) char raw[];
    auto& shared = *reinterpret_cast<PagedShared<C, kSlots, kCrosses>*>(raw);
    auto& ring = shared.ring;
    const bool feeds = threadIdx.x >= kWorkers;
    const int lane_idx = static_cast<int>(threadIdx.x % 32), block = static_cast<int>(blockIdx.x);
    const int num_heads = static_cast<int>(p.num_kv_heads), num_seqs = static_cast<int>(p.num_seqs);
    if (feeds) init(ring, maps);
    touch(p);
    const auto item_at = [&](int item) { return item_of(shared.list, num_tokens, num_heads, item); };
    const auto queries_at = [&](const Item& item) {
        return queries_of(p, first_token + item.token, min(item.kv_head, num_heads - 1));
    };
    const SeqLens lens = list_tokens<kDecodeThreads, kCrosses>(shared.list, p, first_token, num_tokens);
    Share share = share_of<kCrosses>(shared.list, num_tokens, num_heads, block);
    Item item = item_at(share.begin);
    // A lane's item of the 32 from `first` on: its head, and where the page table has its page.
    int head_of_lane = 0, page_of_lane = 0;
    const int32_t* entry = p.block_table;
    const auto find_pages = [&](int first) {
        Item of_lane = item;
        if (kCrosses)
            of_lane = item_at(share.begin + min(first + lane_idx, share.count - 1));
        else
            of_lane.page += min(first + lane_idx, share.count - 1);
        head_of_lane = of_lane.kv_head;
        entry = p.block_table + shared.list.seq[of_lane.token] * p.block_table_stride + of_lane.page;
        page_of_lane = __ldcg(entry);
    };
    if (feeds && share.count > 0) find_pages(0);
    const int early = num_seqs > kDecodeThreads ? 0 : min(share.count, kSlots / 2);
    const uint4* queries = queries_at(item);
    // Fetched and computed before the wait instead of behind it.
    asm volatile("" ::"l"(queries), "l"(entry), "r"(page_of_lane));
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    RingPlace<kSlots> place(feeds);
    const auto load = [&](int first, int last) {
        feed_pages(ring, place, maps, last - first, ptx::kEvictNormal, [&](int i, int& kv_head) {
            kv_head = __shfl_sync(kFull, head_of_lane, (first + i) % 32);
            return __shfl_sync(kFull, page_of_lane, (first + i) % 32);
        });
    };
    // Why not all threads: every block asks one place of the L2.
    SeqLens again = lens;
    if (static_cast<int>(threadIdx.x) < num_seqs)
        again = peek_lens(p.cu_seqlens_q, p.seq_lens, static_cast<int>(threadIdx.x));
    bool stale = num_seqs > kDecodeThreads;
    float scale = 0;
    if (feeds) {
        if (early > 0) {
            const int page_again = __ldcg(entry);
            load(0, early);
            stale |= page_again != page_of_lane;
        }
    } else {
        scale = score_scale(p, min(item.kv_head, num_heads - 1));
        if constexpr (kCrosses) place_queries<C>(*shared.more_queries, make_uint4(0, 0, 0, 0));
        place_queries<C>(ring.queries, fetch(queries));
    }
    stale |= again != lens;
    int fed = early;
    if (__syncthreads_or(stale)) {
        if (!feeds) {
#pragma unroll 1
            for (int i = 0; i < 2 * early; ++i, place = place.next()) {
                ptx::barrier_wait(ring.full[place.at], place.parity);
                __syncwarp();
                if (lane_idx == 0) ptx::barrier_arrive(ring.empty[place.at]);
            }
        }
        list_tokens<kDecodeThreads, kCrosses>(shared.list, p, first_token, num_tokens);
        share = share_of<kCrosses>(shared.list, num_tokens, num_heads, block);
        item = item_at(share.begin);
        fed = 0;
        if (feeds) {
            if (share.count > 0) find_pages(0);
        } else {
            scale = score_scale(p, min(item.kv_head, num_heads - 1));
            place_queries<C>(ring.queries, fetch(queries_at(item)));
        }
        __syncthreads();
    }
    if (feeds) {
        while (fed < share.count) {
            if (fed % 32 == 0 && fed > 0) find_pages(fed);
            const int last = min(share.count, fed / 32 * 32 + 32);
            load(fed, last);
            fed = last;
        }
        return;
    }
    if (share.count == 0) return;
    if constexpr (!kCrosses) {
        const int visible = shared.list.position[item.token] + 1 - item.page * kPage;
        const Rows rows = attend<false>(ring, place, ring.queries, scale, share.count,
                                        [&](int i) { return visible - i * kPage; });
        store_part<C, kCrosses>(p, shared.list, first_token, item, share.count, rows);
    } else {
        bool odd = false;
        for (int done = 0;;) {
            if (done > 0) item = item_at(share.begin + done);
            const int pages = min(share.count - done, item.num_pages - item.page);
            const int visible = shared.list.position[item.token] + 1 - item.page * kPage;
            float next_scale = 0;
            Queries& next = odd ? ring.queries : *shared.more_queries;
            if (done + pages < share.count) {
                item = item_at(share.begin + done + pages);
                const uint4* from = queries_at(item);
                if (from) ptx::copy_async_16(ptx::smem_address(place_of_queries(next.rows)), from);
                next_scale = score_scale(p, item.kv_head);
            }
            ptx::commit_copies();
            const Rows rows = attend<false>(ring, place, odd ? *shared.more_queries : ring.queries, scale,
                                            pages, [&](int i) { return visible - i * kPage; });
            // Why again: what is held beside the sums costs registers.
            item = item_at(share.begin + done);
            store_part<C, kCrosses>(p, shared.list, first_token, item, pages, rows);
            done += pages;
            if (done == share.count) return;
            ptx::wait_for_copies<0>();
            // In place: threads of a row also write where its others have read.
            const uint4 copied = *reinterpret_cast<const uint4*>(place_of_queries(next.rows));
            __syncwarp();
            place_queries<C>(next, copied);
            ptx::named_barrier(1, kWorkers);
            scale = next_scale;
            odd = !odd;
        }
    }
}

/// Sums the parts of one (token, KV head) in their order, and makes codes of results: kHeads query heads a
/// block, a warp or several each.
template <int kHeads, int kWarpsOfHead, bool kCrosses>
__global__ void __launch_bounds__(kHeads * kWarpsOfHead * 32)
    paged_decode_merge_kernel(const __grid_constant__ PagedAttentionParams p, int first_token,
                              int num_tokens) {
    constexpr int kAtOnce = 8;
    __shared__ TokenList list;
    __shared__ Piece found[kWarpsOfHead == 1 ? 1 : kHeads * kWarpsOfHead][32];
    ptx::let_successors_start();
    const int warp_idx = static_cast<int>(threadIdx.x / 32), lane_idx = static_cast<int>(threadIdx.x % 32);
    const int num_heads = static_cast<int>(p.num_kv_heads), token = static_cast<int>(blockIdx.z),
              kv_head = static_cast<int>(blockIdx.y);
    list_tokens<kHeads * kWarpsOfHead * 32, kCrosses>(list, p, first_token, num_tokens);
    const Parts parts = parts_of<kCrosses>(list, num_tokens, num_heads, token, kv_head);
    const Unit unit{first_token + token, kv_head, static_cast<int>(p.num_heads) / num_heads, list.seq[token],
                    list.position[token]};
    const int head = static_cast<int>(blockIdx.x) * kHeads + warp_idx / kWarpsOfHead,
              part = warp_idx % kWarpsOfHead;
    ptx::wait_for_predecessors();
    if (parts.count <= 1) {
        if (p.codes && parts.count == 1 && part == 0 && head < unit.group)
            store_codes(p, unit, head, *reinterpret_cast<const uint2*>(out_of(p, unit, head) + lane_idx * 4));
        return;
    }
    Piece all;
    if (head < unit.group) {
#pragma unroll 1
        for (int first = part; first < parts.count; first += kWarpsOfHead * kAtOnce) {
            const Piece some = merge<kAtOnce>([&](int i) {
                const int at = first + i * kWarpsOfHead;
                if (at >= parts.count) return Piece{};
                const float* x = part_at(p, parts.at(at));
                const float2 max_sum = reinterpret_cast<const float2*>(x + kRows * kDim)[head];
                return Piece{reinterpret_cast<const float4*>(x + head * kDim)[lane_idx], max_sum.x,
                             max_sum.y};
            });
            const Piece before = all;
            all = merge<2>([&](int i) { return i == 0 ? before : some; });
        }
    }
    if constexpr (kWarpsOfHead > 1) {
        found[warp_idx][lane_idx] = all;
        __syncthreads();
        if (part != 0) return;
        all = merge<kWarpsOfHead>([&](int i) { return found[warp_idx + i][lane_idx]; });
    }
    if (head < unit.group) store_piece(p, unit, head, all);
}

template <int kHeads, int kWarpsOfHead, bool kCrosses>
void launch_merge(const PagedAttentionParams& p, int first_token, int num_tokens, Stream stream) {
    const LaunchChain launch{"paged_attention",
                             dim3(static_cast<unsigned>(ceil_div(p.num_heads / p.num_kv_heads, kHeads)),
                                  static_cast<unsigned>(p.num_kv_heads), static_cast<unsigned>(num_tokens)),
                             kHeads * kWarpsOfHead * 32, 0, stream};
    launch(paged_decode_merge_kernel<kHeads, kWarpsOfHead, kCrosses>, p, first_token, num_tokens);
}

template <class C, bool kCrosses>
void launch_paged(const PagedAttentionParams& p, int first_token, int num_tokens, Stream stream) {
    constexpr int kSlots = 6 / static_cast<int>(sizeof(C));
    constexpr size_t kSmemBytes = sizeof(PagedShared<C, kSlots, kCrosses>);
    static_assert(2 * (kSmemBytes + 1024) <= 228 * 1024, "a multiprocessor holds two blocks");
    const LaunchChain launch{"paged_attention", dim3(static_cast<unsigned>(kBlocks)), kDecodeThreads,
                             kSmemBytes, stream};
    launch(paged_decode_kernel<C, kSlots, kCrosses>, p, make_page_maps(p), first_token, num_tokens);
    if (paged_partial_bytes(p) == 0 && !p.codes) return;
    if (kCrosses) return launch_merge<8, 1, kCrosses>(p, first_token, num_tokens, stream);
    // Few units have many parts.
    if (num_tokens * p.num_kv_heads > 16)
        return launch_merge<2, 4, kCrosses>(p, first_token, num_tokens, stream);
    launch_merge<1, 16, kCrosses>(p, first_token, num_tokens, stream);
}

template <class C>
void launch_paged(const PagedAttentionParams& p, Stream stream) {
    for (int64_t first = 0; first < p.num_tokens; first += kTokens) {
        const auto tokens = static_cast<int>(std::min<int64_t>(kTokens, p.num_tokens - first));
        const bool crosses = tokens * p.num_kv_heads > kPagedMaxChunkedUnits;
        const auto launch = crosses ? launch_paged<C, true> : launch_paged<C, false>;
        launch(p, static_cast<int>(first), tokens, stream);
    }
}

}  // namespace

void paged_decode(const PagedAttentionParams& p, Stream stream) {
    p.cache_dtype == DType::kE4M3 ? launch_paged<e4m3>(p, stream) : launch_paged<bf16>(p, stream);
}

}  // namespace mmx::cuda::sm90
