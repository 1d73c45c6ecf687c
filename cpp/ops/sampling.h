#pragma once

#include <tuple>
#include <utility>

#include "cpp/ops/backend.h"

namespace mmx::ops {

inline AdjustLogitsParams adjust_logits_params(Matcher& m, const Tensor& logits, const Tensor& history,
                                               const Tensor& cu_history, const Tensor& num_prompt,
                                               const Tensor& repetition, const Tensor& frequency,
                                               const Tensor& presence, const Tensor& bias_ids,
                                               const Tensor& bias_values, const Tensor& cu_bias) {
    m.shape("logits", logits, {"num_rows", "vocab"})
        .shape("history", history, {"num_history"})
        .shape("cu_history", cu_history, {m["num_rows"] + 1})
        .shape("num_prompt", num_prompt, {"num_rows"})
        .shape("repetition", repetition, {"num_rows"})
        .shape("frequency", frequency, {"num_rows"})
        .shape("presence", presence, {"num_rows"})
        .shape("bias_ids", bias_ids, {"num_bias"})
        .shape("bias_values", bias_values, {"num_bias"})
        .shape("cu_bias", cu_bias, {m["num_rows"] + 1});
    for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"logits", logits},
                                  {"repetition", repetition},
                                  {"frequency", frequency},
                                  {"presence", presence},
                                  {"bias_values", bias_values}})
        m.same_dtype(name, t, DType::kF32);
    for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"history", history},
                                  {"cu_history", cu_history},
                                  {"num_prompt", num_prompt},
                                  {"bias_ids", bias_ids},
                                  {"cu_bias", cu_bias}})
        m.same_dtype(name, t, DType::kI32);
    return {
        .logits = ptr<float>(logits),
        .history = ptr<int32_t>(history),
        .cu_history = ptr<int32_t>(cu_history),
        .num_prompt = ptr<int32_t>(num_prompt),
        .repetition = ptr<float>(repetition),
        .frequency = ptr<float>(frequency),
        .presence = ptr<float>(presence),
        .bias_ids = ptr<int32_t>(bias_ids),
        .bias_values = ptr<float>(bias_values),
        .cu_bias = ptr<int32_t>(cu_bias),
        .workspace = nullptr,
        .workspace_bytes = 0,
        .num_rows = m["num_rows"],
        .vocab = m["vocab"],
        .logits_stride = logits.stride(0),
    };
}

template <class B>
int64_t adjust_logits_workspace(const Tensor& logits, const Tensor& history, const Tensor& cu_history,
                                const Tensor& num_prompt, const Tensor& repetition, const Tensor& frequency,
                                const Tensor& presence, const Tensor& bias_ids, const Tensor& bias_values,
                                const Tensor& cu_bias) {
    Matcher m("adjust_logits");
    return B::adjust_logits_workspace(adjust_logits_params(m, logits, history, cu_history, num_prompt,
                                                           repetition, frequency, presence, bias_ids,
                                                           bias_values, cu_bias));
}

template <class B>
void adjust_logits(const Tensor& logits, const Tensor& history, const Tensor& cu_history,
                   const Tensor& num_prompt, const Tensor& repetition, const Tensor& frequency,
                   const Tensor& presence, const Tensor& bias_ids, const Tensor& bias_values,
                   const Tensor& cu_bias, const Tensor& workspace) {
    Matcher m("adjust_logits");
    AdjustLogitsParams p = adjust_logits_params(m, logits, history, cu_history, num_prompt, repetition,
                                                frequency, presence, bias_ids, bias_values, cu_bias);
    set_workspace(m, p, workspace, B::adjust_logits_workspace(p));
    if (p.num_rows == 0) return;
    B::enqueue(m.device_index(), &B::adjust_logits, p);
}

