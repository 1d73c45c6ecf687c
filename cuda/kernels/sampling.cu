#include <algorithm>
#include <cfloat>

#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/select.cuh"
#include "cuda/kernels/launchers.h"

// Shape of the work: many small blocks reduce chunks and segments of each row, then one block per row
// decides. Numerics: an id's weight is exp((l - max) / temperature) in fp64, scaled and rounded to an
// integer, so that masses are exact and equal in every order of addition. The scale leaves room for the whole
// vocabulary at weight 1.

namespace mmx::cuda {

namespace {

constexpr float kGreedyBelow = 1e-5f;
constexpr int kThreads = 1024;      // of the blocks that decide
constexpr int kScanThreads = 256;   // of the blocks that reduce
constexpr int kChunk = 64;          // logits with one remembered maximum
constexpr int kChunksPerWarp = 4;   // in the reduction
constexpr int kSegment = kThreads;  // logits with one remembered mass
constexpr uint32_t kMinusInfinityKey = 0x007FFFFFu, kInfinityKey = 0xFF800000u;

/// Scratch of sample and logprobs, carved from the workspace.
struct Scratch {
    uint64_t* segment_mass;  // [num_rows, num_segments]
    uint64_t* best;          // [num_rows, num_top] logprobs only
    uint32_t* part_keys;     // [num_rows, num_parts] key of the largest logit that a thread block saw
    uint32_t* chunk_keys;    // [num_rows, num_chunks] of each chunk's largest
    int64_t num_rows, num_segments, num_chunks, num_parts;
    int64_t bytes;

    Scratch(void* workspace, int64_t rows, int64_t vocab, int64_t num_top)
        : num_rows(rows),
          num_segments(ceil_div(vocab, kSegment)),
          num_chunks(ceil_div(vocab, kChunk)),
          num_parts(ceil_div(num_chunks, kChunksPerWarp * (kScanThreads / 32))) {
        segment_mass = static_cast<uint64_t*>(workspace);
        const int64_t words = rows * num_segments, top_words = rows * num_top;
        best = segment_mass + words;
        part_keys = reinterpret_cast<uint32_t*>(best + top_words);
        chunk_keys = part_keys + rows * num_parts;
        bytes = (words + top_words) * 8 + rows * (num_parts + num_chunks) * 4;
    }

