#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "cpp/kernels/common.h"

// Numerics: an id's weight is exp((l - max) / temperature) in double, 1 for the most probable. Masses are
// sums of doubles in an order that depends on the row alone: exact to about 1e-13, equal for any number of
// threads.

namespace mmx::cpu::MMX_CPU_ISA {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kGreedyBelow = 1e-5f;
constexpr int64_t kChunk = 64;   // logits with one remembered maximum
constexpr int64_t kBlock = 256;  // weights summed together

/// Per-thread scratch, kept between calls; buffers only grow.
struct Scratch {
    std::vector<float> chunk_max, sorted_max;
    int64_t num_candidates = 0;
    std::vector<int32_t> ids;  // of the candidates, ascending
    std::vector<float> logits;
    std::vector<double> weights, block_sums;
    std::vector<uint32_t> keys, level_keys;
    std::vector<double> level_weights;
    std::vector<std::pair<float, int32_t>> best;
    std::vector<int32_t> counts;
};

Scratch& scratch() {
    static thread_local Scratch s;
    return s;
}

template <class T>
void reserve(std::vector<T>& buffer, int64_t n) {
    if (static_cast<int64_t>(buffer.size()) < n) buffer.resize(static_cast<size_t>(n));
}

/// The largest logit and, in chunk_max, that of each chunk; NaN if the row holds one.
float scan_max(const float* x, int64_t n, std::vector<float>& chunk_max) {
#ifdef __AVX512F__
    constexpr int kLanes = 16;
#else
    constexpr int kLanes = 8;
#endif
    typedef float Vec __attribute__((vector_size(sizeof(float) * kLanes)));
    typedef int32_t Mask __attribute__((vector_size(sizeof(int32_t) * kLanes)));
    chunk_max.resize(static_cast<size_t>(ceil_div(n, kChunk)));
    Mask nan = {};
    bool tail_nan = false;
    float row_max = -kInfinity;
    for (int64_t begin = 0, chunk = 0; begin < n; begin += kChunk, ++chunk) {
        float best = -kInfinity;
        if (begin + kChunk <= n) {
            Vec m = Vec{} - kInfinity;
            for (int64_t i = begin; i < begin + kChunk; i += kLanes) {
                Vec v;
                std::memcpy(&v, x + i, sizeof v);
                nan |= v != v;
                m = v > m ? v : m;
            }
            for (int l = 0; l < kLanes; ++l) best = m[l] > best ? m[l] : best;
        } else {
            for (int64_t i = begin; i < n; ++i) {
                tail_nan |= x[i] != x[i];
                best = x[i] > best ? x[i] : best;
            }
        }
        chunk_max[static_cast<size_t>(chunk)] = best;
        row_max = best > row_max ? best : row_max;
    }
    for (int l = 0; l < kLanes; ++l) tail_nan |= nan[l] != 0;
    return tail_nan ? kNaN : row_max;
}

int64_t first_equal(const float* x, int64_t n, const std::vector<float>& chunk_max, float value) {
    int64_t chunk = 0;
    while (chunk_max[static_cast<size_t>(chunk)] != value) ++chunk;
    int64_t i = chunk * kChunk;
    while (i < n && x[i] != value) ++i;
    return i;
}

/// A value that at least `k` logits of the row reach: the k-th largest chunk maximum, or -inf with fewer
/// chunks.
float reached_by(int64_t k, Scratch& s) {
    if (k > static_cast<int64_t>(s.chunk_max.size())) return -kInfinity;
    s.sorted_max = s.chunk_max;
    const auto kth = s.sorted_max.begin() + (k - 1);
    std::nth_element(s.sorted_max.begin(), kth, s.sorted_max.end(), std::greater<float>());
    return *kth;
}

/// Ids and logits of all logits >= bound become the candidates.
void gather(const float* x, int64_t n, float bound, Scratch& s) {
    reserve(s.ids, n);
    reserve(s.logits, n);
    int64_t count = 0;
    for (int64_t begin = 0, chunk = 0; begin < n; begin += kChunk, ++chunk) {
        if (!(s.chunk_max[static_cast<size_t>(chunk)] >= bound)) continue;
        for (int64_t i = begin; i < std::min(begin + kChunk, n); ++i) {
            s.ids[static_cast<size_t>(count)] = static_cast<int32_t>(i);
            s.logits[static_cast<size_t>(count)] = x[i];
            count += x[i] >= bound;
        }
    }
    s.num_candidates = count;
}

/// e^x for x <= 0 to about an ulp, written so that it vectorises; 0 below -708 and for NaN.
inline double exp_of_nonpositive(double x) {
    constexpr double kShift = 0x1.8p52;  // adding it rounds to an integer, which lands in the low bits
    const double clamped = x > -708.0 ? x : -708.0;
    const double shifted = clamped * 0x1.71547652b82fep0 + kShift;
    const double k = shifted - kShift;
    const double r = (clamped - k * 0x1.62e42fefa0000p-1) - k * 0x1.cf79abc9e3b3ap-40;
    double sum = 1.0 / 6227020800.0;
    sum = sum * r + 1.0 / 479001600.0;
    sum = sum * r + 1.0 / 39916800.0;
    sum = sum * r + 1.0 / 3628800.0;
    sum = sum * r + 1.0 / 362880.0;
    sum = sum * r + 1.0 / 40320.0;
    sum = sum * r + 1.0 / 5040.0;
    sum = sum * r + 1.0 / 720.0;
    sum = sum * r + 1.0 / 120.0;
    sum = sum * r + 1.0 / 24.0;
    sum = sum * r + 1.0 / 6.0;
    sum = sum * r + 0.5;
    sum = sum * r + 1.0;
    sum = sum * r + 1.0;
    const double power = std::bit_cast<double>((std::bit_cast<uint64_t>(shifted) + 1023) << 52);
    return x > -708.0 ? sum * power : 0.0;
}

void weigh(double* out, const float* logits, int64_t n, float max, double inv_temperature) {
    for (int64_t i = 0; i < n; ++i)
        out[i] = exp_of_nonpositive((static_cast<double>(logits[i]) - max) * inv_temperature);
}

double sum_block(const double* x, int64_t n) {
    constexpr int kLanes = 8;
    double lanes[kLanes] = {}, sum = 0;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int l = 0; l < kLanes; ++l) lanes[l] += x[i + l];
    for (int l = 0; l < kLanes; ++l) sum += lanes[l];
    for (; i < n; ++i) sum += x[i];
    return sum;
}

