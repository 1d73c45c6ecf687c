#include "cpp/kernels/common.h"
#include "cpp/kernels/launchers.h"

namespace mmx::cpu::MMX_CPU_ISA {

namespace {

template <class T, class W>
void norm_row(T* out, const T* x, const W* weight, int64_t n, float eps, bool gemma) {
    const float inv_rms = 1.0f / std::sqrt(sum_of_squares(x, n) / static_cast<float>(n) + eps);
    const float shift = gemma ? 1.0f : 0.0f;
    for (int64_t i = 0; i < n; ++i)
        out[i] = from_float<T>(to_float(x[i]) * inv_rms * (to_float(weight[i]) + shift));
}

}  // namespace

void rms_norm(const RmsNormParams& p, Stream) {
    dispatch_float(p.dtype, [&](auto t) {
        dispatch_float(p.weight_dtype, [&](auto w) {
            using T = decltype(t);
            using W = decltype(w);
            parallel_for(
                p.num_tokens * p.num_heads, ceil_div(4096, p.hidden), [&](int64_t begin, int64_t end) {
                    for (int64_t row = begin; row < end; ++row) {
                        const int64_t token = row / p.num_heads, head = row % p.num_heads;
                        norm_row(
                            static_cast<T*>(p.out) + token * p.out_token_stride + head * p.out_head_stride,
                            static_cast<const T*>(p.x) + token * p.x_token_stride + head * p.x_head_stride,
                            static_cast<const W*>(p.weight), p.hidden, p.eps, p.gemma);
                    }
                });
        });
    });
}

void add_rms_norm(const AddRmsNormParams& p, Stream) {
    dispatch_float(p.dtype, [&](auto t) {
        dispatch_float(p.weight_dtype, [&](auto w) {
            using T = decltype(t);
            using W = decltype(w);
            parallel_for(p.num_tokens, ceil_div(4096, p.hidden), [&](int64_t begin, int64_t end) {
                for (int64_t row = begin; row < end; ++row) {
                    T* residual = static_cast<T*>(p.residual) + row * p.residual_stride;
                    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
                    for (int64_t i = 0; i < p.hidden; ++i)
                        residual[i] = from_float<T>(to_float(residual[i]) + to_float(x[i]));
                    norm_row(static_cast<T*>(p.out) + row * p.out_stride, residual,
                             static_cast<const W*>(p.weight), p.hidden, p.eps, p.gemma);
                }
            });
        });
    });
}

void add_rms_norm_quantize(const AddRmsNormQuantizeParams& p, Stream stream) {
    add_rms_norm(p.norm, stream);
    fp8_quantize({.out = p.codes,
                  .scale = p.scale,
                  .x = p.norm.out,
                  .rows = p.norm.num_tokens,
                  .cols = p.norm.hidden,
                  .x_stride = p.norm.out_stride,
                  .dtype = p.norm.dtype},
                 stream);
}

void combine_add_rms_norm(const CombineAddRmsNormParams& p, Stream stream) {
    moe_combine(p.combine, stream);
    if (p.codes)
        add_rms_norm_quantize({.norm = p.norm, .codes = p.codes, .scale = p.scale}, stream);
    else
        add_rms_norm(p.norm, stream);
}

}  // namespace mmx::cpu::MMX_CPU_ISA