    /// Key of the row's largest logit. By a whole warp.
    __device__ uint32_t row_key(int64_t row) const {
        uint32_t most = 0;
#pragma unroll 4
        for (int64_t i = threadIdx.x % 32; i < num_parts; i += 32)
            most = max(most, part_keys[row * num_parts + i]);
        return __reduce_max_sync(kFull, most);
    }
};

struct Rows {
    const float* logits;  // [num_rows, vocab], rows `stride` apart
    int64_t stride, vocab;
};

/// Weights of one row.
struct Weigher {
    double max, inv_temperature, scale;
    __device__ uint64_t operator()(uint32_t key) const {
        return __double2ull_rn(exp((static_cast<double>(key_value(key)) - max) * inv_temperature) * scale);
    }
};

double weight_scale(int64_t vocab) {
    double scale = 0x1p62;
    for (int64_t n = 1; n < vocab; n *= 2) scale /= 2;
    return scale;
}

__device__ bool is_finite_key(uint32_t key) { return key > kMinusInfinityKey && key < kInfinityKey; }

__global__ void __launch_bounds__(kScanThreads) max_kernel(Rows rows, Scratch w) {
    const int64_t row = blockIdx.x;
    const int lane = threadIdx.x % 32;
    const float* logits = rows.logits + row * rows.stride;
    const int64_t first = (blockIdx.y * (kScanThreads / 32) + threadIdx.x / 32) * kChunksPerWarp;
    __shared__ uint32_t warp_keys[kScanThreads / 32];
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    uint32_t keys[kChunksPerWarp][kChunk / 32], most = 0;
#pragma unroll
    for (int c = 0; c < kChunksPerWarp; ++c)
#pragma unroll
        for (int i = 0; i < kChunk / 32; ++i) {
            const int64_t id = (first + c) * kChunk + i * 32 + lane;
            keys[c][i] = id < rows.vocab ? order_key(logits[id]) : 0;
        }
#pragma unroll
    for (int c = 0; c < kChunksPerWarp; ++c) {
        uint32_t key = 0;
#pragma unroll
        for (int i = 0; i < kChunk / 32; ++i) key = max(key, keys[c][i]);
        key = __reduce_max_sync(kFull, key);
        if (lane == 0 && first + c < w.num_chunks) w.chunk_keys[row * w.num_chunks + first + c] = key;
        most = max(most, key);
    }
    if (lane == 0) warp_keys[threadIdx.x / 32] = most;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (const uint32_t key : warp_keys) most = max(most, key);
    w.part_keys[row * w.num_parts + blockIdx.y] = most;
}

/// Which rows need the mass of all their logits; without `temperature` all do, at temperature 1.
struct MassParams {
    const float *temperature, *min_p;  // [num_rows]
    const int32_t* top_k;              // [num_rows]
    double scale;
};

__device__ bool has_top_k(int32_t top_k, int64_t vocab) { return top_k > 0 && top_k < vocab; }

__global__ void __launch_bounds__(kScanThreads) mass_kernel(Rows rows, MassParams p, Scratch w) {
    const int64_t row = blockIdx.x, segment = blockIdx.y;
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const uint32_t row_key = w.row_key(row);
    if (!is_finite_key(row_key)) return;
    float temperature = 1;
    if (p.temperature) {
        temperature = p.temperature[row];
        if (temperature < kGreedyBelow || has_top_k(p.top_k[row], rows.vocab) || p.min_p[row] > 0) return;
    }
    const Weigher weigh{key_value(row_key), 1.0 / temperature, p.scale};
    const float* logits = rows.logits + row * rows.stride;
    uint64_t mass = 0;
    for (int64_t id = segment * kSegment + threadIdx.x; id < min((segment + 1) * kSegment, rows.vocab);
         id += kScanThreads)
        mass += weigh(order_key(logits[id]));
    __shared__ uint64_t partial[kScanThreads / 32];
    mass = warp_sum(mass);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = mass;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < kScanThreads / 32; ++i) mass += partial[i];
    w.segment_mass[row * w.num_segments + segment] = mass;
}

/// The last id that stays, in the order (logit descending, id ascending).
struct Cut {
    uint32_t key, last_id;
    __device__ bool keeps(uint32_t key_, uint32_t id) const {
        return key_ > key || (key_ == key && id <= last_id);
    }
};

constexpr uint32_t kAnyId = 0xFFFFFFFFu;

/// One row in the hands of one block.
struct Row {
    const float* logits;         // [vocab]
    const uint32_t* chunk_keys;  // [num_chunks]
    uint64_t* segment_mass;      // [num_segments]
    int64_t vocab, num_chunks, num_segments;

    __device__ Row(const Rows& rows, const Scratch& w, int64_t row)
        : logits(rows.logits + row * rows.stride),
          chunk_keys(w.chunk_keys + row * w.num_chunks),
          segment_mass(w.segment_mass + row * w.num_segments),
          vocab(rows.vocab),
          num_chunks(w.num_chunks),
          num_segments(w.num_segments) {}

    /// Whole warps call f(chunk) for the chunks that may hold an element of the cut.
    template <class F>
    __device__ void for_chunks(uint32_t least_key, F&& f) const {
        const int lane = threadIdx.x % 32;
        for (int64_t base = threadIdx.x - lane; base < num_chunks; base += kThreads) {
            const int64_t chunk = base + lane;
            uint32_t live = __ballot_sync(kFull, chunk < num_chunks && chunk_keys[chunk] >= least_key);
            for (; live; live &= live - 1) f(base + __ffs(static_cast<int>(live)) - 1);
        }
    }

    /// Whole warps call f(kept, key, id) for elements, of which all that are in the cut come with kept =
    /// true.
    template <class F>
    __device__ void for_elements(Cut cut, F&& f) const {
        const int lane = threadIdx.x % 32;
        for_chunks(cut.key, [&](int64_t chunk) {
            for (int64_t id = chunk * kChunk + lane; id < (chunk + 1) * kChunk; id += 32) {
                const uint32_t key = id < vocab ? order_key(logits[id]) : 0;
                f(id < vocab && cut.keeps(key, static_cast<uint32_t>(id)), key, static_cast<uint32_t>(id));
            }
        });
    }

    /// A key that at least `k` elements reach: the k-th largest of the chunks, or 0 with fewer chunks.
    __device__ uint32_t reached_by(int64_t k, SelectShared& s) const {
        if (k > num_chunks) return 0;
        const auto each = [&](auto visit) {
            const int lane = threadIdx.x % 32;
            for (int64_t base = threadIdx.x - lane; base < num_chunks; base += kThreads)
                visit(base + lane < num_chunks, base + lane < num_chunks ? chunk_keys[base + lane] : 0);
        };
        const auto one = [](uint32_t) -> uint64_t { return 1; };
        return select_prefix<kThreads>(static_cast<uint64_t>(k), each, one, s).key;
    }

