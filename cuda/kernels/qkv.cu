#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/peers.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/multicast.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

/// One head of one token inside the pages.
struct Slot {
    void* page;
    int64_t offset;  // of the head's first element
    DType dtype;
    float scale;
};

template <class T, int kRun>
__device__ __forceinline__ void store_slot(const Slot& to, const float (&run)[kRun], int64_t i, int64_t count,
                                           bool packable) {
    if (to.dtype == DType::kE4M3) {
        float codes[kRun];
#pragma unroll
        for (int j = 0; j < kRun; ++j) codes[j] = __fdiv_rn(run[j], to.scale);
        store_run(static_cast<e4m3*>(to.page) + to.offset + i, codes, count, packable);
    } else {
        store_run(static_cast<T*>(to.page) + to.offset + i, run, count, packable);
    }
}

enum class Part { kQ, kK, kIndexQ, kIndexK, kV };

/// Where heads of the merged projection begin, and where they go.
struct Heads {
    int64_t k, index_q, index_k, v, end;

    __device__ explicit Heads(const NormRopeStoreParams& p)
        : k(p.num_heads),
          index_q(k + p.num_kv_heads),
          index_k(index_q + p.num_index_heads),
          v(index_k + (p.index_k_cache ? 1 : 0)),
          end(v + p.num_kv_heads) {}

    __device__ Part part(int64_t head) const {
        if (head < k) return Part::kQ;
        if (head < index_q) return Part::kK;
        if (head < index_k) return Part::kIndexQ;
        return head < v ? Part::kIndexK : Part::kV;
    }

    /// Norm weight of a head that has one; a weight over the whole projection is indexed by head.
    template <class W>
    __device__ const W* weight(const NormRopeStoreParams& p, int64_t head, Part part) const {
        const int64_t whole = p.norm_whole_projection ? p.head_dim : 0;
        if (part == Part::kQ) return static_cast<const W*>(p.q_weight) + head * whole;
        if (part == Part::kK) return static_cast<const W*>(p.k_weight) + (head - k) * whole;
        return static_cast<const W*>(part == Part::kIndexQ ? p.index_q_weight : p.index_k_weight);
    }

    /// Place in the pages of a k, v or index_k head.
    __device__ Slot slot(const NormRopeStoreParams& p, int64_t head, Part part, int64_t slot) const {
        const int64_t block = slot / p.block_size, offset = slot % p.block_size;
        if (part == Part::kIndexK)
            return {p.index_k_cache, block * p.index_k_cache_block_stride + offset * p.head_dim,
                    p.index_cache_dtype, 1.0f};
        const bool is_k = part == Part::kK;
        const int64_t kv_head = head - (is_k ? k : v);
        const int64_t begin = block * (is_k ? p.k_cache_block_stride : p.v_cache_block_stride);
        const float* scale = is_k ? p.k_scale : p.v_scale;
        return {is_k ? p.k_cache : p.v_cache, begin + (kv_head * p.block_size + offset) * p.head_dim,
                p.cache_dtype, scale ? scale[kv_head] : 1.0f};
    }
};

// Heads of 128, the models' own: 16 lanes hold a head, 8 dims each, and meet the other member of a rope pair
// by a shuffle. A block takes kThreads / 16 * kHeads heads; with a norm over the whole projection it takes
// all heads of its token. Several heads of a lane group wait in shared memory, so that registers do not limit
// the tokens on their way.
constexpr int kHeadDim = 128, kLanes = 16, kWide = kHeadDim / kLanes, kMaxWholeHeads = 64;

template <class T>
__device__ __forceinline__ float head_sum_of_squares(const Pack<T, kWide>& x, unsigned lanes) {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kWide; ++j) squares += to_float(x.v[j]) * to_float(x.v[j]);
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) squares += __shfl_xor_sync(lanes, squares, offset);
    return squares;
}

/// The partner's dims, which come in words.
template <class T>
__device__ __forceinline__ Pack<T, kWide> exchange(const Pack<T, kWide>& x, unsigned lanes, int partner) {
    Pack<T, kWide> other;
    const unsigned* from = reinterpret_cast<const unsigned*>(&x);
    unsigned* to = reinterpret_cast<unsigned*>(&other);
#pragma unroll
    for (unsigned i = 0; i < sizeof(x) / sizeof(unsigned); ++i)
        to[i] = __shfl_sync(lanes, from[i], partner, kLanes);
    return other;
}

