#pragma once

#include "cpp/kernels/vec.h"

namespace mmx::cpu::MMX_CPU_ISA {

/// out[i] = act(gate[i], up[i]) for i < n. `out` may be `gate` or `up` of the same type.
template <class T, class In>
static inline void gated_act_row(T* out, const In* gate, const In* up, int64_t n, Activation activation,
                                 float alpha, float limit) {
    for (int64_t i = 0; i < n; i += kWidth) {
        vf g = load_some(gate + i, n - i), u = load_some(up + i, n - i);
        if (activation == Activation::kSwigluOai) {
            g = g > limit ? splat(limit) : g;
            u = u > limit ? splat(limit) : u;
            u = u < -limit ? splat(-limit) : u;
            store_some(out + i, g * sigmoid(alpha * g) * (u + 1.0f), n - i);
        } else {
            store_some(out + i, g * sigmoid(g) * u, n - i);
        }
    }
}

}  // namespace mmx::cpu::MMX_CPU_ISA
