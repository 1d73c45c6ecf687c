#pragma once

#include <vector>

#include "cpp/core/params/comm.h"
#include "cpp/ops/backend.h"

namespace mmx::ops {

/// Checks and collects the inboxes of all ranks (none for the only one) for rows of `num_words` words.
inline Peers to_peers(Matcher& m, const std::vector<Tensor>& inboxes, const OptionalTensor& epochs,
                      int64_t rank, double timeout, int64_t num_tokens, int64_t num_words) {
    const int64_t num_ranks = static_cast<int64_t>(inboxes.size());
    m.require(num_ranks != 1 && num_ranks <= Peers::kMaxRanks && epochs.has_value() == (num_ranks > 0),
              "inboxes must be none, or with epochs those of 2 to ", Peers::kMaxRanks, " ranks, got ",
              num_ranks);
    Peers peers{};
    peers.num_ranks = 1;
    if (num_ranks == 0) return peers;
    m.require(rank >= 0 && rank < num_ranks, "rank must be in [0, ", num_ranks, "), got ", rank);
    m.require(timeout > 0, "timeout must be positive, got ", timeout);
    for (int64_t i = 0; i < num_ranks; ++i) {
        m.shape("inboxes", inboxes[i], {2, num_ranks, "max_tokens", "row_words"}, 4);
        m.same_dtype("inboxes", inboxes[i], DType::kI64);
        peers.inboxes[i] = ptr<uint64_t>(inboxes[i]);
    }
    m.shape("epochs", *epochs, {"max_tokens"});
    m.same_dtype("epochs", *epochs, DType::kI32);
    m.require(num_tokens <= m["max_tokens"], "inboxes have ", m["max_tokens"], " rows, got ", num_tokens,
              " tokens");
    m.require(num_words <= m["row_words"] && m["row_words"] % 2 == 0,
              "rows of inboxes must be an even number of words, at least ", num_words, ", got ",
              m["row_words"]);
    peers.epochs = ptr<int32_t>(*epochs);
    peers.rank = rank;
    peers.num_ranks = num_ranks;
    peers.max_tokens = m["max_tokens"];
    peers.row_words = m["row_words"];
    peers.timeout_ns = static_cast<int64_t>(timeout * 1e9);
    return peers;
}

}  // namespace mmx::ops
