#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "bench/common/bench.h"

namespace mmx::bench {

/// `topk` different experts for every token, all equally likely; beside_torch.py draws the same ones.
inline std::vector<int32_t> random_experts(const Case& c) {
    std::vector<int32_t> experts(static_cast<size_t>(c["num_experts"])), ids;
    std::iota(experts.begin(), experts.end(), 0);
    uint64_t state = 1;
    for (int64_t token = 0; token < c["num_tokens"]; ++token)
        for (size_t k = 0; k < static_cast<size_t>(c["topk"]); ++k) {
            state = state * 6364136223846793005ull + 1442695040888963407ull;
            std::swap(experts[k], experts[k + (state >> 33) % (experts.size() - k)]);
            ids.push_back(experts[k]);
        }
    return ids;
}

}  // namespace mmx::bench
