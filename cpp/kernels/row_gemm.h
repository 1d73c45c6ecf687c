#pragma once

#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "cpp/kernels/amx.h"
#include "cpp/kernels/fp8.h"

/// D[m, n] = A[m, k] . B[n, k]^T in fp32 for B of any weight type. Every element is summed in one fixed order
/// that depends on k only, so a row's result does not depend on the other rows, on where the tiles fall, or
/// on the threads: sixteen lanes over each chunk of kChunkK, a tree over the lanes, then chunk after chunk;
/// or, where both sides are bf16 and the processor has tiles for it, the order of amx.h.
namespace mmx::cpu::MMX_CPU_ISA {

inline constexpr int64_t kLanes = 16;
/// Why: eight rows of B at this depth (32 KiB) stay in a 48 KiB level 1 cache while rows of A pass by.
inline constexpr int64_t kChunkK = 1024;
/// Why: rows of A at chunk depth (768 KiB) stay in the level 2 cache while tiles of B pass by.
inline constexpr int64_t kBlockM = 192;
inline constexpr int64_t kBlockN = 64;
static_assert(kBlockM % kLanes == 0 && kBlockN % kLanes == 0, "blocks are made of whole tiles");
/// Accumulators of a tile fill the vector registers; eight columns suit sum8.
#if defined(__AVX512F__)
inline constexpr int kTileM = 3, kTileN = 8;
#else
inline constexpr int kTileM = 1, kTileN = 4;
#endif

/// Uninitialised memory that starts at a cache line: a vector that straddles two costs two accesses.
template <class T>
class AlignedArray {
  public:
    explicit AlignedArray(int64_t size) : data_(new (kAlignment) T[static_cast<size_t>(size)]) {}
    T* get() const { return data_.get(); }

  private:
    static constexpr std::align_val_t kAlignment{64};
    struct Free {
        void operator()(T* data) const { ::operator delete[](data, kAlignment); }
    };
    std::unique_ptr<T[], Free> data_;
};

/// Rows of A as floats, zero behind the end up to a multiple of kLanes.
class PackedRows {
  public:
    template <class T>
    PackedRows(const T* x, int64_t stride, int64_t num_rows, int64_t k)
        : stride_(align_up(k, kLanes) + kLanes), data_(num_rows * stride_) {
        parallel_for(num_rows, ceil_div(65536, k), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                float* to = data_.get() + row * stride_;
                for (int64_t i = 0; i < align_up(k, kLanes); i += kWidth)
                    store(to + i, load_some(x + row * stride + i, std::max<int64_t>(0, k - i)));
            }
        });
    }

    const float* row(int64_t i) const { return data_.get() + i * stride_; }

  private:
    int64_t stride_;  // one vector more than needed, so that rows do not fall into the same cache sets
    AlignedArray<float> data_;
};

/// Rows of B: [.., k] packed in memory. `scale` has a row of `scale_stride` per kFp8Block rows, for e4m3
/// only.
template <class W>
struct WeightRows {
    const W* data;  // [rows, k]
    int64_t k;
    const float* scale;  // [ceil(rows / kFp8Block), scale_stride] or null
    int64_t scale_stride;

    /// to[row, i] = weight[first + row, k0 + i] as floats, zero behind the end up to a multiple of kLanes.
    void unpack(float* to, int64_t to_stride, int64_t first, int64_t rows, int64_t k0, int64_t count) const {
        for (int64_t row = first; row < first + rows; ++row, to += to_stride) {
            const W* from = data + row * k + k0;
            // Why: the hardware's prefetcher stops at the end of a page, and short runs of a row end sooner.
            for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(W)))
                __builtin_prefetch(from + k + i, 0, 2);
            if constexpr (std::is_same_v<W, e4m3>) {
                dequant_row(to, from, scale + row / kFp8Block * scale_stride + k0 / kFp8Block, count);
                std::fill(to + count, to + align_up(count, kLanes), 0.0f);
            } else {
                for (int64_t i = 0; i < align_up(count, kLanes); i += kWidth)
                    store(to + i, load_some(from + i, std::max<int64_t>(0, count - i)));
            }
        }
    }
};

