#include "bench/common/bench.h"

using namespace mmx;

/// A rank whose inbox gets back what it sends: one device, the whole protocol, no link between devices. The
/// word that it sends as rank 0 lies where rank 1's would.
static Peers mirror(const bench::Buffer& memory, const bench::Buffer& epochs, int64_t num_tokens,
                    int64_t row_words) {
    Peers peers{};
    peers.inboxes[0] = memory.as<uint64_t>();
    peers.inboxes[1] = memory.as<uint64_t>() + num_tokens * row_words;
    peers.epochs = epochs.as<int32_t>();
    peers.num_ranks = 2;
    peers.max_tokens = num_tokens;
    peers.row_words = row_words;
    peers.timeout_ns = 10'000'000'000;
    return peers;
}

MMX_BENCH(all_reduce_add_rms_norm) {
    for (const bench::Case& c : b.cases("comm", "all_reduce_add_rms_norm")) {
        const DType dtype = DType::kBF16;
        const int64_t num_tokens = c["num_tokens"], hidden = c["hidden"], count = num_tokens * hidden;
        const int64_t row_words = hidden / 2;
        const bench::Buffer x = b.randn(dtype, count, 1e-3f), weight = b.randn(dtype, hidden);
        const bench::Buffer residual = b.randn(dtype, count), out = b.empty(dtype, count);
        const auto words = static_cast<size_t>(num_tokens * row_words);
        const bench::Buffer memory = b.upload(std::vector<int64_t>(5 * words));
        const bench::Buffer epochs = b.upload(std::vector<int32_t>(static_cast<size_t>(num_tokens)));
        const AllReduceAddRmsNormParams p{.norm = {.out = out.as(),
                                                   .residual = residual.as(),
                                                   .x = x.as(),
                                                   .weight = weight.as(),
                                                   .num_tokens = num_tokens,
                                                   .hidden = hidden,
                                                   .out_stride = hidden,
                                                   .residual_stride = hidden,
                                                   .x_stride = hidden,
                                                   .eps = 1e-6f,
                                                   .gemma = true,
                                                   .dtype = dtype,
                                                   .weight_dtype = dtype},
                                          .peers = mirror(memory, epochs, num_tokens, row_words),
                                          .codes = nullptr,
                                          .scale = nullptr};
        b.run("all_reduce_add_rms_norm", c, dtype,
              {.bytes = 12.0 * static_cast<double>(x.bytes()),
               .baseline = "copy of x",
               .baseline_run = [&] { b.backend().copy(out.as(), x.as(), x.bytes()); }},
              b.ops().all_reduce_add_rms_norm, p);
    }
}