/// The mass of `logits`, and in block_sums that of each block. Blocks are independent: threads may share a
/// row.
double sum_weights(const float* logits, int64_t n, float max, double inv_temperature, Scratch& s) {
    const int64_t num_blocks = ceil_div(n, kBlock);
    s.block_sums.resize(static_cast<size_t>(num_blocks));
    double* sums = s.block_sums.data();
    parallel_for(num_blocks, 64, [&](int64_t first, int64_t last) {
        double weights[kBlock];
        for (int64_t block = first; block < last; ++block) {
            const int64_t begin = block * kBlock, count = std::min(kBlock, n - begin);
            weigh(weights, logits + begin, count, max, inv_temperature);
            sums[block] = sum_block(weights, count);
        }
    });
    double total = 0;
    for (const double sum : s.block_sums) total += sum;
    return total;
}

/// First index whose running mass exceeds `target`, which is below the total; block_sums must be those of
/// `logits`.
int64_t draw(const float* logits, int64_t n, float max, double inv_temperature, double target,
             const Scratch& s) {
    double before = 0, inside = 0;
    int64_t block = 0;
    for (size_t b = 0; b < s.block_sums.size(); ++b) {
        if (s.block_sums[b] == 0) continue;
        before += inside;
        inside = s.block_sums[b];
        block = static_cast<int64_t>(b);
        if (before + inside > target) break;
    }
    double weights[kBlock];
    const int64_t begin = block * kBlock, count = std::min(kBlock, n - begin);
    weigh(weights, logits + begin, count, max, inv_temperature);
    // Why `last`: summed one by one, the block's mass may round to just below what its lanes gave.
    int64_t last = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (weights[i] == 0) continue;
        last = i;
        before += weights[i];
        if (before > target) break;
    }
    return begin + last;
}

