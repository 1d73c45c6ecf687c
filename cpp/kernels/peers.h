#pragma once

#include <atomic>
#include <chrono>
#include <thread>

#include "cpp/kernels/common.h"

/// Rows sent to and received from the other ranks of this host (`Peers`), word by word.
namespace mmx::cpu::MMX_CPU_ISA {

/// Sends `num_words` words of `row` to all other ranks as row `token` of exchange `epoch`.
static inline void send_row(const Peers& peers, uint32_t epoch, int64_t token, const void* row,
                            int64_t num_words) {
    const int64_t begin = peers.row(epoch, peers.rank, token);
    for (int64_t r = 0; r < peers.num_ranks; ++r) {
        if (r == peers.rank) continue;
        for (int64_t i = 0; i < num_words; ++i) {
            uint32_t data;
            std::memcpy(&data, static_cast<const char*>(row) + 4 * i, 4);
            std::atomic_ref<uint64_t>(peers.inboxes[r][begin + i])
                .store(uint64_t{epoch} << 32 | data, std::memory_order_relaxed);
        }
    }
}

/// Receives row `token` of exchange `epoch` from rank `sender` into `row`, waiting for it.
static inline void receive_row(const char* op, const Peers& peers, uint32_t epoch, int64_t sender,
                               int64_t token, void* row, int64_t num_words) {
    uint64_t* const words = peers.inboxes[peers.rank] + peers.row(epoch, sender, token);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(peers.timeout_ns);
    for (int64_t i = 0; i < num_words; ++i) {
        uint64_t word = 0;
        while (word = std::atomic_ref<uint64_t>(words[i]).load(std::memory_order_relaxed),
               static_cast<uint32_t>(word >> 32) != epoch) {
            MMX_CHECK(std::chrono::steady_clock::now() < deadline, op, ": rank ", sender,
                      " sent nothing for ", static_cast<double>(peers.timeout_ns) / 1e9, " s");
            std::this_thread::yield();
        }
        const uint32_t data = static_cast<uint32_t>(word);
        std::memcpy(static_cast<char*>(row) + 4 * i, &data, 4);
    }
}

/// Number of the exchange that row `token` begins now.
static inline uint32_t begin_exchange(const Peers& peers, int64_t token) {
    const uint32_t epoch = Peers::next(static_cast<uint32_t>(peers.epochs[token]));
    peers.epochs[token] = static_cast<int32_t>(epoch);
    return epoch;
}

}  // namespace mmx::cpu::MMX_CPU_ISA