template <class T, class W, int kThreads, int kHeads>
__global__ void __launch_bounds__(kThreads, kHeads > 1 ? 1024 / kThreads : 1)
    norm_rope_store_128_kernel(NormRopeStoreParams p) {
    constexpr int kGroups = kThreads / kLanes;
    constexpr bool kStaged = kHeads > 1;
    using Run = Pack<T, kWide>;
    __shared__ Run staged[kStaged ? kHeads * kThreads : 1];
    Run own = {};
    const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes, dim = lane * kWide;
    const unsigned lanes = 0xFFFFu << (threadIdx.x & 16);
    const int64_t token = blockIdx.x;
    const Heads heads(p);
    const int first = static_cast<int>(blockIdx.y) * (kGroups * kHeads) + group;
    const int end = static_cast<int>(heads.end), half = static_cast<int>(p.rotary_dim) / 2;
    T* const qkv = static_cast<T*>(p.qkv) + token * p.qkv_stride + dim;
    const float shift = p.gemma ? 1.0f : 0.0f;
    // Weights come from memory: the few tokens of a decode would wait for them.
    Pack<W, kWide> own_gain = {};
    const auto gain_of = [&](int head, Part part) {
        return *reinterpret_cast<const Pack<W, kWide>*>(heads.weight<W>(p, head, part) + dim);
    };
    if (!kStaged && first < heads.v) own_gain = gain_of(first, heads.part(first));

    ptx::let_successors_start();
    ptx::wait_for_predecessors();
    if constexpr (kStaged) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
            const int head = first + h * kGroups;
            const char* from = reinterpret_cast<const char*>(qkv + head * kHeadDim);
#pragma unroll
            for (unsigned i = 0; i < sizeof(Run); i += 16)
                ptx::copy_async_16(ptx::smem_address(&staged[h * kThreads + threadIdx.x]) + i, from + i,
                                   head < end);
        }
        ptx::commit_copies();
    } else if (first < end) {
        own = *reinterpret_cast<const Run*>(qkv + first * kHeadDim);
    }
    const auto head_run = [&](int h) -> const Run& {
        return kStaged ? staged[h * kThreads + threadIdx.x] : own;
    };
    const int64_t slot = p.slot_mapping[token], position = p.positions[token];
    // cos and sin of this lane's dims; the first member of a pair takes the sine of the other sign.
    float cos[kWide], sin[kWide];
    const bool rotated = dim < p.rotary_dim, second = dim >= half;
    const float* angle = p.cos_sin + position * p.rotary_dim + (second ? dim - half : dim);
    load_run(cos, angle, rotated ? kWide : 0, true);
    load_run(sin, angle + half, rotated ? kWide : 0, true);
#pragma unroll
    for (int j = 0; j < kWide; ++j) sin[j] = second ? sin[j] : -sin[j];
    const int partner = rotated ? (second ? lane - half / kWide : lane + half / kWide) : lane;
    if constexpr (kStaged) ptx::wait_for_copies<0>();

    float whole_q = 0, whole_k = 0;
    if (p.mean_squares) {
        whole_q = p.mean_squares[2 * token] * kHeadDim;
        whole_k = p.mean_squares[2 * token + 1] * kHeadDim;
    } else if (p.norm_whole_projection) {
        // Heads are added up in an order that does not depend on the block's shape.
        __shared__ float head_squares[kMaxWholeHeads];
#pragma unroll 4
        for (int h = 0; h < kHeads; ++h) {
            const int head = first + h * kGroups;
            if (head >= heads.index_q) break;
            const float squares = head_sum_of_squares(head_run(h), lanes);
            if (lane == 0) head_squares[head] = squares;
        }
        __syncthreads();
        float part_q = 0, part_k = 0;
#pragma unroll
        for (int head = threadIdx.x % 32; head < kMaxWholeHeads; head += 32) {
            part_q += head < heads.k ? head_squares[head] : 0.0f;
            part_k += head >= heads.k && head < heads.index_q ? head_squares[head] : 0.0f;
        }
        whole_q = warp_sum(part_q) / static_cast<float>(p.num_heads);
        whole_k = warp_sum(part_k) / static_cast<float>(p.num_kv_heads);
    }