/// Shortens the candidates to the shortest prefix by (logit descending, id ascending) whose `weights` reach
/// `target`, but at least one. A descent over the keys, 11 bits at a time: no sort.
void keep_prefix(Scratch& s, double target) {
    const size_t n = static_cast<size_t>(s.num_candidates);
    for (auto* buffer : {&s.keys, &s.level_keys}) reserve(*buffer, s.num_candidates);
    reserve(s.level_weights, s.num_candidates);
    for (size_t i = 0; i < n; ++i) s.keys[i] = order_key(s.logits[i]);

    // Each level sees the keys that agree with `last` so far, of which it fixes the next digit.
    const uint32_t* keys = s.keys.data();
    const double* weights = s.weights.data();
    size_t count = n;
    uint32_t last = 0;
    double above = 0;
    for (const int shift : {21, 10, 0}) {
        const uint32_t digits = shift == 0 ? 1023 : 2047;
        double bins[2048] = {};
        for (size_t i = 0; i < count; ++i) bins[(keys[i] >> shift) & digits] += weights[i];
        double inside = 0;
        uint32_t chosen = 0;
        for (int bin = static_cast<int>(digits); bin >= 0; --bin) {
            if (bins[bin] == 0) continue;
            above += inside;
            inside = bins[bin];
            chosen = static_cast<uint32_t>(bin);
            if (above + inside >= target) break;
        }
        last |= chosen << shift;
        size_t matching = 0;
        for (size_t i = 0; i < count; ++i) {
            const uint32_t key = keys[i];
            s.level_keys[matching] = key;
            s.level_weights[matching] = weights[i];
            matching += ((key >> shift) & digits) == chosen;
        }
        keys = s.level_keys.data();
        weights = s.level_weights.data();
        count = matching;
    }

    size_t kept = 0;
    for (size_t i = 0; i < n; ++i) {
        bool keep = s.keys[i] > last;
        if (s.keys[i] == last && (above == 0 || above < target)) {
            keep = true;
            above += s.weights[i];
        }
        s.ids[kept] = s.ids[i];
        s.logits[kept] = s.logits[i];
        kept += keep;
    }
    s.num_candidates = static_cast<int64_t>(kept);
}

/// The smallest float that is at least x.
float round_up(double x) {
    const float f = static_cast<float>(x);
    return f < x ? std::nextafter(f, kInfinity) : f;
}

int64_t sample_row(const SampleParams& p, int64_t row, Scratch& s) {
    const float* logits = p.logits + row * p.logits_stride;
    const int64_t vocab = p.vocab;
    const float max = scan_max(logits, vocab, s.chunk_max);
    if (!std::isfinite(max)) return -1;
    if (p.temperature[row] < kGreedyBelow) return first_equal(logits, vocab, s.chunk_max, max);

    const double temperature = p.temperature[row], inv_temperature = 1.0 / temperature;
    const double u = sampling_uniform(p.seeds[row], p.steps[row]), top_p = p.top_p[row], min_p = p.min_p[row];
    const int64_t top_k = p.top_k[row] > 0 && p.top_k[row] < vocab ? p.top_k[row] : vocab;
    const auto bound_of_weight = [&](double weight) { return max + temperature * std::log(weight); };
    double mass = 0, least = std::numeric_limits<float>::lowest();  // not -inf: a banned id is no candidate
    if (top_k == vocab && !(min_p > 0)) {
        mass = sum_weights(logits, vocab, max, inv_temperature, s);
        if (top_p >= 1) return draw(logits, vocab, max, inv_temperature, u * mass, s);
        // All ids lighter than this together are lighter than what top_p drops; the factor is for rounding.
        least = std::max(least, bound_of_weight(0.999 * (1 - top_p) * mass / static_cast<double>(vocab)));
    }
    if (top_k < vocab) least = std::max<double>(least, reached_by(top_k, s));
    if (min_p > 0) least = std::max(least, bound_of_weight(min_p));
    gather(logits, vocab, std::min(round_up(least), max), s);

    reserve(s.weights, s.num_candidates);
    if (top_k < s.num_candidates) {
        std::fill_n(s.weights.begin(), s.num_candidates, 1.0);
        keep_prefix(s, static_cast<double>(top_k));
    }
    if (top_p < 1) {
        if (mass == 0) mass = sum_weights(s.logits.data(), s.num_candidates, max, inv_temperature, s);
        weigh(s.weights.data(), s.logits.data(), s.num_candidates, max, inv_temperature);
        keep_prefix(s, top_p * mass);
    }
    mass = sum_weights(s.logits.data(), s.num_candidates, max, inv_temperature, s);
    return s
        .ids[static_cast<size_t>(draw(s.logits.data(), s.num_candidates, max, inv_temperature, u * mass, s))];
}