/// Weight of expert e, [n, k], of `weight` [num_experts, n, k] and `scale`, one per square block, or null.
template <class W>
static inline WeightRows<W> expert_weight(const void* weight, const float* scale, int64_t e, int64_t n,
                                          int64_t k) {
    const int64_t scale_rows = ceil_div(n, kFp8Block), scale_cols = ceil_div(k, kFp8Block);
    return {static_cast<const W*>(weight) + e * n * k, k,
            scale ? scale + e * scale_rows * scale_cols : nullptr, scale_cols};
}

/// c[i, j] += a[i] . b[j] over k, a multiple of kLanes.
template <int kM, int kN>
static inline void tile(float* c, int64_t c_stride, const float* const* a, int64_t a_offset, const float* b,
                        int64_t b_stride, int64_t k) {
    Lanes16 acc[kM * kN] = {};
    const float* rows[kM];
    for (int i = 0; i < kM; ++i) rows[i] = a[i] + a_offset;
    for (int64_t l = 0; l < k; l += kLanes) {
        Lanes16 av[kM];
        for (int i = 0; i < kM; ++i) av[i] = Lanes16::load(rows[i] + l);
#pragma GCC unroll 8
        for (int j = 0; j < kN; ++j) {
            Lanes16 bv = Lanes16::load(b + j * b_stride + l);
#if defined(__AVX512F__)
            // Why: gcc would rather load b again for every row, and loads are the tighter limit.
            asm("" : "+v"(bv.part[0]));
#endif
#pragma GCC unroll 8
            for (int i = 0; i < kM; ++i) acc[i * kN + j].add_product(av[i], bv);
        }
    }
    for (int i = 0; i < kM; ++i)
        if constexpr (kN == 8) {
            float sums[8];
            sum8(sums, acc + i * kN);
            for (int j = 0; j < kN; ++j) c[i * c_stride + j] += sums[j];
        } else {
            for (int j = 0; j < kN; ++j) c[i * c_stride + j] += acc[i * kN + j].sum();
        }
}

/// tile() for every row of A.
template <int kN>
static inline void tile_column(float* c, int64_t c_stride, const float* const* a, int64_t a_offset, int64_t m,
                               const float* b, int64_t b_stride, int64_t k) {
    int64_t i = 0;
    for (; i + kTileM <= m; i += kTileM)
        tile<kTileM, kN>(c + i * c_stride, c_stride, a + i, a_offset, b, b_stride, k);
    if (kTileM > 2 && m - i == 2) tile<2, kN>(c + i * c_stride, c_stride, a + i, a_offset, b, b_stride, k);
    if (kTileM > 1 && m - i == 1) tile<1, kN>(c + i * c_stride, c_stride, a + i, a_offset, b, b_stride, k);
}

/// c[i, n - n0] = a[i] . weight[n] for i < m <= kBlockM and n0 <= n < n1 <= n0 + kBlockN; c rows are kBlockN
/// apart.
template <class W>
static void gemm_block(float* c, const float* const* a, int64_t m, const WeightRows<W>& weight, int64_t n0,
                       int64_t n1) {
    alignas(64) float unpacked[kTileN * (kChunkK + kLanes)];
    const bool few_rows = m <= 2 * kTileM;
    std::fill(c, c + m * kBlockN, 0.0f);
    const auto step = [&](int64_t n, int64_t k0) {
        const int64_t count = std::min(kChunkK, weight.k - k0), columns = std::min<int64_t>(kTileN, n1 - n);
        const float* b = unpacked;
        int64_t b_stride = kChunkK + kLanes;
        if constexpr (std::is_same_v<W, float>)
            if (few_rows && count % kLanes == 0) {
                b = weight.data + n * weight.k + k0;
                b_stride = weight.k;
            }
        // Why floats too when there are many rows: rows a power of two apart would share the same cache sets.
        if (b == unpacked) weight.unpack(unpacked, b_stride, n, columns, k0, count);
        const int64_t padded = align_up(count, kLanes);
        if (columns == kTileN) return tile_column<kTileN>(c + n - n0, kBlockN, a, k0, m, b, b_stride, padded);
        for (int64_t j = 0; j < columns; ++j)
            tile_column<1>(c + n - n0 + j, kBlockN, a, k0, m, b + j * b_stride, b_stride, padded);
    };
    // Few rows: read the weights as they lie in memory. Many: keep a chunk of A in the cache. Same sums
    // either way.
    if (few_rows) {
        for (int64_t n = n0; n < n1; n += kTileN)
            for (int64_t k0 = 0; k0 < weight.k; k0 += kChunkK) step(n, k0);
    } else {
        for (int64_t k0 = 0; k0 < weight.k; k0 += kChunkK)
            for (int64_t n = n0; n < n1; n += kTileN) step(n, k0);
    }
}