    /// The cut's shortest prefix whose mass reaches `target` >= 1.
    template <class Weigh>
    __device__ Cut keep_prefix(Cut cut, uint64_t target, Weigh weigh, SelectShared& s) const {
        const auto each = [&](auto visit) {
            for_elements(cut, [&](bool kept, uint32_t key, uint32_t) { visit(kept, key); });
        };
        const Selected found = select_prefix<kThreads>(target, each, weigh, s);
        if (!found.reached) return cut;
        const uint32_t last_id = found.key == cut.key ? cut.last_id : kAnyId;
        const uint64_t weight = weigh(found.key), ties = (target - found.above + weight - 1) / weight;
        if (ties * weight >= found.inside) return {found.key, last_id};
        // Only the first of the tied ids stay.
        const auto each_tie = [&](auto visit) {
            for_elements({found.key, last_id},
                         [&](bool kept, uint32_t key, uint32_t id) { visit(kept && key == found.key, ~id); });
        };
        const auto one = [](uint32_t) -> uint64_t { return 1; };
        return {found.key, ~select_prefix<kThreads>(ties, each_tie, one, s).key};
    }

    /// Mass of the cut; segment_mass becomes that of each segment.
    __device__ uint64_t measure(Cut cut, const Weigher& weigh, SelectShared& s) const {
        for (int64_t i = threadIdx.x; i < num_segments; i += kThreads) segment_mass[i] = 0;
        __syncthreads();
        for_elements(cut, [&](bool kept, uint32_t key, uint32_t id) {
            const uint64_t mass = warp_sum(kept ? weigh(key) : 0);
            if (threadIdx.x % 32 == 0)
                atomicAdd(reinterpret_cast<unsigned long long*>(segment_mass + id / kSegment),
                          static_cast<unsigned long long>(mass));
        });
        __syncthreads();
        return total_mass(s);
    }

    __device__ uint64_t total_mass(SelectShared& s) const {
        uint64_t own = 0, total;
        for (int64_t i = threadIdx.x; i < num_segments; i += kThreads) own += __ldcg(segment_mass + i);
        block_scan<kThreads>(own, s, &total);
        return total;
    }

