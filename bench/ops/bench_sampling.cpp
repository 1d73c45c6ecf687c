#include <algorithm>
#include <vector>

#include "bench/common/bench.h"

using namespace mmx;

namespace {

template <class T>
bench::Buffer constant(bench::Bench& b, int64_t count, T value) {
    return b.upload(std::vector<T>(static_cast<size_t>(count), value));
}

std::vector<int64_t> numbers(int64_t count) {
    std::vector<int64_t> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int64_t>(i);
    return values;
}

template <class P>
bench::Buffer attach_workspace(bench::Bench& b, P& p, int64_t (*size)(const P&)) {
    p.workspace_bytes = size ? size(p) : 0;
    bench::Buffer workspace = b.empty(DType::kI8, std::max<int64_t>(1, p.workspace_bytes));
    p.workspace = p.workspace_bytes ? workspace.as() : nullptr;
    return workspace;
}

}  // namespace

MMX_BENCH(adjust_logits) {
    for (const bench::Case& c : b.cases("sampling", "adjust_logits")) {
        const int64_t num_rows = c["num_rows"], vocab = c["vocab"];
        const auto per_row = [&](int64_t total) {
            std::vector<int32_t> bounds;
            for (int64_t row = 0; row <= num_rows; ++row)
                bounds.push_back(static_cast<int32_t>(total * row / num_rows));
            return bounds;
        };
        const auto spread = [&](int64_t count) {
            std::vector<int32_t> ids;
            for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(i * 2654435761 % vocab));
            return ids;
        };
        const bench::Buffer logits = b.randn(DType::kF32, num_rows * vocab);
        const bench::Buffer history = b.upload(spread(c["num_history"])),
                            bias_ids = b.upload(spread(c["num_bias"]));
        const bench::Buffer cu_history = b.upload(per_row(c["num_history"]));
        const bench::Buffer cu_bias = b.upload(per_row(c["num_bias"]));
        const bench::Buffer num_prompt = constant<int32_t>(b, num_rows, 8);
        const bench::Buffer one = constant(b, num_rows, 1.0f), tiny = constant(b, num_rows, 1e-6f);
        const bench::Buffer bias_values = constant(b, std::max<int64_t>(1, c["num_bias"]), 1e-6f);
        AdjustLogitsParams p{.logits = logits.as<float>(),
                             .history = history.as<int32_t>(),
                             .cu_history = cu_history.as<int32_t>(),
                             .num_prompt = num_prompt.as<int32_t>(),
                             .repetition = one.as<float>(),
                             .frequency = tiny.as<float>(),
                             .presence = tiny.as<float>(),
                             .bias_ids = bias_ids.as<int32_t>(),
                             .bias_values = bias_values.as<float>(),
                             .cu_bias = cu_bias.as<int32_t>(),
                             .workspace = nullptr,
                             .workspace_bytes = 0,
                             .num_rows = num_rows,
                             .vocab = vocab,
                             .logits_stride = vocab};
        const bench::Buffer workspace = attach_workspace(b, p, b.ops().adjust_logits_workspace);
        // Each entry of the history reads its id and updates one logit.
        b.run("adjust_logits", c, DType::kF32, {.bytes = 12.0 * static_cast<double>(c["num_history"])},
              b.ops().adjust_logits, p);
    }
}

MMX_BENCH(sample) {
    struct Setting {
        float temperature, top_p, min_p;
        int32_t top_k;
    };
    constexpr Setting kSettings[] = {
        {0, 1, 0, 0}, {1, 1, 0, 0}, {1, 0.95f, 0, 40}, {1, 0.95f, 0, 0}, {1, 1, 0.05f, 0}};
    for (const bench::Case& row : b.cases("sampling", "sample"))
        for (const Setting& setting : kSettings) {
            bench::Case c = row;
            c.dims["greedy"] = setting.temperature == 0;
            c.dims["top_k"] = setting.top_k;
            c.dims["top_p_percent"] = static_cast<int64_t>(100 * setting.top_p + 0.5f);
            c.dims["min_p_percent"] = static_cast<int64_t>(100 * setting.min_p + 0.5f);
            const int64_t num_rows = c["num_rows"], vocab = c["vocab"];
            // Deviation 3 is about as peaked as a language model's logits.
            const bench::Buffer logits = b.randn(DType::kF32, num_rows * vocab, 3.0f);
            const bench::Buffer temperature = constant(b, num_rows, setting.temperature);
            const bench::Buffer top_k = constant(b, num_rows, setting.top_k);
            const bench::Buffer top_p = constant(b, num_rows, setting.top_p);
            const bench::Buffer min_p = constant(b, num_rows, setting.min_p);
            const bench::Buffer seeds = b.upload(numbers(num_rows)),
                                steps = constant<int64_t>(b, num_rows, 0);
            const bench::Buffer token_ids = b.empty(DType::kI64, num_rows),
                                copied = b.empty(DType::kF32, num_rows * vocab);
            SampleParams p{.token_ids = token_ids.as<int64_t>(),
                           .logits = logits.as<float>(),
                           .temperature = temperature.as<float>(),
                           .top_k = top_k.as<int32_t>(),
                           .top_p = top_p.as<float>(),
                           .min_p = min_p.as<float>(),
                           .seeds = seeds.as<int64_t>(),
                           .steps = steps.as<int64_t>(),
                           .workspace = nullptr,
                           .workspace_bytes = 0,
                           .num_rows = num_rows,
                           .vocab = vocab,
                           .logits_stride = vocab};
            const bench::Buffer workspace = attach_workspace(b, p, b.ops().sample_workspace);
            b.run("sample", c, DType::kF32,
                  {.bytes = static_cast<double>(logits.bytes()),
                   .out = &token_ids,
                   .baseline = "copy of logits",
                   .baseline_run = [&] { b.backend().copy(copied.as(), logits.as(), logits.bytes()); }},
                  b.ops().sample, p);
        }
}

MMX_BENCH(logprobs) {
    for (const bench::Case& c : b.cases("sampling", "logprobs")) {
        const int64_t num_rows = c["num_rows"], vocab = c["vocab"], num_top = c["num_top"];
        const bench::Buffer logits = b.randn(DType::kF32, num_rows * vocab, 3.0f);
        const bench::Buffer ids = b.upload(numbers(num_rows)), values = b.empty(DType::kF32, num_rows);
        const bench::Buffer ranks = b.empty(DType::kI64, num_rows),
                            copied = b.empty(DType::kF32, num_rows * vocab);
        const bench::Buffer top_ids = b.empty(DType::kI64, num_rows * num_top);
        const bench::Buffer top_values = b.empty(DType::kF32, num_rows * num_top);
        LogprobsParams p{.logprobs = values.as<float>(),
                         .ranks = ranks.as<int64_t>(),
                         .top_ids = top_ids.as<int64_t>(),
                         .top_logprobs = top_values.as<float>(),
                         .logits = logits.as<float>(),
                         .token_ids = ids.as<int64_t>(),
                         .workspace = nullptr,
                         .workspace_bytes = 0,
                         .num_rows = num_rows,
                         .vocab = vocab,
                         .num_top = num_top,
                         .logits_stride = vocab};
        const bench::Buffer workspace = attach_workspace(b, p, b.ops().logprobs_workspace);
        b.run("logprobs", c, DType::kF32,
              {.bytes = static_cast<double>(logits.bytes()),
               .out = &top_ids,
               .baseline = "copy of logits",
               .baseline_run = [&] { b.backend().copy(copied.as(), logits.as(), logits.bytes()); }},
              b.ops().logprobs, p);
    }
}