#if defined(__AVX512F__)

/// The same on tiles; `x` is the first of the packed tiles of the rows.
static inline void gemm_block_on_tiles(float* c, const bf16* x, int64_t m, const WeightRows<bf16>& weight,
                                       int64_t n0, int64_t n1) {
    using amx::kRows;
    // Few rows: the weights pass once, along their rows. Many: 32 weight rows at this depth (32 KiB) stay in
    // the level 1 cache while rows of A pass by.
    constexpr int64_t kDepthOfMany = 512;
    const int64_t k = weight.k, x_size = amx::packed_size(k);
    const bool whole_tiles = k % amx::kDepth == 0 && (n1 - n0) % kRows == 0;
    const int64_t depth = whole_tiles && m <= 2 * kRows ? k : kDepthOfMany;
    alignas(64) bf16 packed[2 * kRows * kDepthOfMany];
    alignas(64) float sums[kBlockN * kBlockM];  // [n, m]
    const amx::Session session;
    for (int64_t k0 = 0; k0 < k; k0 += depth)
        for (int64_t n = n0; n < n1; n += 2 * kRows) {
            const int64_t count = std::min(depth, k - k0);
            amx::Weights weights{weight.data + n * k + k0, k, amx::kDepth};
            if (!whole_tiles) {
                amx::pack_weights(packed, weights.data, std::min(2 * kRows, n1 - n), k, count);
                weights = {packed, amx::kDepth, 2 * kRows * amx::kDepth};
            }
            for (int64_t i = 0; i < m; i += 2 * kRows) {
                const auto call = [&](auto f) {
                    f(sums + (n - n0) * kBlockM + i, kBlockM, k0 == 0, weights,
                      x + i / kRows * x_size + k0 * kRows, x_size, count);
                };
                if (n1 - n > kRows)
                    m - i > kRows ? call(amx::multiply<2, 2>) : call(amx::multiply<2, 1>);
                else
                    m - i > kRows ? call(amx::multiply<1, 2>) : call(amx::multiply<1, 1>);
            }
        }
    for (int64_t n = 0; n < n1 - n0; n += kRows)
        for (int64_t i = 0; i < m; i += kRows)
            amx::transpose(c + i * kBlockN + n, kBlockN, sums + n * kBlockM + i, kBlockM);
}

#endif

/// Work of one thread: rows [m0, m1) by columns [n0, n1) of group e. `tile` counts the tiles of up to 16 rows
/// before m0, in groups of their own.
struct GemmTask {
    int64_t e, m0, m1, n0, n1, tile;
};

/// Cuts the products of all groups into tasks of at most kBlockM rows and kBlockN columns; group e has the
/// rows [offsets[e], offsets[e + 1]).
static inline std::vector<GemmTask> gemm_tasks(const int32_t* offsets, int64_t num_groups, int64_t n) {
    std::vector<GemmTask> tasks;
    int64_t tile = 0;
    for (int64_t e = 0; e < num_groups; ++e)
        for (int64_t m0 = offsets[e]; m0 < offsets[e + 1]; m0 += kBlockM) {
            const int64_t m1 = std::min<int64_t>(m0 + kBlockM, offsets[e + 1]);
            for (int64_t n0 = 0; n0 < n; n0 += kBlockN)
                tasks.push_back({e, m0, m1, n0, std::min(n0 + kBlockN, n), tile});
            tile += ceil_div(m1 - m0, kLanes);
        }
    return tasks;
}