    /// Stores the first id of the cut whose running mass exceeds `target`, which is below the total.
    __device__ void draw(Cut cut, const Weigher& weigh, uint64_t target, int64_t* token_id,
                         SelectShared& s) const {
        uint64_t before = 0, total;
        for (int64_t base = 0; base < num_segments; base += kThreads) {
            const int64_t i = base + threadIdx.x;
            const uint64_t mass = i < num_segments ? __ldcg(segment_mass + i) : 0;
            const uint64_t below = before + block_scan<kThreads>(mass, s, &total);
            if (below <= target && target < below + mass) {
                s.chosen = static_cast<uint32_t>(i);
                s.above = below;
            }
            before += total;
        }
        __syncthreads();
        const int64_t id = static_cast<int64_t>(s.chosen) * kSegment + threadIdx.x;
        const uint32_t key = id < vocab ? order_key(logits[id]) : 0;
        const uint64_t mass = id < vocab && cut.keeps(key, static_cast<uint32_t>(id)) ? weigh(key) : 0;
        const uint64_t below = s.above + block_scan<kThreads>(mass, s, &total);
        if (below <= target && target < below + mass) *token_id = id;
    }
};

__global__ void __launch_bounds__(kThreads)
    sample_kernel(SampleParams p, Rows rows, Scratch w, double scale) {
    __shared__ SelectShared s;
    __shared__ uint32_t first;
    const int64_t row_idx = blockIdx.x;
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const Row row(rows, w, row_idx);
    int64_t* token_id = p.token_ids + row_idx;
    const uint32_t max_key = w.row_key(row_idx);
    if (!is_finite_key(max_key)) {
        if (threadIdx.x == 0) *token_id = -1;
        return;
    }
    if (p.temperature[row_idx] < kGreedyBelow) {
        if (threadIdx.x == 0) first = kAnyId;
        __syncthreads();
        row.for_elements({max_key, kAnyId}, [&](bool kept, uint32_t, uint32_t id) {
            if (kept) atomicMin(&first, id);
        });
        __syncthreads();
        if (threadIdx.x == 0) *token_id = first;
        return;
    }

    const double max_logit = key_value(max_key), temperature = p.temperature[row_idx];
    const double top_p = p.top_p[row_idx], min_p = p.min_p[row_idx];
    const Weigher weigh{max_logit, 1.0 / temperature, scale};
    const bool by_count = has_top_k(p.top_k[row_idx], p.vocab);
    Cut cut{kMinusInfinityKey + 1, kAnyId};  // an id banned by -inf has no mass
    const auto drop_lighter_than = [&](double weight) {
        const double least = max_logit + temperature * log(weight);
        cut.key = max(cut.key, min(order_key(__double2float_ru(least)), max_key));
    };
    uint64_t mass = 0;
    if (!by_count && !(min_p > 0)) {
        mass = row.total_mass(s);  // from mass_kernel
        // All ids lighter than this together are lighter than what top_p drops; the factor is for rounding.
        if (top_p < 1)
            drop_lighter_than(0.999 * (1 - top_p) * (static_cast<double>(mass) / scale) /
                              static_cast<double>(p.vocab));
    }
    if (by_count) cut.key = max(cut.key, row.reached_by(p.top_k[row_idx], s));
    if (min_p > 0) drop_lighter_than(min_p);
    if (by_count) {
        const auto one = [](uint32_t) -> uint64_t { return 1; };
        cut = row.keep_prefix(cut, static_cast<uint64_t>(p.top_k[row_idx]), one, s);
    }
    if (top_p < 1) {
        if (mass == 0) mass = row.measure(cut, weigh, s);
        const auto target = static_cast<uint64_t>(ceil(top_p * static_cast<double>(mass)));
        cut = row.keep_prefix(cut, max(target, uint64_t{1}), weigh, s);
        mass = 0;
    }
    if (mass == 0) mass = row.measure(cut, weigh, s);
    const auto u = static_cast<uint64_t>(sampling_uniform(p.seeds[row_idx], p.steps[row_idx]) * 16777216.0f);
    row.draw(cut, weigh, __umul64hi(u, mass) << 40 | u * mass >> 24, token_id, s);
}

__global__ void __launch_bounds__(kThreads)
    logprobs_kernel(LogprobsParams p, Rows rows, Scratch w, double scale) {
    __shared__ SelectShared s;
    __shared__ uint32_t count;
    const int64_t row_idx = blockIdx.x;
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const Row row(rows, w, row_idx);
    const uint32_t max_key = w.row_key(row_idx);
    const int64_t id = p.token_ids[row_idx];
    int64_t* top_ids = p.top_ids + row_idx * p.num_top;
    float* top_logprobs = p.top_logprobs + row_idx * p.num_top;
    const bool usable = is_finite_key(max_key), held = usable && id >= 0 && id < p.vocab;
    if (!held && threadIdx.x == 0) {
        p.logprobs[row_idx] = __int_as_float(0x7FC00000);
        p.ranks[row_idx] = 0;
    }
    if (!usable) {
        for (int64_t i = threadIdx.x; i < p.num_top; i += kThreads) {
            top_ids[i] = -1;
            top_logprobs[i] = __int_as_float(0x7FC00000);
        }
        return;
    }
    const double log_mass =
        static_cast<double>(key_value(max_key)) + log(static_cast<double>(row.total_mass(s)) / scale);
    if (held) {
        const float value = row.logits[id];
        const uint32_t value_key = order_key(value);
        if (threadIdx.x == 0) count = 0;
        __syncthreads();
        row.for_elements({value_key, kAnyId}, [&](bool kept, uint32_t key, uint32_t) {
            const uint32_t larger = __ballot_sync(kFull, kept && key > value_key);
            if (threadIdx.x % 32 == 0 && larger) atomicAdd(&count, static_cast<uint32_t>(__popc(larger)));
        });
        __syncthreads();
        if (threadIdx.x == 0) {
            p.logprobs[row_idx] = static_cast<float>(value - log_mass);
            p.ranks[row_idx] = static_cast<int64_t>(count) + 1;
        }
    }
    if (p.num_top == 0) return;
    const auto one = [](uint32_t) -> uint64_t { return 1; };
    Cut cut{row.reached_by(p.num_top, s), kAnyId};
    cut = row.keep_prefix(cut, static_cast<uint64_t>(p.num_top), one, s);
    // The chosen in any order, as (key, lower id first); then each goes to the place that its rank gives it.
    uint64_t* best = w.best + row_idx * p.num_top;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    row.for_elements(cut, [&](bool kept, uint32_t key, uint32_t id_) {
        if (kept) best[atomicAdd(&count, 1u)] = static_cast<uint64_t>(key) << 32 | ~id_;
    });
    __syncthreads();
    for (int64_t i = threadIdx.x; i < p.num_top; i += kThreads) {
        const uint64_t own = best[i];
        int64_t rank = 0;
        for (int64_t j = 0; j < p.num_top; ++j) rank += best[j] > own;
        top_ids[rank] = ~static_cast<uint32_t>(own);
        top_logprobs[rank] = static_cast<float>(key_value(static_cast<uint32_t>(own >> 32)) - log_mass);
    }
}

/// Largest logits and masses of all rows, before the deciding kernel.
void reduce_rows(const char* op, const Rows& rows, const MassParams& mass, const Scratch& w, Stream stream) {
    const auto num_rows = static_cast<unsigned>(w.num_rows);
    const dim3 max_grid(num_rows, static_cast<unsigned>(w.num_parts));
    const dim3 mass_grid(num_rows, static_cast<unsigned>(w.num_segments));
    LaunchChain{op, max_grid, kScanThreads, 0, stream}(max_kernel, rows, w);
    LaunchChain{op, mass_grid, kScanThreads, 0, stream}(mass_kernel, rows, mass, w);
}

// One block per row. `counts` holds, for ids of the row's history only, how often they are in the output;
// kDone once the id's logit is adjusted. Which of its occurrences adjusts it makes no difference.
__global__ void __launch_bounds__(kThreads) adjust_logits_kernel(AdjustLogitsParams p) {
    constexpr int kDone = -1;
    const int64_t row = blockIdx.x;
    const int32_t begin = p.cu_history[row], end = p.cu_history[row + 1];
    float* logits = p.logits + row * p.logits_stride;
    int* counts = static_cast<int*>(p.workspace) + row * p.vocab;
    for (int32_t i = begin + threadIdx.x; i < end; i += kThreads) counts[p.history[i]] = 0;
    __syncthreads();
    for (int32_t i = begin + p.num_prompt[row] + threadIdx.x; i < end; i += kThreads)
        atomicAdd(counts + p.history[i], 1);
    __syncthreads();
    for (int32_t i = begin + threadIdx.x; i < end; i += kThreads) {
        const int32_t id = p.history[i];
        const int count = atomicExch(counts + id, kDone);
        if (count == kDone) continue;
        float l = logits[id];
        l = l > 0 ? l / p.repetition[row] : l * p.repetition[row];
        l = fmaf(-p.frequency[row], static_cast<float>(count), l);
        logits[id] = count > 0 ? l - p.presence[row] : l;
    }
    __syncthreads();
    for (int32_t i = p.cu_bias[row] + threadIdx.x; i < p.cu_bias[row + 1]; i += kThreads)
        logits[p.bias_ids[i]] += p.bias_values[i];
}

}  // namespace

