#include "cpp/kernels/common.h"

namespace mmx::cpu::MMX_CPU_ISA {

namespace {

/// Why the copies into lanes: `out` may be `x`, and only loops that load everything before they store
/// vectorise.
template <class T>
void rotate_head(T* out, const T* x, const float* cos, const float* sin, int64_t half) {
    constexpr int kLanes = 16;
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        float first[kLanes], second[kLanes];
        for (int l = 0; l < kLanes; ++l) first[l] = to_float(x[i + l]);
        for (int l = 0; l < kLanes; ++l) second[l] = to_float(x[half + i + l]);
        for (int l = 0; l < kLanes; ++l)
            out[i + l] = from_float<T>(first[l] * cos[i + l] - second[l] * sin[i + l]);
        for (int l = 0; l < kLanes; ++l)
            out[half + i + l] = from_float<T>(second[l] * cos[i + l] + first[l] * sin[i + l]);
    }
    for (; i < half; ++i) {
        const float first = to_float(x[i]), second = to_float(x[half + i]);
        out[i] = from_float<T>(first * cos[i] - second * sin[i]);
        out[half + i] = from_float<T>(second * cos[i] + first * sin[i]);
    }
}

}  // namespace

void rope(const RopeParams& p, Stream) {
    for (int64_t token = 0; token < p.num_tokens; ++token)
        MMX_CHECK(p.positions[token] >= 0 && p.positions[token] < p.max_positions, "rope: positions[", token,
                  "] must lie in [0, ", p.max_positions, "), got ", p.positions[token]);
    const int64_t half = p.rotary_dim / 2;
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        parallel_for(p.num_tokens * p.num_heads, ceil_div(4096, p.head_dim), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                const int64_t token = row / p.num_heads, head = row % p.num_heads;
                const T* x = static_cast<const T*>(p.x) + token * p.x_token_stride + head * p.x_head_stride;
                T* out = static_cast<T*>(p.out) + token * p.out_token_stride + head * p.out_head_stride;
                const float* cos = p.cos_sin + p.positions[token] * p.rotary_dim;
                rotate_head(out, x, cos, cos + half, half);
                if (out != x) std::copy(x + p.rotary_dim, x + p.head_dim, out + p.rotary_dim);
            }
        });
    });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
