#pragma once

#include <limits>
#include <memory>
#include <new>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpp/kernels/common.h"

/// Register tiles shared by attention and the block selector: packing of cache blocks, queries times keys,
/// weights times values, exponential. Every sum is one chain of fused multiply-adds in ascending order of its
/// index, so a row's numbers do not depend on which rows share its tile.
namespace mmx::cpu::MMX_CPU_ISA {

// A tile keeps rows x 2 sums, 2 vectors of keys or values and a broadcast in registers (32 or 16 of them).
#if defined(__AVX512F__)
constexpr int kLanes = 16, kTileRows = 8;
#else
constexpr int kLanes = 8, kTileRows = 6;
#endif
constexpr int kStrip = 2 * kLanes;  // keys (or channels) side by side in a packed block
constexpr float kInfinity = std::numeric_limits<float>::infinity();

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), may_alias));
typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(float)), may_alias));

static inline Vec broadcast(float x) { return x - Vec{}; }
static inline Vec& at(float* x) { return *reinterpret_cast<Vec*>(x); }
static inline const Vec& at(const float* x) { return *reinterpret_cast<const Vec*>(x); }

/// a * b + c rounded once. Why not left to the compiler's contraction: the same row must get the same bits
/// from every tile size that is instantiated.
static inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#else
    for (int i = 0; i < kLanes; ++i) c[i] = std::fma(a[i], b[i], c[i]);
    return c;
#endif
}

/// Combines the lanes pairwise: upper half with lower half, down to one.
template <int kWidth = kLanes, class V, class F>
static inline float reduce(V x, F f) {
    if constexpr (kWidth == 2) {
        return f(x[0], x[1]);
    } else {
        typedef float Half __attribute__((vector_size(kWidth / 2 * sizeof(float))));
        struct Halves {
            Half low, high;
        };
        const Halves halves = std::bit_cast<Halves>(x);
        return reduce<kWidth / 2>(f(halves.low, halves.high), f);
    }
}

static inline float reduce_max(Vec x) {
    return reduce(x, [](auto a, auto b) { return a > b ? a : b; });
}

static inline float reduce_sum(Vec x) {
    return reduce(x, [](auto a, auto b) { return a + b; });
}

/// 2^x for x <= 0, good to 2e-7 relative; 0 below 2^-126, NaN for NaN.
static inline Vec exp2_negative(Vec x) {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits. The polynomial is a minimax
    // fit of 2^r on [-1/2, 1/2] (relative error 2e-9).
    const Vec shifted = x + 12582912.0f;
    const Vec r = x - (shifted - 12582912.0f);
    Vec y = broadcast(1.5353362e-4f);
    y = fma(y, r, broadcast(1.3398875e-3f));
    y = fma(y, r, broadcast(9.618437e-3f));
    y = fma(y, r, broadcast(5.5503324e-2f));
    y = fma(y, r, broadcast(0.24022648f));
    y = fma(y, r, broadcast(0.69314718f));
    y = fma(y, r, broadcast(1.0f));
    const IntVec exponent = (std::bit_cast<IntVec>(shifted) << 23) + 0x3F800000;
    y *= std::bit_cast<Vec>(exponent);
    return x < -126.0f ? Vec{} : y;
}

static inline float exp2_negative(float x) { return exp2_negative(broadcast(x))[0]; }

struct FreeFloats {
    void operator()(float* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float[], FreeFloats>;

/// Uninitialised floats, aligned for Vec.
static inline Floats make_floats(int64_t n) {
    const int64_t bytes = align_up(n * static_cast<int64_t>(sizeof(float)), 64);
    float* p = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(bytes)));
    if (!p) throw std::bad_alloc();
    return Floats(p);
}

/// The calling thread's scratch, kept between calls so that tasks do not allocate.
static inline float* thread_scratch(int64_t num_floats) {
    static thread_local Floats buffer;
    static thread_local int64_t capacity = 0;
    if (num_floats > capacity) {
        buffer = make_floats(num_floats);
        capacity = num_floats;
    }
    return buffer.get();
}

/// Transposes cache rows [num_keys, dim] into [strip of keys][dim][kStrip]; places past num_keys become 0.
template <class T>
static inline void pack_keys(float* dst, const T* src, int64_t num_keys, int64_t dim) {
    for (int64_t key = 0; key < align_up(num_keys, kStrip); ++key) {
        float* column = dst + key / kStrip * dim * kStrip + key % kStrip;
        for (int64_t d = 0; d < dim; ++d)
            column[d * kStrip] = key < num_keys ? to_float(src[key * dim + d]) : 0.0f;
    }
}