#pragma unroll 1
    for (int h = 0; h < kHeads; ++h) {
        const int head = first + h * kGroups;
        if (head >= end) break;
        const Part part = heads.part(head);
        const Run x = head_run(h);
        float y[kWide];
        if (part == Part::kV) {
#pragma unroll
            for (int j = 0; j < kWide; ++j) y[j] = to_float(x.v[j]);
        } else {
            const Pack<W, kWide> gain = kStaged ? gain_of(head, part) : own_gain;
            float sum;
            if (p.norm_whole_projection && head < heads.index_q)
                sum = part == Part::kQ ? whole_q : whole_k;
            else
                sum = head_sum_of_squares(x, lanes);
            const float inv_rms = rsqrtf(sum / kHeadDim + p.eps);
            Run normed;
#pragma unroll
            for (int j = 0; j < kWide; ++j)
                normed.v[j] = from_float<T>(to_float(x.v[j]) * inv_rms * (to_float(gain.v[j]) + shift));
            const Run other = exchange(normed, lanes, partner);
#pragma unroll
            for (int j = 0; j < kWide; ++j) {
                y[j] = to_float(normed.v[j]);
                if (rotated) y[j] = fmaf(to_float(other.v[j]), sin[j], y[j] * cos[j]);
            }
        }
        if (part == Part::kQ || part == Part::kIndexQ) {
            store_run(qkv + head * kHeadDim, y, kWide, true);
        } else if (slot >= 0) {
#pragma unroll
            for (int j = 0; j < kWide; ++j) y[j] = to_float(from_float<T>(y[j]));
            store_slot<T>(heads.slot(p, head, part, slot), y, dim, kWide, true);
        }
    }
}

// Heads of any size: a warp per head at a time, through shared memory, in runs of kRun.
constexpr int kRun = 4;

template <class T, class W, int kThreads>
__global__ void __launch_bounds__(kThreads) norm_rope_store_kernel(NormRopeStoreParams p, bool packable) {
    constexpr int kWarps = kThreads / 32;
    extern __shared__ float heads_in_flight[];  // [kWarps, head_dim]
    const int64_t token = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float* row = heads_in_flight + warp * p.head_dim;
    T* const qkv = static_cast<T*>(p.qkv) + token * p.qkv_stride;
    const Heads heads(p);
    const float shift = p.gemma ? 1.0f : 0.0f;
    const auto for_each_run = [&](auto&& f) {
        for (int64_t i = lane * kRun; i < p.head_dim; i += 32 * kRun) f(i, p.head_dim - i);
    };

    ptx::let_successors_start();
    ptx::wait_for_predecessors();
    const int64_t slot = p.slot_mapping[token], half = p.rotary_dim / 2;
    const float* const cos = p.cos_sin + p.positions[token] * p.rotary_dim;

    float inv_rms_q = 0, inv_rms_k = 0;
    if (p.mean_squares) {
        inv_rms_q = rsqrtf(p.mean_squares[2 * token] + p.eps);
        inv_rms_k = rsqrtf(p.mean_squares[2 * token + 1] + p.eps);
    } else if (p.norm_whole_projection) {
        float squares_q = 0, squares_k = 0;
        for (int64_t head = warp; head < heads.index_q; head += kWarps)
            for_each_run([&](int64_t i, int64_t count) {
                float run[kRun], sum = 0;
                load_run(run, qkv + head * p.head_dim + i, count, packable);
#pragma unroll
                for (int j = 0; j < kRun; ++j) sum += run[j] * run[j];
                (head < heads.k ? squares_q : squares_k) += sum;
            });
        const auto inv_rms = [&](float squares, int64_t num_heads) {
            return rsqrtf(block_sum<kThreads>(squares) / static_cast<float>(num_heads * p.head_dim) + p.eps);
        };
        inv_rms_q = inv_rms(squares_q, p.num_heads);
        inv_rms_k = inv_rms(squares_k, p.num_kv_heads);
    }

    for (int64_t head = blockIdx.y * kWarps + warp; head < heads.end; head += gridDim.y * kWarps) {
        T* const x = qkv + head * p.head_dim;
        const Part part = heads.part(head);
        if (part == Part::kV) {
            if (slot < 0) continue;
            for_each_run([&](int64_t i, int64_t count) {
                float run[kRun];
                load_run(run, x + i, count, packable);
                store_slot<T>(heads.slot(p, head, part, slot), run, i, count, packable);
            });
            continue;
        }

        float squares = 0;
        for_each_run([&](int64_t i, int64_t count) {
            float run[kRun];
            load_run(run, x + i, count, packable);
#pragma unroll
            for (int j = 0; j < kRun; ++j) {
                squares += run[j] * run[j];
                if (j < count) row[i + j] = run[j];
            }
        });
        float inv_rms = part == Part::kK ? inv_rms_k : inv_rms_q;
        if (!p.norm_whole_projection || head >= heads.index_q)
            inv_rms = rsqrtf(warp_sum(squares) / static_cast<float>(p.head_dim) + p.eps);
        for_each_run([&](int64_t i, int64_t count) {
            float gain[kRun];
            load_run(gain, heads.weight<W>(p, head, part) + i, count, packable);
#pragma unroll
            for (int j = 0; j < kRun; ++j)
                if (j < count) row[i + j] = to_float(from_float<T>(row[i + j] * inv_rms * (gain[j] + shift)));
        });
        __syncwarp();
        for_each_run([&](int64_t i, int64_t count) {
            float run[kRun];
#pragma unroll
            for (int j = 0; j < kRun; ++j) {
                const int64_t d = i + j;
                if (d < half)
                    run[j] = row[d] * cos[d] - row[d + half] * cos[d + half];
                else if (d < p.rotary_dim)
                    run[j] = row[d] * cos[d - half] + row[d - half] * cos[d];
                else
                    run[j] = j < count ? row[d] : 0.0f;
                run[j] = to_float(from_float<T>(run[j]));
            }
            if (part == Part::kQ || part == Part::kIndexQ)
                store_run(x + i, run, count, packable);
            else if (slot >= 0)
                store_slot<T>(heads.slot(p, head, part, slot), run, i, count, packable);
        });
        __syncwarp();
    }
}