int64_t adjust_logits_workspace(const AdjustLogitsParams& p) { return p.num_rows * p.vocab * 4; }

void adjust_logits(const AdjustLogitsParams& p, Stream stream) {
    Launch{"adjust_logits", dim3(static_cast<unsigned>(p.num_rows)), kThreads, 0, stream}(
        adjust_logits_kernel, p);
}

int64_t sample_workspace(const SampleParams& p) { return Scratch(nullptr, p.num_rows, p.vocab, 0).bytes; }

void sample(const SampleParams& p, Stream stream) {
    const Rows rows{p.logits, p.logits_stride, p.vocab};
    const Scratch w(p.workspace, p.num_rows, p.vocab, 0);
    const double scale = weight_scale(p.vocab);
    reduce_rows("sample", rows, {p.temperature, p.min_p, p.top_k, scale}, w, stream);
    const LaunchChain launch{"sample", dim3(static_cast<unsigned>(p.num_rows)), kThreads, 0, stream};
    launch(sample_kernel, p, rows, w, scale);
}

int64_t logprobs_workspace(const LogprobsParams& p) {
    return Scratch(nullptr, p.num_rows, p.vocab, p.num_top).bytes;
}

void logprobs(const LogprobsParams& p, Stream stream) {
    const Rows rows{p.logits, p.logits_stride, p.vocab};
    const Scratch w(p.workspace, p.num_rows, p.vocab, p.num_top);
    const double scale = weight_scale(p.vocab);
    reduce_rows("logprobs", rows, {nullptr, nullptr, nullptr, scale}, w, stream);
    const LaunchChain launch{"logprobs", dim3(static_cast<unsigned>(p.num_rows)), kThreads, 0, stream};
    launch(logprobs_kernel, p, rows, w, scale);
}

}  // namespace mmx::cuda
