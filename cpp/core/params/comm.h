#pragma once

#include <cstdint>

#include "cpp/core/params/norm.h"

namespace mmx {

/// Memory in which the ranks of one host leave rows for each other. The inbox of a rank is an array of 64-bit
/// words [2, num_ranks, max_tokens, row_words]; what rank `s` sends of row `t` in that row's exchange number
/// `e` lies at [e % 2, s, t], each word 32 bits of data and above them the 32 bits of `e`. A word is written
/// and read at once, so that a receiver polls the data itself and no fence is needed; and who sends exchange
/// e + 2 has received exchange e + 1 from a rank that had then read all of e, so that nothing is overwritten
/// before it was read. In an exchange of two hops every rank sends `r` the slice of a row that `r` sums, then
/// `r` sends the sums to all as that slice of its own row. All ranks make the same exchanges in one order.
struct Peers {
    static constexpr int64_t kMaxRanks = 8;
    uint64_t* inboxes[kMaxRanks];  // of all ranks, as they are mapped here
    int32_t* epochs;               // [max_tokens], number of each row's last exchange; this rank's own
    int64_t rank, num_ranks, max_tokens, row_words;
    int64_t timeout_ns;  // a peer that sends nothing for so long is lost

    /// Number of the exchange after `epoch`; 0 is what a new inbox holds, and two that follow each other are
    /// never both even or both odd.
    static constexpr uint32_t next(uint32_t epoch) { return epoch == 0xFFFFFFFFu ? 2 : epoch + 1; }
    /// First word of a row from `sender` in the inbox of any rank.
    constexpr int64_t row(uint32_t epoch, int64_t sender, int64_t token) const {
        return ((epoch % 2 * num_ranks + sender) * max_tokens + token) * row_words;
    }
};

/// total = sum of norm.x over the ranks, in fp32 in the order of the ranks, rounded to dtype; then `norm`
/// with total as x and, with `codes`, fp8_quantize of what that gives. Every rank gets the same bits.
/// `norm.out` may be `norm.x`. One rank needs no inboxes. hidden: a multiple of 8, at most 8192, of more than
/// two ranks at least 8 for each.
struct AllReduceAddRmsNormParams {
    AddRmsNormParams norm;  // x is this rank's part
    Peers peers;            // rows of hidden * size of dtype / 4 words
    void* codes;            // [num_tokens, hidden], hidden a multiple of 128; or null
    float* scale;           // [num_tokens, hidden / 128]; or null
};

}  // namespace mmx