// One shape for any number of tokens: a row's sums must not depend on its batch.
constexpr int kSquareThreads = 128;

/// A block per token; every thread has the sums of both parts.
template <class T>
__global__ void __launch_bounds__(kSquareThreads)
    qk_mean_squares_kernel(QkMeanSquaresParams p, bool packable) {
    const Peers& peers = p.peers;
    const int64_t token = blockIdx.x, q_end = p.num_heads * p.head_dim;
    const int64_t end = q_end + p.num_kv_heads * p.head_dim;
    const T* const row = static_cast<const T*>(p.qkv) + token * p.qkv_stride;
    ptx::let_successors_start();
    ptx::wait_for_predecessors();
    const uint32_t epoch = peers.num_ranks > 1 ? Peers::next(static_cast<uint32_t>(peers.epochs[token])) : 0;
    float q = 0, k = 0;
    // Why per element: a run may span the border of q and k.
#pragma unroll 4
    for (int64_t i = threadIdx.x * kRun; i < end; i += kSquareThreads * kRun) {
        float run[kRun];
        load_run(run, row + i, end - i, packable);
#pragma unroll
        for (int j = 0; j < kRun; ++j) (i + j < q_end ? q : k) += run[j] * run[j];
    }
    q = block_sum<kSquareThreads>(q) / static_cast<float>(q_end * p.num_parts);
    k = block_sum<kSquareThreads>(k) / static_cast<float>((end - q_end) * p.num_parts);
    if (threadIdx.x != 0) return;
    float total_q = q, total_k = k;
    if (peers.num_ranks > 1) {
        peers.epochs[token] = static_cast<int32_t>(epoch);
        for (int r = 0; r < peers.num_ranks; ++r)
            if (r != peers.rank)
                send_pair(peers.inboxes[r] + peers.row(epoch, peers.rank, token), epoch, __float_as_uint(q),
                          __float_as_uint(k));
        total_q = total_k = 0;
        for (int r = 0; r < peers.num_ranks; ++r) {
            uint32_t part_q = __float_as_uint(q), part_k = __float_as_uint(k);
            if (r != peers.rank)
                receive_pair(peers.inboxes[peers.rank] + peers.row(epoch, r, token), epoch, peers.timeout_ns,
                             part_q, part_k);
            total_q += __uint_as_float(part_q);
            total_k += __uint_as_float(part_k);
        }
    }
    *reinterpret_cast<float2*>(p.out + 2 * token) = {total_q, total_k};
}

