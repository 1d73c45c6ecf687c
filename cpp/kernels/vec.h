#pragma once

#include "cpp/kernels/common.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

/// Vectors as wide as the machine's registers, and Lanes16: sixteen lanes at every instruction set level, so
/// that sums over lanes come out the same everywhere.
namespace mmx::cpu::MMX_CPU_ISA {

#if defined(__AVX512F__)
inline constexpr int kWidth = 16;
#elif defined(__AVX2__)
inline constexpr int kWidth = 8;
#else
inline constexpr int kWidth = 4;
#endif

typedef float vf __attribute__((vector_size(kWidth * 4)));
typedef int32_t vi __attribute__((vector_size(kWidth * 4)));
typedef uint32_t vu __attribute__((vector_size(kWidth * 4)));
typedef uint16_t vh __attribute__((vector_size(kWidth * 2)));
typedef uint8_t vb __attribute__((vector_size(kWidth)));

/// float8_e4m3fn in memory.
struct e4m3 {
    uint8_t bits;
};

/// The nearest code, ties to even; beyond 448 the largest code, NaN stays NaN.
static inline e4m3 to_e4m3(float x) {
    const uint32_t u = std::bit_cast<uint32_t>(x), sign = u >> 24 & 0x80u, magnitude = u & 0x7FFFFFFFu;
    uint32_t code = 0;
    if (magnitude > 0x7F800000u) {
        code = 0x7F;
    } else if (magnitude >= std::bit_cast<uint32_t>(448.0f)) {
        code = 0x7E;
    } else if (magnitude < std::bit_cast<uint32_t>(0x1p-6f)) {
        // Adding 2^14 leaves the multiple of 2^-9, rounded, in the low bits.
        code = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0x1p14f) -
               std::bit_cast<uint32_t>(0x1p14f);
    } else {
        code = ((magnitude + 0x7FFFFu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
    }
    return {static_cast<uint8_t>(sign | code)};
}

static inline vf splat(float x) { return x - vf{}; }

static inline vf load(const float* p) {
    vf v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

static inline vf load(const bf16* p) {
    vh v;
    std::memcpy(&v, p, sizeof v);
    return std::bit_cast<vf>(__builtin_convertvector(v, vu) << 16);
}

/// An e4m3 vector times 2^-8: the bits are moved into a half float, whose exponent bias is 8 larger, and
/// half -> float handles subnormals without a slow path.
static inline vf load_times_2_to_minus_8(const e4m3* p) {
    vb bytes;
    std::memcpy(&bytes, p, sizeof bytes);
#if defined(__F16C__)
    const vh v = __builtin_convertvector(bytes, vh);
    const vh is_nan = (vh)((v & 0x7F) == 0x7F);
    const vh half = ((v & 0x80) << 8) | ((v & 0x7F) << 7) | (is_nan & 0x7FFF);
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(std::bit_cast<__m256i>(half));
#else
    return _mm256_cvtph_ps(std::bit_cast<__m128i>(half));
#endif
#else
    const vu v = __builtin_convertvector(bytes, vu);
    const vu is_nan = (vu)((v & 0x7F) == 0x7F);
    const vu single = ((v & 0x80) << 24) | ((v & 0x7F) << 20) | (is_nan & 0x7FC00000);
    return std::bit_cast<vf>(single) * 0x1p112f;
#endif
}

/// Floats of the e4m3 codes in the low bytes of `v`; other bits are ignored. Free of subnormal floats, which
/// are slow.
static inline vf decode_e4m3(vu v) {
    const vu magnitude = v & 0x7F;
    const vf normal = std::bit_cast<vf>((magnitude << 20) + (120u << 23));
    // 2^-6 with the code's bits behind it, less 2^-6.
    const vf subnormal = std::bit_cast<vf>((magnitude << 20) + (121u << 23)) - 0x1p-6f;
    const vu bits = std::bit_cast<vu>(magnitude < 8 ? subnormal : normal);
    return std::bit_cast<vf>((magnitude == 0x7F ? vu{} + 0x7FC00000u : bits) | (v & 0x80) << 24);
}

static inline vf load(const e4m3* p) {
    vb bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return decode_e4m3(__builtin_convertvector(bytes, vu));
}

static inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

static inline void store(bf16* p, vf v) {
    const vu u = std::bit_cast<vu>(v);
    const vu rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    const vu quiet_nan = (u >> 16) | 0x40u;
    const vh bits = __builtin_convertvector((u & 0x7FFFFFFFu) > 0x7F800000u ? quiet_nan : rounded, vh);
    std::memcpy(p, &bits, sizeof bits);
}

/// Loads min(n, kWidth) elements, the other lanes are zero; nothing behind them is read.
template <class T>
static inline vf load_some(const T* p, int64_t n) {
    if (n >= kWidth) return load(p);
    T padded[kWidth] = {};
    std::memcpy(padded, p, static_cast<size_t>(n) * sizeof(T));
    return load(padded);
}

/// Stores the first min(n, kWidth) lanes.
template <class T>
static inline void store_some(T* p, vf v, int64_t n) {
    if (n >= kWidth) return store(p, v);
    T padded[kWidth];
    store(padded, v);
    std::memcpy(p, padded, static_cast<size_t>(n) * sizeof(T));
}

/// a * b + c with one rounding where the machine can.
static inline vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

/// e^x to about 1 ulp over the whole range, subnormals included; NaN stays NaN.
static inline vf exp(vf x) {
    x = x < -110.0f ? splat(-110.0f) : x;
    x = x > 100.0f ? splat(100.0f) : x;
    // x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to an integer and leaves it in the low
    // bits.
    const vf magic = splat(0x1.8p23f);
    const vf shifted = fma(x, splat(0x1.715476p0f), magic);
    const vf n = shifted - magic;
    vf r = fma(n, splat(-0x1.62e400p-1f),
               x);  // ln 2 in two parts; the first has few bits, so n times it is exact
    r = fma(n, splat(-0x1.7f7d1cp-20f), r);
    vf sum = splat(1.0f / 5040);
    for (const float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        sum = fma(sum, r, splat(coefficient));
    // 2^n in two factors: n may lie outside the exponent range of one float.
    const vi power = std::bit_cast<vi>(shifted) - std::bit_cast<vi>(magic);
    const vi half = power >> 1;
    return sum * std::bit_cast<vf>((half + 127) << 23) * std::bit_cast<vf>((power - half + 127) << 23);
}

static inline vf sigmoid(vf x) { return 1.0f / (1.0f + exp(-x)); }

/// Sixteen accumulators.
struct Lanes16 {
    static constexpr int kParts = 16 / kWidth;
    vf part[kParts];

    static Lanes16 load(const float* p) {
        Lanes16 v;
        for (int i = 0; i < kParts; ++i) v.part[i] = MMX_CPU_ISA::load(p + i * kWidth);
        return v;
    }

    /// this += a * b
    void add_product(const Lanes16& a, const Lanes16& b) {
        for (int i = 0; i < kParts; ++i) part[i] = fma(a.part[i], b.part[i], part[i]);
    }

    /// Sum of the lanes, always as the tree (l, l + 8), (l, l + 4), (l, l + 2), (l, l + 1).
    float sum() const {
        float lanes[16];
        for (int i = 0; i < kParts; ++i) store(lanes + i * kWidth, part[i]);
        for (int step = 8; step > 0; step /= 2)
            for (int l = 0; l < step; ++l) lanes[l] += lanes[l + step];
        return lanes[0];
    }
};

/// sums[i] = v[i].sum() for eight accumulators at once.
static inline void sum8(float* sums, const Lanes16* v) {
#if defined(__AVX512F__)
    // Why maskz with all bits set: the plain forms warn about an uninitialised value in gcc's own header.
    constexpr __mmask16 kAll = 0xFFFF;
    const auto halves = [](__m512 a, __m512 b) {  // 256 bits of a, 256 bits of b
        return _mm512_add_ps(_mm512_maskz_shuffle_f32x4(kAll, a, b, 0x44),
                             _mm512_maskz_shuffle_f32x4(kAll, a, b, 0xEE));
    };
    const auto quarters = [](__m512 a, __m512 b) {  // 128 bits of each of the four in a, b
        return _mm512_add_ps(_mm512_maskz_shuffle_f32x4(kAll, a, b, 0x88),
                             _mm512_maskz_shuffle_f32x4(kAll, a, b, 0xDD));
    };
    const __m512 x = quarters(halves(v[0].part[0], v[1].part[0]), halves(v[2].part[0], v[3].part[0]));
    const __m512 y = quarters(halves(v[4].part[0], v[5].part[0]), halves(v[6].part[0], v[7].part[0]));
    const __m512d xd = _mm512_castps_pd(x), yd = _mm512_castps_pd(y);
    // 128-bit lane i: two lanes of accumulator i, two of accumulator i + 4.
    const __m512 pairs = _mm512_add_ps(_mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xFF, xd, yd)),
                                       _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xFF, xd, yd)));
    const __m512 all = _mm512_add_ps(pairs, _mm512_maskz_permute_ps(kAll, pairs, 0xB1));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm512_mask_storeu_ps(sums, 0xFF, _mm512_maskz_permutexvar_ps(kAll, order, all));
#else
    for (int i = 0; i < 8; ++i) sums[i] = v[i].sum();
#endif
}

}  // namespace mmx::cpu::MMX_CPU_ISA
