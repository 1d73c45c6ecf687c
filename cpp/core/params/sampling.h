#pragma once

#include <cstdint>

#include "cpp/core/dtype.h"

namespace mmx {

/// In place on fp32 logits, in this order: repetition penalty r on ids that occur in the prompt or output
/// (l > 0 ? l / r : l * r), then -= frequency * count and -= presence * (count > 0) over output ids, then
/// += bias. history is the prompt followed by the output of each row; a row without penalties has none.
struct AdjustLogitsParams {
    float* logits;              // [num_rows, vocab]
    const int32_t* history;     // [cu_history[num_rows]]
    const int32_t* cu_history;  // [num_rows + 1]
    const int32_t* num_prompt;  // [num_rows] length of the prompt part of the row's history
    const float* repetition;    // [num_rows]
    const float* frequency;     // [num_rows]
    const float* presence;      // [num_rows]
    const int32_t* bias_ids;    // [cu_bias[num_rows]] distinct within a row
    const float* bias_values;   // [cu_bias[num_rows]]; -infinity bans the id
    const int32_t* cu_bias;     // [num_rows + 1]
    void* workspace;            // [workspace_bytes] scratch, or null when workspace_bytes is 0
    int64_t workspace_bytes;
    int64_t num_rows, vocab;
    int64_t logits_stride;
};

/// Draws one id per row. temperature < 1e-5: argmax (ties: lowest id). Otherwise p = softmax(l /
/// temperature); keep p >= min_p * max p, then the top_k most probable (0 or -1: all), then the smallest set
/// of the most probable, at least one, whose mass within what is kept reaches top_p; order is by (logit
/// descending, id ascending). The draw is the first id, ascending, at which the running mass exceeds u of the
/// kept mass; u = uniform(seed, step) in [0, 1), see sampling_uniform. Masses are exact to 1e-8 of the whole
/// or better: a draw is the same on every device unless u lies that close to the border between two ids. A
/// row whose largest logit is not finite or that holds NaN gives -1.
struct SampleParams {
    int64_t* token_ids;        // [num_rows]
    const float* logits;       // [num_rows, vocab]
    const float* temperature;  // [num_rows]
    const int32_t* top_k;      // [num_rows]
    const float* top_p;        // [num_rows]
    const float* min_p;        // [num_rows]
    const int64_t* seeds;      // [num_rows]
    const int64_t* steps;      // [num_rows] number of the draw within its sequence
    void* workspace;           // [workspace_bytes] scratch, or null when workspace_bytes is 0
    int64_t workspace_bytes;
    int64_t num_rows, vocab;
    int64_t logits_stride;
};

/// log-softmax of each row: value and 1-based rank of token_ids (number of larger logits + 1), and the
/// num_top best by (logit descending, id ascending). A token id outside the vocabulary has logprob NaN and
/// rank 0; so have all of a row whose largest logit is not finite or that holds NaN, with top_ids -1.
struct LogprobsParams {
    float* logprobs;           // [num_rows]
    int64_t* ranks;            // [num_rows]
    int64_t* top_ids;          // [num_rows, num_top]
    float* top_logprobs;       // [num_rows, num_top]
    const float* logits;       // [num_rows, vocab]
    const int64_t* token_ids;  // [num_rows]
    void* workspace;           // [workspace_bytes] scratch, or null when workspace_bytes is 0
    int64_t workspace_bytes;
    int64_t num_rows, vocab, num_top;
    int64_t logits_stride;
};

/// splitmix64 of a mix of seed and step, top 24 bits as a float in [0, 1): the same number on every device.
constexpr float sampling_uniform(int64_t seed, int64_t step) {
    uint64_t z = static_cast<uint64_t>(seed) + 0x9E3779B97F4A7C15ull * (static_cast<uint64_t>(step) + 1);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return static_cast<float>(z >> 40) * (1.0f / 16777216.0f);
}

}  // namespace mmx