/// Whether every access may be a run of kN elements: addresses, and strides between rows.
template <class T, class W, int kN>
bool is_all_packable(const NormRopeStoreParams& p) {
    const auto pages = [](const void* cache, DType dtype, int64_t block_stride) {
        return dtype == DType::kE4M3 ? is_packable<e4m3, kN>(cache, {block_stride})
                                     : is_packable<T, kN>(cache, {block_stride});
    };
    return is_packable<T, kN>(p.qkv, {p.qkv_stride, p.head_dim}) && is_packable<W, kN>(p.q_weight, {}) &&
           is_packable<W, kN>(p.k_weight, {}) && is_packable<W, kN>(p.index_q_weight, {}) &&
           is_packable<W, kN>(p.index_k_weight, {}) &&
           pages(p.k_cache, p.cache_dtype, p.k_cache_block_stride) &&
           pages(p.v_cache, p.cache_dtype, p.v_cache_block_stride) &&
           pages(p.index_k_cache, p.index_cache_dtype, p.index_k_cache_block_stride);
}

template <class T, class W>
void launch_128(const NormRopeStoreParams& p, int64_t heads, Stream stream) {
    const auto launch = [&](auto kernel, int64_t threads, int64_t heads_per_block) {
        const dim3 grid(static_cast<unsigned>(p.num_tokens),
                        static_cast<unsigned>(ceil_div(heads, heads_per_block)));
        LaunchChain{"norm_rope_store", grid, dim3(static_cast<unsigned>(threads)), 0, stream}(kernel, p);
    };
    // Few tokens: one head per lane group, for latency. Many: a small block covers a token.
    const bool whole = p.norm_whole_projection && !p.mean_squares;
    if (whole && p.num_tokens < 512)
        launch(norm_rope_store_128_kernel<T, W, 1024, 1>, 1024, kMaxWholeHeads);
    else if (whole)
        launch(norm_rope_store_128_kernel<T, W, 128, 8>, 128, kMaxWholeHeads);
    else if (p.num_tokens >= 512)
        launch(norm_rope_store_128_kernel<T, W, 128, 10>, 128, 80);
    else
        launch(norm_rope_store_128_kernel<T, W, 128, 1>, 128, 8);
}

}  // namespace

void norm_rope_store(const NormRopeStoreParams& p, Stream stream) {
    const int64_t heads = p.num_heads + 2 * p.num_kv_heads + p.num_index_heads + (p.index_k_cache ? 1 : 0);
    dispatch_float(p.dtype, [&](auto t) {
        dispatch_float(p.weight_dtype, [&](auto w) {
            using T = decltype(t);
            using W = decltype(w);
            if (p.head_dim == kHeadDim && p.rotary_dim % (2 * kWide) == 0 &&
                is_all_packable<T, W, kWide>(p) && (!p.norm_whole_projection || heads <= kMaxWholeHeads))
                return launch_128<T, W>(p, heads, stream);
            const bool packable = is_all_packable<T, W, kRun>(p);
            const auto launch = [&](auto kernel, int threads, int64_t groups) {
                const dim3 grid(static_cast<unsigned>(p.num_tokens), static_cast<unsigned>(groups));
                const size_t smem_bytes = static_cast<size_t>(threads / 32 * p.head_dim) * sizeof(float);
                LaunchChain{"norm_rope_store", grid, dim3(static_cast<unsigned>(threads)), smem_bytes,
                            stream}(kernel, p, packable);
            };
            if (p.norm_whole_projection && !p.mean_squares)
                launch(norm_rope_store_kernel<T, W, 1024>, 1024, 1);
            else
                launch(norm_rope_store_kernel<T, W, 256>, 256, ceil_div(heads, 8));
        });
    });
}

void qk_mean_squares(const QkMeanSquaresParams& p, Stream stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        const bool packable = is_packable<T, kRun>(p.qkv, {p.qkv_stride});
        LaunchChain{"qk_mean_squares", dim3(static_cast<unsigned>(p.num_tokens)), dim3(kSquareThreads), 0,
                    stream}(qk_mean_squares_kernel<T>, p, packable);
    });
}

}  // namespace mmx::cuda