inline SampleParams sample_params(Matcher& m, const Tensor& token_ids, const Tensor& logits,
                                  const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                                  const Tensor& min_p, const Tensor& seeds, const Tensor& steps) {
    m.shape("logits", logits, {"num_rows", "vocab"});
    for (const auto& [name, t, dtype] :
         {std::tuple<const char*, const Tensor&, DType>{"token_ids", token_ids, DType::kI64},
          {"temperature", temperature, DType::kF32},
          {"top_k", top_k, DType::kI32},
          {"top_p", top_p, DType::kF32},
          {"min_p", min_p, DType::kF32},
          {"seeds", seeds, DType::kI64},
          {"steps", steps, DType::kI64}}) {
        m.shape(name, t, {"num_rows"});
        m.same_dtype(name, t, dtype);
    }
    m.same_dtype("logits", logits, DType::kF32);
    m.require(m["vocab"] >= 1, "vocab must be at least 1");
    return {
        .token_ids = ptr<int64_t>(token_ids),
        .logits = ptr<float>(logits),
        .temperature = ptr<float>(temperature),
        .top_k = ptr<int32_t>(top_k),
        .top_p = ptr<float>(top_p),
        .min_p = ptr<float>(min_p),
        .seeds = ptr<int64_t>(seeds),
        .steps = ptr<int64_t>(steps),
        .workspace = nullptr,
        .workspace_bytes = 0,
        .num_rows = m["num_rows"],
        .vocab = m["vocab"],
        .logits_stride = logits.stride(0),
    };
}

template <class B>
int64_t sample_workspace(const Tensor& token_ids, const Tensor& logits, const Tensor& temperature,
                         const Tensor& top_k, const Tensor& top_p, const Tensor& min_p, const Tensor& seeds,
                         const Tensor& steps) {
    Matcher m("sample");
    return B::sample_workspace(
        sample_params(m, token_ids, logits, temperature, top_k, top_p, min_p, seeds, steps));
}

template <class B>
void sample(const Tensor& token_ids, const Tensor& logits, const Tensor& temperature, const Tensor& top_k,
            const Tensor& top_p, const Tensor& min_p, const Tensor& seeds, const Tensor& steps,
            const Tensor& workspace) {
    Matcher m("sample");
    SampleParams p = sample_params(m, token_ids, logits, temperature, top_k, top_p, min_p, seeds, steps);
    set_workspace(m, p, workspace, B::sample_workspace(p));
    if (p.num_rows == 0) return;
    B::enqueue(m.device_index(), &B::sample, p);
}

inline LogprobsParams logprobs_params(Matcher& m, const Tensor& logprobs, const Tensor& ranks,
                                      const Tensor& top_ids, const Tensor& top_logprobs, const Tensor& logits,
                                      const Tensor& token_ids) {
    m.shape("logits", logits, {"num_rows", "vocab"})
        .shape("token_ids", token_ids, {"num_rows"})
        .shape("logprobs", logprobs, {"num_rows"})
        .shape("ranks", ranks, {"num_rows"})
        .shape("top_ids", top_ids, {"num_rows", "num_top"}, 2)
        .shape("top_logprobs", top_logprobs, {"num_rows", "num_top"}, 2);
    for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"logits", logits},
                                  {"logprobs", logprobs},
                                  {"top_logprobs", top_logprobs}})
        m.same_dtype(name, t, DType::kF32);
    for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"token_ids", token_ids},
                                  {"ranks", ranks},
                                  {"top_ids", top_ids}})
        m.same_dtype(name, t, DType::kI64);
    m.require(m["num_top"] <= m["vocab"], "num_top must be at most vocab=", m["vocab"], ", got ",
              m["num_top"]);
    return {
        .logprobs = ptr<float>(logprobs),
        .ranks = ptr<int64_t>(ranks),
        .top_ids = ptr<int64_t>(top_ids),
        .top_logprobs = ptr<float>(top_logprobs),
        .logits = ptr<float>(logits),
        .token_ids = ptr<int64_t>(token_ids),
        .workspace = nullptr,
        .workspace_bytes = 0,
        .num_rows = m["num_rows"],
        .vocab = m["vocab"],
        .num_top = m["num_top"],
        .logits_stride = logits.stride(0),
    };
}

template <class B>
int64_t logprobs_workspace(const Tensor& logprobs, const Tensor& ranks, const Tensor& top_ids,
                           const Tensor& top_logprobs, const Tensor& logits, const Tensor& token_ids) {
    Matcher m("logprobs");
    return B::logprobs_workspace(
        logprobs_params(m, logprobs, ranks, top_ids, top_logprobs, logits, token_ids));
}

template <class B>
void logprobs(const Tensor& logprobs, const Tensor& ranks, const Tensor& top_ids, const Tensor& top_logprobs,
              const Tensor& logits, const Tensor& token_ids, const Tensor& workspace) {
    Matcher m("logprobs");
    LogprobsParams p = logprobs_params(m, logprobs, ranks, top_ids, top_logprobs, logits, token_ids);
    set_workspace(m, p, workspace, B::logprobs_workspace(p));
    if (p.num_rows == 0) return;
    B::enqueue(m.device_index(), &B::logprobs, p);
}

}  // namespace mmx::ops
