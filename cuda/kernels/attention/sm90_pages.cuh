#pragma once

#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/vec.cuh"

/// Pages of 128 keys x 128 dimensions in shared memory, as the copy engine leaves them with the 128-byte
/// swizzle, and the fragments that one warp takes from them for products of 16 query heads. bf16 pages lie as
/// two halves of 64 dimensions and are used as they are. e4m3 pages become f16, exactly, so queries and
/// weights are f16 too.
namespace mmx::cuda::sm90 {

inline constexpr int kPage = 128, kDim = 128, kRows = 16;
inline constexpr int kQueryStride = kDim * 2 + 16;  // bytes; spreads the rows of a fragment over the banks

template <class C>
inline constexpr int kPageBytes = kPage * kDim * static_cast<int>(sizeof(C));

/// 16 bytes `chunk` of key `key` in a tile of 128-byte rows.
__device__ __forceinline__ uint32_t swizzled(uint32_t tile, int key, int chunk) {
    return tile + key * 128 + ((chunk ^ key % 8) << 4);
}

template <class C>
struct Pages;

template <>
struct Pages<bf16> {
    static constexpr uint32_t kOnes = 0x3F803F80;  // two of them

    /// Queries as A operands of the eight k16 steps, from rows in shared memory; `factor[row]` is what the
    /// fragments of this lane's row g + 8 * row must be multiplied by to be the queries.
    __device__ __forceinline__ static void load_queries(uint32_t (&q)[8][4], float (&factor)[2],
                                                        const char* rows) {
        const int lane = static_cast<int>(threadIdx.x % 32);
        factor[0] = factor[1] = 1;
#pragma unroll
        for (int step = 0; step < 8; ++step)
            ptx::load_matrices(
                q[step], ptx::smem_address(rows + lane % 16 * kQueryStride + (step * 2 + lane / 16) * 16));
    }

    __device__ __forceinline__ static uint32_t pack(float low, float high) {
        return ptx::pack_bf16(low, high);
    }

    /// s[n] = queries . keys [first_key + 8n, + 8) for two n; the sums of even and odd steps are separate
    /// chains.
    __device__ __forceinline__ static void score(float (&s)[2][4], const uint32_t (&q)[8][4], uint32_t page,
                                                 int first_key) {
        const int lane = static_cast<int>(threadIdx.x % 32);
        const int key = first_key + lane / 16 * 8 + lane % 8;
        float odd[2][4] = {};
#pragma unroll
        for (int step = 0; step < 8; ++step) {
            uint32_t k[4];
            ptx::load_matrices(k,
                               swizzled(page + step / 4 * (kPage * 128), key, step % 4 * 2 + lane / 8 % 2));
#pragma unroll
            for (int n = 0; n < 2; ++n)
                ptx::mma_16x8x16(step % 2 ? odd[n] : s[n], q[step][0], q[step][1], q[step][2], q[step][3],
                                 k[2 * n], k[2 * n + 1]);
        }
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) s[n][i] += odd[n][i];
    }

    /// o[n] += weights [16, 128] . values of dimensions [16 * slice, + 16), o[2] += weights . ones: the sums
    /// of weights need no exchange between warps.
    __device__ __forceinline__ static void add_values(float (&o)[3][4], uint32_t weights, int weight_stride,
                                                      uint32_t page, int slice) {
        const int lane = static_cast<int>(threadIdx.x % 32);
        const uint32_t tile = page + slice / 4 * (kPage * 128);
        float odd[3][4] = {};
#pragma unroll
        for (int step = 0; step < 8; ++step) {
            uint32_t p[4], v[4];
            ptx::load_matrices(p, weights + lane % 16 * weight_stride + (step * 2 + lane / 16) * 16);
            ptx::load_matrices_transposed(v,
                                          swizzled(tile, step * 16 + lane % 16, slice % 4 * 2 + lane / 16));
#pragma unroll
            for (int n = 0; n < 2; ++n)
                ptx::mma_16x8x16(step % 2 ? odd[n] : o[n], p[0], p[1], p[2], p[3], v[2 * n], v[2 * n + 1]);
            ptx::mma_16x8x16(step % 2 ? odd[2] : o[2], p[0], p[1], p[2], p[3], kOnes, kOnes);
        }
#pragma unroll
        for (int n = 0; n < 3; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) o[n][i] += odd[n][i];
    }

    /// Calls f(first dimension, values...) for what this lane holds of row g + 8 * row of a slice.
    template <class F>
    __device__ __forceinline__ static void for_each_run(const float (&o)[3][4], int row, int slice, F&& f) {
        const int t = static_cast<int>(threadIdx.x % 4);
#pragma unroll
        for (int n = 0; n < 2; ++n) f(slice * 16 + n * 8 + 2 * t, o[n][2 * row], o[n][2 * row + 1]);
    }
};

