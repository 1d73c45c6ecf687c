#pragma once

#include "cpp/kernels/vec.h"

#if defined(__AVX512F__)

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/// Products of bf16 matrices on the processor's tile unit, where it has one: D^T = W . X^T with weight rows
/// as they lie in memory. Each element is summed over k in ascending order by one chain of tile instructions,
/// so a row does not depend on the other rows.
namespace mmx::cpu::MMX_CPU_ISA::amx {

inline constexpr int64_t kRows = 16;   // of a tile
inline constexpr int64_t kDepth = 32;  // elements of k per tile

/// Whether the processor has bf16 tiles and the system lets this process use them.
static inline bool is_available() {
    static const bool available = [] {
        unsigned eax, ebx, ecx, edx;
        if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
        constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
        if ((edx & (kBf16 | kTile)) != (kBf16 | kTile)) return false;
        constexpr long kRequestPermission = 0x1023, kTileData = 18;
        return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    }();
    return available;
}

/// Eight full tiles for as long as it lives: 0 to 3 sums, 4 and 5 weights, 6 and 7 rows of x.
class Session {
  public:
    Session() {
        Config config{.palette = 1};
        for (int i = 0; i < 8; ++i) {
            config.row_bytes[i] = 64;
            config.rows[i] = kRows;
        }
        asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
    }
    ~Session() { asm volatile("tilerelease" ::: "memory"); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

  private:
    struct alignas(64) Config {
        uint8_t palette, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    };
};

template <int kTile>
static inline void load(const void* data, int64_t stride_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(data), "r"(stride_bytes), "i"(kTile) : "memory");
}

template <int kTile>
static inline void store(void* data, int64_t stride_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(data), "r"(stride_bytes), "i"(kTile) : "memory");
}

template <int kTile>
static inline void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

/// sum += weights . x, all of them tiles.
template <int kSum, int kWeights, int kX>
static inline void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kWeights), "i"(kX));
}

/// Elements of one packed tile of rows, all of k.
static inline int64_t packed_size(int64_t k) { return kRows * align_up(k, kDepth); }

/// to[j, i] = rows[i][j] for 16 x 16 elements of 32 bits, which are moved as they are.
static inline void store_transposed(float* to, int64_t to_stride, const __m512* rows) {
    constexpr __mmask16 kAll = 0xFFFF;
    __m512 a[16], b[16];
    // Pairs of rows, then pairs of pairs, interleaved within 128 bits; then the 128-bit parts are put in
    // order.
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_maskz_unpacklo_ps(kAll, rows[i], rows[i + 1]);
        b[i + 1] = _mm512_maskz_unpackhi_ps(kAll, rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            const __m512d low = _mm512_castps_pd(b[i + j]), high = _mm512_castps_pd(b[i + 2 + j]);
            a[i + 2 * j] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xFF, low, high));
            a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xFF, low, high));
        }
    for (int j = 0; j < 4; ++j) {
        const __m512 low = _mm512_maskz_shuffle_f32x4(kAll, a[j], a[4 + j], 0x88);
        const __m512 odd_low = _mm512_maskz_shuffle_f32x4(kAll, a[j], a[4 + j], 0xDD);
        const __m512 high = _mm512_maskz_shuffle_f32x4(kAll, a[8 + j], a[12 + j], 0x88);
        const __m512 odd_high = _mm512_maskz_shuffle_f32x4(kAll, a[8 + j], a[12 + j], 0xDD);
        _mm512_storeu_ps(to + j * to_stride, _mm512_maskz_shuffle_f32x4(kAll, low, high, 0x88));
        _mm512_storeu_ps(to + (j + 4) * to_stride, _mm512_maskz_shuffle_f32x4(kAll, odd_low, odd_high, 0x88));
        _mm512_storeu_ps(to + (j + 8) * to_stride, _mm512_maskz_shuffle_f32x4(kAll, low, high, 0xDD));
        _mm512_storeu_ps(to + (j + 12) * to_stride,
                         _mm512_maskz_shuffle_f32x4(kAll, odd_low, odd_high, 0xDD));
    }
}

