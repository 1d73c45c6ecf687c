#include <vector>

#include "cpp/kernels/peers.h"

namespace mmx::cpu::MMX_CPU_ISA {

// The norm of the sum, at this instruction set level.
void add_rms_norm(const AddRmsNormParams& p, Stream stream);

void all_reduce_add_rms_norm(const AllReduceAddRmsNormParams& p, Stream stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        const Peers& peers = p.peers;
        const int64_t num_words = p.hidden * static_cast<int64_t>(sizeof(T)) / 4;
        const auto row = [&](int64_t token) { return static_cast<const T*>(p.x) + token * p.x_stride; };
        // Why first: the peers wait for these rows.
        std::vector<uint32_t> epochs(peers.num_ranks > 1 ? p.num_tokens : 0);
        for (size_t token = 0; token < epochs.size(); ++token) {
            epochs[token] = begin_exchange(peers, static_cast<int64_t>(token));
            send_row(peers, epochs[token], static_cast<int64_t>(token), row(static_cast<int64_t>(token)),
                     num_words);
        }
        std::vector<T> part(p.hidden);
        std::vector<float> total(p.hidden);
        for (int64_t token = 0; token < p.num_tokens; ++token) {
            std::fill(total.begin(), total.end(), 0.0f);
            for (int64_t r = 0; r < peers.num_ranks; ++r) {
                const T* from = row(token);
                if (peers.num_ranks > 1 && r != peers.rank) {
                    receive_row("all_reduce_add_rms_norm", peers, epochs[token], r, token, part.data(),
                                num_words);
                    from = part.data();
                }
                for (int64_t i = 0; i < p.hidden; ++i) total[i] += to_float(from[i]);
            }
            T* out = static_cast<T*>(p.out) + token * p.out_stride;
            for (int64_t i = 0; i < p.hidden; ++i) out[i] = from_float<T>(total[i]);
        }
        add_rms_norm({.out = p.out,
                      .residual = p.residual,
                      .x = p.out,
                      .weight = p.weight,
                      .num_tokens = p.num_tokens,
                      .hidden = p.hidden,
                      .out_stride = p.out_stride,
                      .residual_stride = p.residual_stride,
                      .x_stride = p.out_stride,
                      .eps = p.eps,
                      .gemma = p.gemma,
                      .dtype = p.dtype,
                      .weight_dtype = p.weight_dtype},
                     stream);
    });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
