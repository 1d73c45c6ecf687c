#pragma once

#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/reduce.cuh"
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

/// Of the 16 threads of a row of queries, 8 dimensions each: 16 bytes in shared memory.
__device__ __forceinline__ char* place_of_queries(char* queries) {
    const int tid = static_cast<int>(threadIdx.x);
    return queries + tid / 16 * kQueryStride + tid % 16 * 16;
}

/// The same four pairs of dimensions in the order in which a lane's codes of a k16 step lie.
__device__ __forceinline__ void place_in_order_of_codes(char* queries, uint32_t a, uint32_t b, uint32_t c,
                                                        uint32_t d) {
    const int tid = static_cast<int>(threadIdx.x), piece = tid % 16;
    char* place = queries + tid / 16 * kQueryStride + piece / 2 * 32 + piece % 2 * 8;
    *reinterpret_cast<uint2*>(place) = make_uint2(a, c);
    *reinterpret_cast<uint2*>(place + 16) = make_uint2(b, d);
}

/// Queries as A operands of the eight k16 steps, from rows in shared memory.
__device__ __forceinline__ void load_queries(uint32_t (&q)[8][4], const char* rows) {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int step = 0; step < 8; ++step)
        ptx::load_matrices(q[step],
                           ptx::smem_address(rows + lane % 16 * kQueryStride + (step * 2 + lane / 16) * 16));
}

template <class C>
struct Pages;

template <>
struct Pages<bf16> {
    static constexpr uint32_t kOnes = 0x3F803F80;  // two of them

    /// By the 16 threads of a row, 8 dimensions each: puts queries where fragments are loaded from. Returns
    /// what the fragments must be multiplied by to be the queries.
    __device__ __forceinline__ static float place_queries(char* queries, const uint4& v) {
        *reinterpret_cast<uint4*>(place_of_queries(queries)) = v;
        return 1;
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

    /// Values of dimensions [16 * slice, + 16) as B operands of the eight k16 steps, two tiles each.
    __device__ __forceinline__ static void load_values(uint32_t (&v)[8][4], uint32_t page, int slice) {
        const int lane = static_cast<int>(threadIdx.x % 32);
        const uint32_t tile = page + slice / 4 * (kPage * 128);
#pragma unroll
        for (int step = 0; step < 8; ++step)
            ptx::load_matrices_transposed(v[step],
                                          swizzled(tile, step * 16 + lane % 16, slice % 4 * 2 + lane / 16));
    }

    __device__ __forceinline__ static void mma(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1) {
        ptx::mma_16x8x16(acc, a[0], a[1], a[2], a[3], b0, b1);
    }

    /// Calls f(first dimension, values...) for what this lane holds of row g + 8 * row of a slice.
    template <int kTiles, class F>
    __device__ __forceinline__ static void for_each_run(const float (&o)[kTiles][4], int row, int slice,
                                                        F&& f) {
        const int t = static_cast<int>(threadIdx.x % 4);
#pragma unroll
        for (int n = 0; n < 2; ++n) f(slice * 16 + n * 8 + 2 * t, o[n][2 * row], o[n][2 * row + 1]);
    }
};

template <>
struct Pages<e4m3> {
    static constexpr uint32_t kOnes = 0x3C003C00;

    /// Rows become f16, scaled by a power of two to at most 2^15, so that every bf16 that matters beside the
    /// largest one is exact. A lane's k pairs of a step are dimensions 4t, 4t + 1 and 4t + 2, 4t + 3, as the
    /// codes lie.
    __device__ __forceinline__ static float place_queries(char* queries, const uint4& v) {
        const auto magnitudes = [](uint32_t pair) { return pair & 0x7FFF7FFF; };
        uint32_t largest =
            __vmaxu2(__vmaxu2(magnitudes(v.x), magnitudes(v.y)), __vmaxu2(magnitudes(v.z), magnitudes(v.w)));
        largest = max(largest & 0xFFFF, largest >> 16);  // magnitude bits of a bf16
#pragma unroll
        for (int other = 1; other < 16; other *= 2)
            largest = max(largest, __shfl_xor_sync(kFull, largest, other));
        const uint32_t exponent = max(largest >> 7, 15u);
        const float shrink = __uint_as_float((268 - exponent) << 23);  // 2^(14 - (exponent - 127))
        const auto pack = [&](uint32_t pair) {
            return ptx::pack_f16(__uint_as_float(pair << 16) * shrink,
                                 __uint_as_float(pair & 0xFFFF0000u) * shrink);
        };
        place_in_order_of_codes(queries, pack(v.x), pack(v.y), pack(v.z), pack(v.w));
        return __uint_as_float((exponent - 14) << 23);
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

    /// The first tile holds the even dimensions of the slice, the second one the odd ones.
    __device__ __forceinline__ static void load_values(uint32_t (&v)[8][4], uint32_t page, int slice) {
        const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            uint32_t codes[4];
            ptx::load_matrices_transposed(codes, swizzled(page, pair * 32 + lane, slice));
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                uint32_t (&b)[4] = v[pair * 2 + i];
                // A register holds two dimensions of key 2t, then of 2t + 1: pair the keys instead.
                ptx::decode_e4m3(__byte_perm(codes[2 * i], 0, 0x3120), b[0], b[2]);
                ptx::decode_e4m3(__byte_perm(codes[2 * i + 1], 0, 0x3120), b[1], b[3]);
            }
        }
    }

    __device__ __forceinline__ static void mma(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1) {
        ptx::mma_16x8x16_f16(acc, a[0], a[1], a[2], a[3], b0, b1);
    }

    template <int kTiles, class F>
    __device__ __forceinline__ static void for_each_run(const float (&o)[kTiles][4], int row, int slice,
                                                        F&& f) {
        const int t = static_cast<int>(threadIdx.x % 4);
        f(slice * 16 + 4 * t, o[0][2 * row], o[1][2 * row], o[0][2 * row + 1], o[1][2 * row + 1]);
    }
};

/// o[n] += weights [16, 128] . values, and o[2], if there, += weights . ones: the sums of weights then need
/// no exchange between warps. `weights`: the address this lane gives for the fragments of the first k16 step;
/// the next ones are `step_bytes` apart.
template <class C, int kTiles>
__device__ __forceinline__ void add_values(float (&o)[kTiles][4], uint32_t weights, int step_bytes,
                                           const uint32_t (&v)[8][4]) {
    float odd[kTiles][4] = {};
#pragma unroll
    for (int step = 0; step < 8; ++step) {
        uint32_t p[4];
        ptx::load_matrices(p, weights + step * step_bytes);
#pragma unroll
        for (int n = 0; n < 2; ++n)
            Pages<C>::mma(step % 2 ? odd[n] : o[n], p, v[step][2 * n], v[step][2 * n + 1]);
        if constexpr (kTiles > 2)
            Pages<C>::mma(step % 2 ? odd[2] : o[2], p, Pages<C>::kOnes, Pages<C>::kOnes);
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] += odd[n][i];
}

}  // namespace mmx::cuda::sm90
