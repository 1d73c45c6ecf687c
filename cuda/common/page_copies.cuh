#pragma once

#include "cuda/common/ptx/multicast.cuh"

/// Copies of pages of 128 keys x 128 dimensions into shared memory by the warps that use them, without the
/// copy engine: for thread blocks of so few pages that its latency counts. The layout is the copy engine's
/// with the 128-byte swizzle; bf16 pages lie as two halves of 64 dimensions.
namespace mmx::cuda {

/// The value, computed where this stands: in front of a wait, say, instead of at its first use.
template <class T>
__device__ __forceinline__ T pinned(T x) {
    asm volatile("" : "+r"(x));
    return x;
}

/// How a warp copies its 16 keys of a page, eight warps all of them: what does not depend on the page.
template <class C>
struct KeyCopies {
    static constexpr int kRowBytes = 128 * static_cast<int>(sizeof(C)), kCount = 16 * kRowBytes / 512;
    static constexpr int kKeysOfOne = 16 / kCount;

    uint32_t to[kCount];  // from the start of a tile
    int from, first_key;

    /// `first_row`: of the keys in what `page_offset` leads to.
    __device__ __forceinline__ explicit KeyCopies(int first_row) {
        const int warp_idx = static_cast<int>(threadIdx.x / 32),
                  lane_idx = static_cast<int>(threadIdx.x % 32);
        const int piece = lane_idx % (kRowBytes / 16),
                  key_of_lane = warp_idx * 16 + lane_idx * 16 / kRowBytes;
        first_key = pinned(key_of_lane);
        from = pinned((first_row + warp_idx * 16) * kRowBytes + lane_idx * 16);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const int key = key_of_lane + i * kKeysOfOne;
            to[i] = pinned<uint32_t>(piece / 8 * (128 * 128) + key * 128 + ((piece % 8 ^ key % 8) << 4));
        }
    }

    __device__ __forceinline__ void copy(uint32_t tile, const void* cache, int64_t page_offset) const {
        const char* page = at(cache, page_offset);
#pragma unroll
        for (int i = 0; i < kCount; ++i) ptx::copy_async_16(tile + to[i], page + i * 512);
    }

    /// Zeros instead of keys from num_keys on.
    __device__ __forceinline__ void copy_first(uint32_t tile, const void* cache, int64_t page_offset,
                                               int num_keys) const {
        const char* page = at(cache, page_offset);
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            ptx::copy_async_16_or_clear(tile + to[i], page + i * 512, first_key + i * kKeysOfOne < num_keys);
    }

  private:
    /// page_offset: in elements.
    __device__ __forceinline__ const char* at(const void* cache, int64_t page_offset) const {
        return static_cast<const char*>(cache) + page_offset * static_cast<int64_t>(sizeof(C)) + from;
    }
};

/// For loops that are unrolled.
__device__ __forceinline__ void wait_for_copies(int pending) {
    switch (pending) {
        case 0: return ptx::wait_for_copies<0>();
        case 1: return ptx::wait_for_copies<1>();
        case 2: return ptx::wait_for_copies<2>();
        case 3: return ptx::wait_for_copies<3>();
        default: return ptx::wait_for_copies<4>();
    }
}

}  // namespace mmx::cuda