/// Cuts cache rows [num_keys, dim] into [strip of channels][block_size][kStrip]; channels past dim become 0.
template <class T>
static inline void pack_values(float* dst, const T* src, int64_t num_keys, int64_t dim, int64_t block_size) {
    for (int64_t first = 0; first < dim; first += kStrip) {
        float* strip = dst + first * block_size;
        const int64_t width = std::min<int64_t>(kStrip, dim - first);
        for (int64_t key = 0; key < num_keys; ++key) {
            for (int64_t d = 0; d < width; ++d)
                strip[key * kStrip + d] = to_float(src[key * dim + first + d]);
            for (int64_t d = width; d < kStrip; ++d) strip[key * kStrip + d] = 0.0f;
        }
    }
}

/// scores[r, 0..kStrip) = q[r, :] . keys of one packed strip, for kRows rows.
template <int kRows>
static inline void score_tile(float* scores, int64_t score_stride, const float* q, int64_t q_stride,
                              const float* keys, int64_t dim) {
    Vec sum[kRows][2] = {};
    for (int64_t d = 0; d < dim; ++d) {
        const Vec k0 = at(keys + d * kStrip), k1 = at(keys + d * kStrip + kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const Vec x = broadcast(q[r * q_stride + d]);
            sum[r][0] = fma(x, k0, sum[r][0]);
            sum[r][1] = fma(x, k1, sum[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        at(scores + r * score_stride) = sum[r][0];
        at(scores + r * score_stride + kLanes) = sum[r][1];
    }
}

/// out[r, 0..kStrip) = out * factor[r] + weights[r, 0..num_keys) . values of one packed strip, for kRows
/// rows.
template <int kRows>
static inline void value_tile(float* out, int64_t out_stride, const float* factor, const float* weights,
                              int64_t weight_stride, const float* values, int64_t num_keys) {
    Vec sum[kRows][2];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        sum[r][0] = at(out + r * out_stride) * factor[r];
        sum[r][1] = at(out + r * out_stride + kLanes) * factor[r];
    }
    for (int64_t key = 0; key < num_keys; ++key) {
        const Vec v0 = at(values + key * kStrip), v1 = at(values + key * kStrip + kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const Vec w = broadcast(weights[r * weight_stride + key]);
            sum[r][0] = fma(w, v0, sum[r][0]);
            sum[r][1] = fma(w, v1, sum[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        at(out + r * out_stride) = sum[r][0];
        at(out + r * out_stride + kLanes) = sum[r][1];
    }
}

/// Calls f(row, std::integral_constant<int, rows>) for tiles that cover [begin, end), evenly cut.
template <class F>
static inline void for_each_tile(int64_t begin, int64_t end, F&& f) {
    int64_t tiles = ceil_div(end - begin, kTileRows);
    for (int64_t row = begin; tiles > 0; --tiles) {
        const int64_t rows = ceil_div(end - row, tiles);
        switch (rows) {
            case 1: f(row, std::integral_constant<int, 1>()); break;
            case 2: f(row, std::integral_constant<int, 2>()); break;
            case 3: f(row, std::integral_constant<int, 3>()); break;
            case 4: f(row, std::integral_constant<int, 4>()); break;
            case 5: f(row, std::integral_constant<int, 5>()); break;
            case 6: f(row, std::integral_constant<int, 6>()); break;
#if defined(__AVX512F__)
            case 7: f(row, std::integral_constant<int, 7>()); break;
            case 8: f(row, std::integral_constant<int, 8>()); break;
#endif
        }
        row += rows;
    }
}

/// Consecutive query tokens of one sequence that are worked on together.
struct TokenTile {
    int64_t seq;
    int64_t token;  // first row in the batch
    int64_t num_tokens;
    int64_t position;  // of the first token in its sequence
};

/// Cuts every sequence's query tokens into tiles of at most `tile_tokens`.
static inline std::vector<TokenTile> token_tiles(const int32_t* cu_seqlens_q, const int32_t* seq_lens,
                                                 int64_t num_seqs, int64_t tile_tokens) {
    std::vector<TokenTile> tiles;
    for (int64_t seq = 0; seq < num_seqs; ++seq) {
        const int64_t begin = cu_seqlens_q[seq], end = cu_seqlens_q[seq + 1];
        for (int64_t token = begin; token < end; token += tile_tokens)
            tiles.push_back({seq, token, std::min(tile_tokens, end - token), seq_lens[seq] - end + token});
    }
    return tiles;
}

}  // namespace mmx::cpu::MMX_CPU_ISA
