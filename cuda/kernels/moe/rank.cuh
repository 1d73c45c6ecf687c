#pragma once

#include <cmath>

#include "cuda/common/reduce.cuh"

namespace mmx::cuda {

/// A place in the router's ranking: score descending, then id ascending. A NaN ranks as -inf.
struct Rank {
    float score;
    int id;

    static __device__ __forceinline__ Rank of(float score, int id) {
        return {isnan(score) ? -INFINITY : score, id};
    }
    __device__ __forceinline__ bool before(const Rank& other) const {
        return score > other.score || (score == other.score && id < other.id);
    }
};

/// The first of the warp's ranks, in every lane.
__device__ __forceinline__ Rank warp_first(Rank best) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        const Rank other{__shfl_xor_sync(kFull, best.score, offset), __shfl_xor_sync(kFull, best.id, offset)};
        if (other.before(best)) best = other;
    }
    return best;
}

}  // namespace mmx::cuda
