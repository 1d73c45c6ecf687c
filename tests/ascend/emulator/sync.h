#pragma once

#include "tests/ascend/emulator/pipe.h"

namespace emu {

inline void block_until(std::function<bool()> ready, std::string what) {
    core->blocked_on = std::move(what);
    core->blocked_until = std::move(ready);
    while (!core->blocked_until()) machine->yield();
    core->blocked_until = nullptr;
}

/// Cores whose Set of a flag with `mode` the core waits for.
inline std::vector<int> sources(const Core& to, int mode) {
    std::vector<int> found;
    for (const auto& from : machine->cores) {
        const bool same_kind = from->is_aic == to.is_aic, same_core = from->block == to.block;
        if (mode == 0 ? same_kind : mode == 1 ? same_core && !from->is_aic : same_core && !same_kind)
            found.push_back(from->index);
    }
    return found;
}

inline void require_cross_core(const At& at) {
    require(machine->kind == Kind::kMix12 || machine->kind == Kind::kMixAiv, 13, at,
            "cross-core sync in a kernel that runs without the scheduling module hangs");
}

}  // namespace emu

namespace AscendC {

inline int64_t GetBlockIdx() {
    const emu::Core& c = *emu::core;
    return emu::machine->kind == emu::Kind::kMix12 && !c.is_aic ? 2 * c.block + c.sub : c.block;
}
inline int64_t GetBlockNum() { return emu::machine->num_blocks; }
inline int64_t GetSubBlockIdx() { return emu::core->sub; }
inline int64_t GetTaskRation() { return emu::machine->kind == emu::Kind::kMix12 ? 2 : 1; }
inline bool on_aic_core() { return emu::core->is_aic; }

template <HardEvent event>
void SetFlag(int32_t id, emu::At at = emu::At::current()) {
    constexpr emu::tables::EventPipes pipes = emu::tables::event_pipes(event);
    static_assert(pipes.on_aic || pipes.on_aiv, "no core has this event");
    emu::require(emu::core->is_aic ? pipes.on_aic : pipes.on_aiv, 12, at,
                 "SetFlag: this core has no such event");
    emu::require(id >= 0 && id <= 5, 12, at, "SetFlag: id ", id, " must be 0 to 5");
    if (emu::deleted(at, "SetFlag") || emu::pair_deleted(at, "flag", static_cast<int>(event), id)) return;
    const auto [it, fresh] = emu::core->flags.try_emplace({static_cast<int>(event), id},
                                                          emu::snapshot(*emu::core, pipes.from, at));
    emu::require(fresh, 12, at, "SetFlag: id ", id, " is already set, at ", emu::place(it->second.at));
    emu::core->time[PIPE_S] += emu::Chip::kIssue;
}

template <HardEvent event>
void WaitFlag(int32_t id, emu::At at = emu::At::current()) {
    constexpr emu::tables::EventPipes pipes = emu::tables::event_pipes(event);
    static_assert(pipes.on_aic || pipes.on_aiv, "no core has this event");
    emu::require(emu::core->is_aic ? pipes.on_aic : pipes.on_aiv, 12, at,
                 "WaitFlag: this core has no such event");
    if (emu::deleted(at, "WaitFlag") || emu::pair_deleted(at, "flag", static_cast<int>(event), id)) return;
    const auto it = emu::core->flags.find({static_cast<int>(event), id});
    emu::require(it != emu::core->flags.end(), 12, at, "WaitFlag: id ", id, " was not set");
    emu::receive(*emu::core, pipes.to, it->second);
    emu::core->flags.erase(it);
    emu::core->time[PIPE_S] += emu::Chip::kIssue;
}

template <pipe_t pipe>
void PipeBarrier(emu::At at = emu::At::current()) {
    if (emu::deleted(at, "PipeBarrier")) return;
    emu::Core& c = *emu::core;
    c.time[PIPE_S] += emu::Chip::kIssue;
    if constexpr (pipe == PIPE_ALL) {
        emu::receive_all(c, emu::snapshot_all(c, at));
    } else {
        c.know[pipe][emu::actor(c, pipe)] = c.count[pipe];
    }
}

template <uint8_t mode, pipe_t pipe>
void CrossCoreSetFlag(uint16_t id, emu::At at = emu::At::current()) {
    emu::require_cross_core(at);
    emu::require(pipe != PIPE_ALL && pipe != PIPE_S, 13, at,
                 "CrossCoreSetFlag: the pipe must be a concrete one");
    emu::require(id < 16, 13, at, "CrossCoreSetFlag: id ", id, " must be below 16");
    if (id >= 11 && id <= 14) emu::machine->high_ids_used = true;
    if (emu::deleted(at, "CrossCoreSetFlag") || emu::pair_deleted(at, "cross", 0, id)) return;
    const emu::Signal signal = emu::snapshot(*emu::core, pipe, at);
    for (auto& to : emu::machine->cores) {
        const std::vector<int> from = emu::sources(*to, mode);
        if (!std::count(from.begin(), from.end(), emu::core->index)) continue;
        to->cross_mode[id] = mode;
        auto& pending = to->cross[{id, emu::core->index}];
        pending.push_back(signal);
        emu::require(pending.size() <= 15, 13, at, "CrossCoreSetFlag: id ", id,
                     " is set more than 15 times ahead");
    }
    emu::core->time[PIPE_S] += emu::Chip::kIssue;
    if (emu::machine->yield_often) emu::machine->yield();
}

inline void CrossCoreWaitFlag(uint16_t id, emu::At at = emu::At::current()) {
    emu::require_cross_core(at);
    emu::require(id < 16, 13, at, "CrossCoreWaitFlag: id ", id, " must be below 16");
    if (emu::deleted(at, "CrossCoreWaitFlag")) return;
    if (emu::pair_deleted(at, "cross", 0, id)) return;
    emu::Core& c = *emu::core;
    auto ready = [&c, id] {
        const auto mode = c.cross_mode.find(id);
        if (mode == c.cross_mode.end()) return false;
        for (const int from : emu::sources(c, mode->second))
            if (c.cross[{id, from}].empty()) return false;
        return true;
    };
    emu::block_until(ready, "flag " + std::to_string(id) + " at " + emu::place(at));
    for (const int from : emu::sources(c, c.cross_mode[id])) {
        auto& pending = c.cross[{id, from}];
        emu::receive_all(c, pending.front());
        pending.erase(pending.begin());
    }
    c.fresh_lines.clear();
}

template <bool isAIVOnly = true>
void SyncAll(emu::At at = emu::At::current()) {
    emu::require_cross_core(at);
    emu::Machine& m = *emu::machine;
    emu::require(!isAIVOnly || m.kind != emu::Kind::kMix12, 14, at,
                 "SyncAll of the vector cores only in a MIX kernel; write SyncAll<false>()");
    if (emu::deleted(at, "SyncAll")) return;
    m.sync_used = true;
    if (m.sync_arrived == 0) m.sync_signal = {emu::Clock(m.actors()), 0, at};
    const emu::Signal mine = emu::snapshot_all(*emu::core, at);
    emu::join(m.sync_signal.clock, mine.clock);
    m.sync_signal.time = std::max(m.sync_signal.time, mine.time);
    const int generation = m.sync_generation;
    if (++m.sync_arrived == static_cast<int>(m.cores.size())) {
        m.sync_arrived = 0;
        ++m.sync_generation;
        // Why receive here: a core may arrive at the next SyncAll before the others have left this one.
        for (auto& c : m.cores) emu::receive_all(*c, m.sync_signal);
    }
    emu::block_until([&m, generation] { return m.sync_generation != generation; },
                     "SyncAll at " + emu::place(at));
    emu::core->fresh_lines.clear();
}

}  // namespace AscendC

#define ASCEND_IS_AIC (::AscendC::on_aic_core())
#define ASCEND_IS_AIV (!::AscendC::on_aic_core())
