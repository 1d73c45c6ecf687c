#pragma once

#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "cpp/kernels/vec.h"

/// Register tiles shared by attention and the block selector: packing of cache blocks, queries times keys,
/// weights times values, exponential. Every sum is one chain of fused multiply-adds in ascending order of its
/// index, so a row's numbers do not depend on which rows share its tile.
namespace mmx::cpu::MMX_CPU_ISA {

// A tile keeps rows x 2 sums, 2 vectors of keys or values and a broadcast in registers: 32 of them, 16 on
// AVX2.
constexpr int kTileRows = kWidth == 8 ? 6 : 8;
constexpr int kStrip = 2 * kWidth;  // keys (or channels) side by side in a packed block
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Combines the lanes pairwise: upper half with lower half, down to one.
template <int kLanes = kWidth, class V, class F>
static inline float reduce(V x, F f) {
    if constexpr (kLanes == 2) {
        return f(x[0], x[1]);
    } else {
        typedef float Half __attribute__((vector_size(kLanes / 2 * sizeof(float))));
        struct Halves {
            Half low, high;
        };
        const Halves halves = std::bit_cast<Halves>(x);
        return reduce<kLanes / 2>(f(halves.low, halves.high), f);
    }
}

static inline float reduce_max(vf x) {
    return reduce(x, [](auto a, auto b) { return a > b ? a : b; });
}

static inline float reduce_sum(vf x) {
    return reduce(x, [](auto a, auto b) { return a + b; });
}

/// 2^x for x <= 0, good to 2e-7 relative; 0 below 2^-126, NaN for NaN.
static inline vf exp2_negative(vf x) {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits. The polynomial is a minimax
    // fit of 2^r on [-1/2, 1/2] (relative error 2e-9).
    const vf shifted = x + 12582912.0f;
    const vf r = x - (shifted - 12582912.0f);
    vf y = splat(1.5353362e-4f);
    y = fma(y, r, splat(1.3398875e-3f));
    y = fma(y, r, splat(9.618437e-3f));
    y = fma(y, r, splat(5.5503324e-2f));
    y = fma(y, r, splat(0.24022648f));
    y = fma(y, r, splat(0.69314718f));
    y = fma(y, r, splat(1.0f));
    const vi exponent = (std::bit_cast<vi>(shifted) << 23) + 0x3F800000;
    y *= std::bit_cast<vf>(exponent);
    return x < -126.0f ? vf{} : y;
}

static inline float exp2_negative(float x) { return exp2_negative(splat(x))[0]; }

struct FreeFloats {
    void operator()(float* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float[], FreeFloats>;

/// Uninitialised floats, aligned for vf.
static inline Floats make_floats(int64_t n) {
    const int64_t bytes = align_up(std::max<int64_t>(n, 1) * static_cast<int64_t>(sizeof(float)), 64);
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

/// rows[i][l] <-> rows[l][i], by swapping ever larger off-diagonal squares.
static inline void transpose(vu* rows) {
    const auto swap_squares = [&]<int kSize>(std::integral_constant<int, kSize>) {
        vu low, high;  // lanes of (a, b): a keeps its columns of the left square, b those of the right one
        for (uint32_t l = 0; l < kWidth; ++l) {
            low[l] = l & kSize ? kWidth + l - kSize : l;
            high[l] = l & kSize ? kWidth + l : l + kSize;
        }
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i)
            if (!(i & kSize)) {
                const vu a = rows[i], b = rows[i + kSize];
                rows[i] = __builtin_shuffle(a, b, low);
                rows[i + kSize] = __builtin_shuffle(a, b, high);
            }
    };
    swap_squares(std::integral_constant<int, 1>());
    swap_squares(std::integral_constant<int, 2>());
    if constexpr (kWidth > 4) swap_squares(std::integral_constant<int, 4>());
    if constexpr (kWidth > 8) swap_squares(std::integral_constant<int, 8>());
}

/// Transposes cache rows [num_keys, dim] into [strip of keys][dim][kStrip]; places past num_keys become 0.
template <class T>
static inline void pack_keys(float* dst, const T* src, int64_t num_keys, int64_t dim) {
    constexpr int64_t kSpan = kWidth * 4 / static_cast<int64_t>(sizeof(T));  // channels in a vector of bits
    for (int64_t key = 0; key < align_up(num_keys, kStrip); key += kWidth) {
        float* columns = dst + key / kStrip * dim * kStrip + key % kStrip;
        for (int64_t d = 0; d < dim; d += kSpan) {
            const int64_t width = std::min(kSpan, dim - d);
            vu rows[kWidth] = {};
            for (int64_t i = 0; i < std::min<int64_t>(kWidth, num_keys - key); ++i) {
                const T* row = src + (key + i) * dim + d;
                if (width == kSpan)
                    std::memcpy(&rows[i], row, sizeof(vu));
                else
                    std::memcpy(&rows[i], row, static_cast<size_t>(width) * sizeof(T));
            }
            transpose(rows);
            for (int64_t i = 0; i < width; ++i) {
                if constexpr (std::is_same_v<T, float>) {
                    store(columns + (d + i) * kStrip, std::bit_cast<vf>(rows[i]));
                } else if constexpr (std::is_same_v<T, e4m3>) {  // a lane holds four channels
                    store(columns + (d + i) * kStrip, decode_e4m3(rows[i / 4] >> (8 * (i % 4))));
                } else {  // a lane holds two channels, the first one in its low half
                    const vu bits = i % 2 ? rows[i / 2] & 0xFFFF0000u : rows[i / 2] << 16;
                    store(columns + (d + i) * kStrip, std::bit_cast<vf>(bits));
                }
            }
        }
    }
}

/// Copies a strip of channels of cache rows, [num_keys, width <= kStrip] with `dim` between rows, to
/// [num_keys, kStrip]; channels past width become 0.
template <class T>
static inline void pack_values(float* dst, const T* src, int64_t num_keys, int64_t dim, int64_t width) {
    for (int64_t key = 0; key < num_keys; ++key)
        for (int64_t d = 0; d < kStrip; d += kWidth)
            store(dst + key * kStrip + d, d < width ? load_some(src + key * dim + d, width - d) : vf{});
}

/// scores[r, 0..kStrip) = q[r, :] . keys of one packed strip, for kRows rows.
template <int kRows>
static inline void score_tile(float* scores, int64_t score_stride, const float* q, int64_t q_stride,
                              const float* keys, int64_t dim) {
    vf sum[kRows][2] = {};
    for (int64_t d = 0; d < dim; ++d) {
        const vf k0 = load(keys + d * kStrip), k1 = load(keys + d * kStrip + kWidth);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const vf x = splat(q[r * q_stride + d]);
            sum[r][0] = fma(x, k0, sum[r][0]);
            sum[r][1] = fma(x, k1, sum[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        store(scores + r * score_stride, sum[r][0]);
        store(scores + r * score_stride + kWidth, sum[r][1]);
    }
}

/// out[r, 0..kStrip) = out * factor[r] + weights[r, 0..num_keys) . values of one packed strip, for kRows
/// rows.
template <int kRows>
static inline void value_tile(float* out, int64_t out_stride, const float* factor, const float* weights,
                              int64_t weight_stride, const float* values, int64_t num_keys) {
    vf sum[kRows][2];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        sum[r][0] = load(out + r * out_stride) * factor[r];
        sum[r][1] = load(out + r * out_stride + kWidth) * factor[r];
    }
    for (int64_t key = 0; key < num_keys; ++key) {
        const vf v0 = load(values + key * kStrip), v1 = load(values + key * kStrip + kWidth);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const vf w = splat(weights[r * weight_stride + key]);
            sum[r][0] = fma(w, v0, sum[r][0]);
            sum[r][1] = fma(w, v1, sum[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        store(out + r * out_stride, sum[r][0]);
        store(out + r * out_stride + kWidth, sum[r][1]);
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
            case 7: f(row, std::integral_constant<int, std::min(7, kTileRows)>()); break;
            case 8: f(row, std::integral_constant<int, kTileRows>()); break;
        }
        row += rows;
    }
}

/// Calls f(T{}, C{}) with the element types of queries and pages.
template <class F>
static inline void dispatch_pages(DType dtype, DType cache_dtype, F&& f) {
    dispatch_float(dtype, [&](auto t) {
        if (cache_dtype == DType::kE4M3) return f(t, e4m3{});
        f(t, t);
    });
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