/// Elements of a run of up to 32 of k, for masked loads.
static inline __mmask32 first_elements(int64_t count) { return count >= kDepth ? ~0u : (1u << count) - 1; }

/// Packs up to 16 rows of x for tile loads: to[k / 2][row][k % 2], zero behind `count` and k.
static inline void pack(bf16* to, const bf16* const* rows, int64_t count, int64_t k) {
    for (int64_t i = 0; i < k; i += kDepth) {
        const __mmask32 inside = first_elements(k - i);
        __m512 pairs[kRows] = {};
        for (int64_t row = 0; row < count; ++row)
            pairs[row] = _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(inside, rows[row] + i));
        store_transposed(reinterpret_cast<float*>(to + i * kRows), kRows, pairs);
    }
}

/// Packs up to 32 weight rows: to[k / 32][row][k % 32], zero behind `num_rows` and k.
static inline void pack_weights(bf16* to, const bf16* weight, int64_t num_rows, int64_t stride, int64_t k) {
    for (int64_t row = 0; row < 2 * kRows; ++row, to += kDepth)
        for (int64_t i = 0; i < k; i += kDepth) {
            const __mmask32 inside = row < num_rows ? first_elements(k - i) : 0;
            _mm512_storeu_si512(to + i * 2 * kRows,
                                _mm512_maskz_loadu_epi16(inside, weight + row * stride + i));
        }
}

/// Weight rows as tile loads see them: `stride` elements from row to row, `step` from one depth to the next.
struct Weights {
    const bf16* data;
    int64_t stride, step;
};

/// sums[n, row] = (first ? 0 : sums[n, row]) + weight[n] . x[row] over k for kN x kM tiles; tiles of x are
/// x_size apart.
template <int kN, int kM>
static inline void multiply(float* sums, int64_t sums_stride, bool first, Weights weights, const bf16* x,
                            int64_t x_size, int64_t k) {
    const int64_t sums_bytes = sums_stride * 4, second_n = kRows * sums_stride;
    if (first) {
        zero<0>(), zero<1>(), zero<2>(), zero<3>();
    } else {
        load<0>(sums, sums_bytes);
        if constexpr (kM == 2) load<1>(sums + kRows, sums_bytes);
        if constexpr (kN == 2) load<2>(sums + second_n, sums_bytes);
        if constexpr (kN == 2 && kM == 2) load<3>(sums + second_n + kRows, sums_bytes);
    }
    const bf16* w = weights.data;
    for (int64_t i = 0; i < k; i += kDepth, w += weights.step, x += kRows * kDepth) {
        load<4>(w, weights.stride * 2);
        if constexpr (kN == 2) load<5>(w + kRows * weights.stride, weights.stride * 2);
        load<6>(x, 64);
        if constexpr (kM == 2) load<7>(x + x_size, 64);
        dot<0, 4, 6>();
        if constexpr (kM == 2) dot<1, 4, 7>();
        if constexpr (kN == 2) dot<2, 5, 6>();
        if constexpr (kN == 2 && kM == 2) dot<3, 5, 7>();
    }
    store<0>(sums, sums_bytes);
    if constexpr (kM == 2) store<1>(sums + kRows, sums_bytes);
    if constexpr (kN == 2) store<2>(sums + second_n, sums_bytes);
    if constexpr (kN == 2 && kM == 2) store<3>(sums + second_n + kRows, sums_bytes);
}

/// to[j, i] = from[i, j] for 16 x 16 floats.
static inline void transpose(float* to, int64_t to_stride, const float* from, int64_t from_stride) {
    __m512 rows[16];
    for (int i = 0; i < 16; ++i) rows[i] = _mm512_loadu_ps(from + i * from_stride);
    store_transposed(to, to_stride, rows);
}

}  // namespace mmx::cpu::MMX_CPU_ISA::amx

#endif