template <>
struct Pages<e4m3> {
    static constexpr uint32_t kOnes = 0x3C003C00;

    /// Rows are scaled by a power of two to at most 2^15, so that f16 holds every bf16 that matters beside
    /// the largest one exactly. A lane's k pairs of a step are dimensions 4t, 4t + 1 and 4t + 2, 4t + 3, as
    /// the codes lie.
    __device__ __forceinline__ static void load_queries(uint32_t (&q)[8][4], float (&factor)[2],
                                                        const char* rows) {
        const int g = static_cast<int>(threadIdx.x % 32 / 4), t = static_cast<int>(threadIdx.x % 4);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const char* x = rows + (g + 8 * row) * kQueryStride + 8 * t;
            uint2 v[8];
            uint32_t largest = 0;  // magnitude bits of a bf16
#pragma unroll
            for (int step = 0; step < 8; ++step) {
                v[step] = *reinterpret_cast<const uint2*>(x + step * 32);
                const uint32_t a = v[step].x & 0x7FFF7FFF, b = v[step].y & 0x7FFF7FFF;
                largest = __vmaxu2(largest, __vmaxu2(a, b));
            }
            largest = max(largest & 0xFFFF, largest >> 16);
            largest = max(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 1));
            largest = max(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 2));
            const uint32_t exponent = max(largest >> 7, 15u);
            const float shrink = __uint_as_float((268 - exponent) << 23);  // 2^(14 - (exponent - 127))
            factor[row] = __uint_as_float((exponent - 14) << 23);
#pragma unroll
            for (int step = 0; step < 8; ++step)
#pragma unroll
                for (int high = 0; high < 2; ++high) {
                    const uint32_t pair = high ? v[step].y : v[step].x;
                    q[step][2 * high + row] = ptx::pack_f16(__uint_as_float(pair << 16) * shrink,
                                                            __uint_as_float(pair & 0xFFFF0000u) * shrink);
                }
        }
    }

    __device__ __forceinline__ static uint32_t pack(float low, float high) {
        return ptx::pack_f16(low, high);
    }

    __device__ __forceinline__ static void score(float (&s)[2][4], const uint32_t (&q)[8][4], uint32_t page,
                                                 int first_key) {
        const int lane = static_cast<int>(threadIdx.x % 32);
        const int key = first_key + lane / 16 * 8 + lane % 8;
        float odd[2][4] = {};
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            uint32_t codes[4];
            ptx::load_matrices(codes, swizzled(page, key, pair * 2 + lane / 8 % 2));
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    uint32_t low, high;
                    ptx::decode_e4m3(codes[2 * n + i], low, high);
                    const uint32_t (&a)[4] = q[pair * 2 + i];
                    ptx::mma_16x8x16_f16(i ? odd[n] : s[n], a[0], a[1], a[2], a[3], low, high);
                }
        }
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) s[n][i] += odd[n][i];
    }

    /// o[0] holds the even dimensions of the slice, o[1] the odd ones.
    __device__ __forceinline__ static void add_values(float (&o)[3][4], uint32_t weights, int weight_stride,
                                                      uint32_t page, int slice) {
        const int lane = static_cast<int>(threadIdx.x % 32);
        float odd[3][4] = {};
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            uint32_t codes[4];
            ptx::load_matrices_transposed(codes, swizzled(page, pair * 32 + lane, slice));
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int step = pair * 2 + i;
                uint32_t p[4], v[4];  // v: keys low and high of the even dimension, then of the odd one
                ptx::load_matrices(p, weights + lane % 16 * weight_stride + (step * 2 + lane / 16) * 16);
                // A register holds two dimensions of key 2t, then of 2t + 1: pair the keys instead.
                ptx::decode_e4m3(__byte_perm(codes[2 * i], 0, 0x3120), v[0], v[2]);
                ptx::decode_e4m3(__byte_perm(codes[2 * i + 1], 0, 0x3120), v[1], v[3]);
#pragma unroll
                for (int n = 0; n < 2; ++n)
                    ptx::mma_16x8x16_f16(i ? odd[n] : o[n], p[0], p[1], p[2], p[3], v[2 * n], v[2 * n + 1]);
                ptx::mma_16x8x16_f16(i ? odd[2] : o[2], p[0], p[1], p[2], p[3], kOnes, kOnes);
            }
        }
#pragma unroll
        for (int n = 0; n < 3; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) o[n][i] += odd[n][i];
    }

    template <class F>
    __device__ __forceinline__ static void for_each_run(const float (&o)[3][4], int row, int slice, F&& f) {
        const int t = static_cast<int>(threadIdx.x % 4);
        f(slice * 16 + 4 * t, o[0][2 * row], o[1][2 * row], o[0][2 * row + 1], o[1][2 * row + 1]);
    }
};

}  // namespace mmx::cuda::sm90
