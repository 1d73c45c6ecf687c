#pragma once

#include "cpp/core/params/activation.h"

namespace mmx::cuda {

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/// The same with an approximate reciprocal (1 ulp): the exact division would cost more than the rest.
__device__ __forceinline__ float fast_sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

/// act(gate, up); a NaN stays a NaN.
__device__ __forceinline__ float gated_act(float gate, float up, Activation activation, float alpha,
                                           float limit) {
    if (activation == Activation::kSilu) return gate * fast_sigmoid(gate) * up;
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up;
    up = up < -limit ? -limit : up;
    return gate * fast_sigmoid(alpha * gate) * (up + 1.0f);
}

}  // namespace mmx::cuda