/// A of a grouped GEMM with weights of type W, packed for the path that serves T and W on this machine.
template <class T, class W>
class GroupedRows {
  public:
    /// Row m of A is row `row_of(m)` of x [num_x_rows, k]; the groups are those of gemm_tasks.
    template <class RowOf>
    GroupedRows(const T* x, int64_t stride, int64_t num_x_rows, int64_t k, const int32_t* offsets,
                int64_t num_groups, RowOf&& row_of)
        : k_(k) {
        const int64_t num_rows = offsets[num_groups];
#if defined(__AVX512F__)
        if constexpr (kTileTypes)
            if (amx::is_available()) {
                std::vector<const T*> rows;
                for (int64_t m = 0; m < num_rows; ++m) rows.push_back(x + row_of(m) * stride);
                pack_tiles(rows, offsets, num_groups);
                return;
            }
#endif
        floats_.emplace(x, stride, num_x_rows, k);
        for (int64_t m = 0; m < num_rows; ++m) rows_.push_back(floats_->row(row_of(m)));
    }

    /// c[i, n - n0] = A[task.m0 + i] . weight[n] for the rows of `task` and n0 <= n < n1 <= n0 + kBlockN; c
    /// has kBlockM rows of kBlockN.
    void multiply(float* c, const GemmTask& task, const WeightRows<W>& weight, int64_t n0, int64_t n1) const {
        const int64_t m = task.m1 - task.m0;
#if defined(__AVX512F__)
        if constexpr (kTileTypes)
            if (tiles_) {
                const bf16* first = tiles_->get() + task.tile * amx::packed_size(k_);
                return gemm_block_on_tiles(c, first, m, weight, n0, n1);
            }
#endif
        gemm_block(c, &rows_[static_cast<size_t>(task.m0)], m, weight, n0, n1);
    }

  private:
#if defined(__AVX512F__)
    static constexpr bool kTileTypes = std::is_same_v<T, bf16> && std::is_same_v<W, bf16>;

    void pack_tiles(const std::vector<const T*>& rows, const int32_t* offsets, int64_t num_groups) {
        struct Tile {
            int64_t m0, count;
        };
        std::vector<Tile> tiles;
        for (int64_t e = 0; e < num_groups; ++e)
            for (int64_t m0 = offsets[e]; m0 < offsets[e + 1]; m0 += amx::kRows)
                tiles.push_back({m0, std::min<int64_t>(amx::kRows, offsets[e + 1] - m0)});
        const auto num_tiles = static_cast<int64_t>(tiles.size());
        tiles_.emplace(num_tiles * amx::packed_size(k_));
        parallel_for(num_tiles, ceil_div(65536, amx::packed_size(k_)), [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const Tile& tile = tiles[static_cast<size_t>(i)];
                amx::pack(tiles_->get() + i * amx::packed_size(k_), &rows[static_cast<size_t>(tile.m0)],
                          tile.count, k_);
            }
        });
    }

    std::optional<AlignedArray<bf16>> tiles_;
#endif

    int64_t k_;
    std::optional<PackedRows> floats_;
    std::vector<const float*> rows_;
};

/// Runs f(task) on the threads, or here when `macs` multiplications are too few to share.
template <class F>
static inline void run_tasks(const std::vector<GemmTask>& tasks, int64_t macs, F&& f) {
    constexpr int64_t kWorthSharing = 1 << 18;
    if (macs < kWorthSharing) {
        for (const GemmTask& task : tasks) f(task);
    } else {
        parallel_tasks(static_cast<int64_t>(tasks.size()),
                       [&](int64_t i) { f(tasks[static_cast<size_t>(i)]); });
    }
}

}  // namespace mmx::cpu::MMX_CPU_ISA