void logprobs_row(const LogprobsParams& p, int64_t row, Scratch& s) {
    const float* logits = p.logits + row * p.logits_stride;
    int64_t* top_ids = p.top_ids + row * p.num_top;
    float* top_logprobs = p.top_logprobs + row * p.num_top;
    p.logprobs[row] = kNaN;
    p.ranks[row] = 0;
    const float max = scan_max(logits, p.vocab, s.chunk_max);
    if (!std::isfinite(max)) {
        std::fill_n(top_ids, p.num_top, int64_t{-1});
        std::fill_n(top_logprobs, p.num_top, kNaN);
        return;
    }
    const double log_mass = max + std::log(sum_weights(logits, p.vocab, max, 1.0, s));
    const int64_t id = p.token_ids[row];
    if (id >= 0 && id < p.vocab) {
        const float value = logits[id];
        int32_t larger = 0;
        for (int64_t i = 0; i < p.vocab; ++i) larger += logits[i] > value;
        p.logprobs[row] = static_cast<float>(value - log_mass);
        p.ranks[row] = larger + 1;
    }
    if (p.num_top == 0) return;
    gather(logits, p.vocab, reached_by(p.num_top, s), s);
    s.best.resize(static_cast<size_t>(s.num_candidates));
    for (size_t i = 0; i < s.best.size(); ++i) s.best[i] = {-s.logits[i], s.ids[i]};
    std::partial_sort(s.best.begin(), s.best.begin() + p.num_top, s.best.end());
    for (int64_t i = 0; i < p.num_top; ++i) {
        const auto& [negated, top_id] = s.best[static_cast<size_t>(i)];
        top_ids[i] = top_id;
        top_logprobs[i] = static_cast<float>(-negated - log_mass);
    }
}

void adjust_row(const AdjustLogitsParams& p, int64_t row, Scratch& s) {
    constexpr int32_t kDone = -1;
    float* logits = p.logits + row * p.logits_stride;
    const int32_t* begin = p.history + p.cu_history[row];
    const int32_t* end = p.history + p.cu_history[row + 1];
    reserve(s.counts, p.vocab);  // zero between calls
    int32_t* counts = s.counts.data();
    for (const int32_t* id = begin + p.num_prompt[row]; id < end; ++id) ++counts[*id];
    const float repetition = p.repetition[row];
    for (const int32_t* id = begin; id < end; ++id) {
        const int32_t count = counts[*id];
        if (count == kDone) continue;
        counts[*id] = kDone;
        float l = logits[*id];
        l = l > 0 ? l / repetition : l * repetition;
        l = std::fma(-p.frequency[row], static_cast<float>(count), l);
        logits[*id] = count > 0 ? l - p.presence[row] : l;
    }
    for (const int32_t* id = begin; id < end; ++id) counts[*id] = 0;
    for (int32_t i = p.cu_bias[row]; i < p.cu_bias[row + 1]; ++i) logits[p.bias_ids[i]] += p.bias_values[i];
}

void check_ids(const char* name, const int32_t* ids, int64_t n, int64_t vocab) {
    int32_t least = 0, most = 0;
    for (int64_t i = 0; i < n; ++i) {
        least = std::min(least, ids[i]);
        most = std::max(most, ids[i]);
    }
    MMX_CHECK(least >= 0 && (n == 0 || most < vocab), "adjust_logits: ", name,
              " must lie in [0, vocab=", vocab, "), got ", least < 0 ? least : most);
}

}  // namespace

void adjust_logits(const AdjustLogitsParams& p, Stream) {
    check_ids("history", p.history, p.cu_history[p.num_rows], p.vocab);
    check_ids("bias_ids", p.bias_ids, p.cu_bias[p.num_rows], p.vocab);
    parallel_for(p.num_rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) adjust_row(p, row, scratch());
    });
}

void sample(const SampleParams& p, Stream) {
    parallel_for(p.num_rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) p.token_ids[row] = sample_row(p, row, scratch());
    });
}

void logprobs(const LogprobsParams& p, Stream) {
    parallel_for(p.num_rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) logprobs_row(p, row, scratch());
    });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
