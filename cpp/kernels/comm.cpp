#include <vector>

#include "cpp/kernels/launchers.h"
#include "cpp/kernels/peers.h"

namespace mmx::cpu::MMX_CPU_ISA {

void all_reduce_add_rms_norm(const AllReduceAddRmsNormParams& p, Stream stream) {
    dispatch_float(p.norm.dtype, [&](auto t) {
        using T = decltype(t);
        const Peers& peers = p.peers;
        const int64_t hidden = p.norm.hidden, num_words = hidden * static_cast<int64_t>(sizeof(T)) / 4;
        const auto row = [&](int64_t token) {
            return static_cast<const T*>(p.norm.x) + token * p.norm.x_stride;
        };
        // Why first: the peers wait for these rows.
        std::vector<uint32_t> epochs(peers.num_ranks > 1 ? p.norm.num_tokens : 0);
        for (size_t token = 0; token < epochs.size(); ++token) {
            epochs[token] = begin_exchange(peers, static_cast<int64_t>(token));
            send_row(peers, epochs[token], static_cast<int64_t>(token), row(static_cast<int64_t>(token)),
                     num_words);
        }
        std::vector<T> part(hidden);
        std::vector<float> total(hidden);
        for (int64_t token = 0; token < p.norm.num_tokens; ++token) {
            std::fill(total.begin(), total.end(), 0.0f);
            for (int64_t r = 0; r < peers.num_ranks; ++r) {
                const T* from = row(token);
                if (peers.num_ranks > 1 && r != peers.rank) {
                    receive_row("all_reduce_add_rms_norm", peers, epochs[token], r, token, part.data(),
                                num_words);
                    from = part.data();
                }
                for (int64_t i = 0; i < hidden; ++i) total[i] += to_float(from[i]);
            }
            T* out = static_cast<T*>(p.norm.out) + token * p.norm.out_stride;
            for (int64_t i = 0; i < hidden; ++i) out[i] = from_float<T>(total[i]);
        }
        AddRmsNormParams norm = p.norm;
        norm.x = norm.out;
        norm.x_stride = norm.out_stride;
        if (p.codes)
            add_rms_norm_quantize({.norm = norm, .codes = p.codes, .scale = p.scale}, stream);
        else
            add_rms_norm(norm, stream);
    });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
