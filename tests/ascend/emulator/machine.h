#pragma once

#include <functional>
#include <memory>
#include <random>
#include <set>

#include "tests/ascend/emulator/memory.h"

/// Cores with their pipes and clocks, global memory, mutation sites and statistics of one launch.
namespace emu {

/// How much of every pipe of every core is known to be complete.
using Clock = std::vector<uint32_t>;

inline void join(Clock& into, const Clock& from) {
    for (size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], from[i]);
}

struct Signal {
    Clock clock;
    double time = 0;
    At at{};
};

/// A buffer of TPipe and, for queues, where it stands: 0 free, 1 taken, 2 queued, 3 taken out. -1: a TBuf.
struct BufferState {
    size_t offset = 0, bytes = 0;
    int state = -1;
    Signal released{}, filled{};
};

struct PipeStats {
    double busy = 0;
    uint64_t instructions = 0, repeats = 0;
};

struct Core {
    int index = 0, block = 0, sub = 0;
    bool is_aic = false;
    LocalMemory ub{"UB", Chip::kUb, 32}, l1{"L1", Chip::kL1, 32}, l0a{"L0A", Chip::kL0, 512},
        l0b{"L0B", Chip::kL0, 512}, l0c{"L0C", Chip::kL0c, 1024}, bt{"BT", Chip::kBt, 64};
    uint32_t count[kNumPipes] = {};
    Clock know[kNumPipes];
    uint64_t scalar_version = 1, joined_version[kNumPipes] = {};
    double time[kNumPipes] = {};
    PipeStats stats[kNumPipes];
    double gm_read_bytes = 0, hbm_read_bytes = 0, gm_write_bytes = 0;
    std::map<std::pair<int, int>, Signal> flags;               // (event, id) -> who set it
    std::map<std::pair<int, int>, std::vector<Signal>> cross;  // (id, source core) -> not yet waited for
    std::map<int, int> cross_mode;                             // id -> mode of its Sets
    std::map<const LocalMemory*, size_t> top;                  // bytes that TPipe has given out
    std::map<int, int> queue_buffers;                          // TPosition -> buffers of queues
    std::vector<std::unique_ptr<BufferState>> buffers;
    std::unordered_set<uintptr_t> fresh_lines;  // cache lines invalidated by this core
    uint64_t mask_lo = ~0ull, mask_hi = ~0ull;
    bool counter_mode = false, atomic = false, done = false;
    int pipes_alive = 0;
    std::function<bool()> blocked_until;
    std::string blocked_on;
};

enum class Kind { kAivOnly, kMixAiv, kAicOnly, kMix12 };

/// A run-time mutation: a call that is ignored, a flag pair that is ignored, or a stride that is changed.
struct Mutants {
    std::set<std::string> sites;  // all that this run could mutate
    std::string active;

    bool hits(const std::string& site) {
        sites.insert(site);
        return site == active;
    }
};

struct Machine {
    Chip chip;
    Kind kind = Kind::kAivOnly;
    int num_blocks = 0;
    bool dry = false, yield_often = false, lines_counted = false;
    std::vector<std::unique_ptr<Core>> cores;
    std::vector<GmBuffer> gm;
    std::vector<At> sites;
    std::unordered_map<std::string, uint32_t> site_ids;
    std::mt19937 rng;
    Mutants mutants;
    uint64_t warnings = 0, unaligned_copies = 0, bank_conflicts = 0;
    int sync_arrived = 0, sync_generation = 0;
    Signal sync_signal{};
    bool sync_used = false, sync_aiv_only = false, high_ids_used = false;
    double hbm_write_bytes = 0;
    std::function<void()> yield;

    uint32_t site(const At& at) {
        // Why the pointer: file names are literals, so address, line and column name the place.
        char key[48];
        std::snprintf(key, sizeof key, "%p:%u:%u", static_cast<const void*>(at.file_name()), at.line(),
                      at.column());
        auto [it, added] = site_ids.try_emplace(key, static_cast<uint32_t>(sites.size()));
        if (added) sites.push_back(at);
        return it->second;
    }
    GmBuffer& find(const void* pointer, size_t bytes, const At& at) {
        const auto address = reinterpret_cast<uintptr_t>(pointer);
        for (GmBuffer& b : gm)
            if (address >= b.base && address < b.base + b.bytes) {
                require(address + bytes <= b.base + b.bytes, 6, at, "access of ", bytes, " bytes at byte ",
                        address - b.base, " of ", b.name, " [", b.bytes, " bytes]");
                return b;
            }
        fail(6, at, "address ", pointer, " lies in no tensor of this launch");
    }
    int actors() const { return static_cast<int>(cores.size()) * kNumPipes; }
};

inline thread_local Machine* machine = nullptr;
inline thread_local Core* core = nullptr;

inline int actor(const Core& c, int pipe) { return c.index * kNumPipes + pipe; }
inline std::string core_name(const Core& c) {
    return (c.is_aic ? "AIC " : "AIV ") + std::to_string(c.block) +
           (c.is_aic || machine->kind != Kind::kMix12 ? "" : "." + std::to_string(c.sub));
}

inline bool deleted(const At& at, const char* what) {
    return machine->mutants.hits(std::string("delete ") + what + " " + place(at) + ":" +
                                 std::to_string(at.column()));
}
/// A flag pair is known by the file that uses it: Set and Wait of one buffer stand together.
inline bool pair_deleted(const At& at, const char* what, int event, int id) {
    const std::string file = place(at);
    return machine->mutants.hits(std::string("pair ") + what + " " + std::to_string(event) + " id " +
                                 std::to_string(id) + " " + file.substr(0, file.find(':')));
}
/// A stride as the kernel gave it, or one more where this run mutates it. `used`: more than one step is
/// taken.
inline int64_t stride(const At& at, const char* field, int64_t value, bool used) {
    if (!used) return value;
    const std::string site =
        std::string("stride ") + field + " " + place(at) + ":" + std::to_string(at.column());
    return value + (machine->mutants.hits(site) ? 1 : 0);
}

/// What the pipe of `c` knows, with all its own earlier instructions complete: the content of a flag.
inline Signal snapshot(const Core& c, int pipe, const At& at) {
    Signal s{c.know[pipe], c.time[pipe], at};
    s.clock[actor(c, pipe)] = c.count[pipe];
    return s;
}
inline void receive(Core& c, int pipe, const Signal& s) {
    join(c.know[pipe], s.clock);
    c.time[pipe] = std::max(c.time[pipe], s.time);
    if (pipe == PIPE_S) ++c.scalar_version;
}
inline Signal snapshot_all(const Core& c, const At& at) {
    Signal s{Clock(machine->actors()), 0, at};
    for (int p = 0; p < kNumPipes; ++p) {
        const Signal one = snapshot(c, p, at);
        join(s.clock, one.clock);
        s.time = std::max(s.time, one.time);
    }
    return s;
}
inline void receive_all(Core& c, const Signal& s) {
    for (int p = 0; p < kNumPipes; ++p) receive(c, p, s);
}

/// One instruction: numbers it on its pipe, checks and records what it touches, and adds its time.
class Instruction {
  public:
    Instruction(int pipe, const char* name, const At& at)
        : c_(*core), pipe_(pipe), name_(name), at_(at), site_(machine->site(at)) {
        const bool cube_pipe = pipe == PIPE_M || pipe == PIPE_MTE1 || pipe == PIPE_FIX;
        require(c_.is_aic ? pipe != PIPE_V : !cube_pipe, 1, at, name, " does not exist on an ",
                c_.is_aic ? "AIC" : "AIV");
        n_ = ++c_.count[pipe];
        // The scalar unit issues in order: what it has waited for was complete before this instruction.
        if (c_.joined_version[pipe] != c_.scalar_version) {
            join(c_.know[pipe], c_.know[PIPE_S]);
            c_.joined_version[pipe] = c_.scalar_version;
        }
    }

    bool self_ordered = false;  // M may be in order with itself
    bool unit_flag = false;

    void read(LocalMemory& m, size_t offset, size_t bytes) { local(m, offset, bytes, false); }
    void write(LocalMemory& m, size_t offset, size_t bytes) { local(m, offset, bytes, true); }

    /// Bytes of global memory at `p`; `scalar`: through the data cache.
    void read_gm(const void* p, size_t bytes, bool scalar = false) {
        if (bytes == 0) return;
        GmBuffer& b = machine->find(p, bytes, at_);
        const size_t offset = reinterpret_cast<uintptr_t>(p) - b.base;
        if (!b.valid.empty()) {
            const void* hole = std::memchr(&b.valid[offset], 0, bytes);
            require(!hole, 9, at_, name_, " reads byte ", static_cast<const uint8_t*>(hole) - b.valid.data(),
                    " of ", b.name, ", which nobody wrote");
        }
        if (b.writable) gm_log(b, offset, bytes, false, scalar);
    }
    void write_gm(void* p, size_t bytes, bool scalar = false) {
        if (bytes == 0) return;
        GmBuffer& b = machine->find(p, bytes, at_);
        const size_t offset = reinterpret_cast<uintptr_t>(p) - b.base;
        require(b.writable, 6, at_, name_, " writes to ", b.name, ", which is an input");
        gm_log(b, offset, bytes, true, scalar);
        if (!b.valid.empty()) std::fill_n(b.valid.begin() + offset, bytes, 1);
        c_.gm_write_bytes += bytes;
        if (!b.scratch) machine->hbm_write_bytes += bytes;
    }
    /// Cycles of a copy from global memory. A line's way from HBM is shared by all its readers, of whom a
    /// first walk without rates took the count; the rest of their reads comes from L2.
    double gm_read_cycles(const void* p, size_t bytes) {
        if (bytes == 0) return 0;
        GmBuffer& b = machine->find(p, bytes, at_);
        constexpr size_t kLine = 512;
        if (b.line_reads.empty()) b.line_reads.assign(b.bytes / kLine + 1, 0);
        const size_t offset = reinterpret_cast<uintptr_t>(p) - b.base;
        const double hbm = c_.is_aic ? Chip::kHbmAic : Chip::kHbmAiv;
        double cycles = 0;
        for (size_t at = offset; at < offset + bytes;) {
            const size_t end = std::min(offset + bytes, (at / kLine + 1) * kLine);
            uint32_t& reads = b.line_reads[at / kLine];
            if (!machine->lines_counted) reads += static_cast<uint32_t>(end - at);
            const double missed =
                b.scratch ? 0 : std::min(1.0, static_cast<double>(kLine) / std::max<uint32_t>(reads, 1));
            cycles += (end - at) * (missed / hbm + (1 - missed) / Chip::kL2Read);
            c_.hbm_read_bytes += (end - at) * missed;
            at = end;
        }
        c_.gm_read_bytes += bytes;
        return cycles;
    }

    void done(double cycles, double start, uint64_t repeats = 1) {
        c_.time[PIPE_S] += Chip::kIssue;
        c_.time[pipe_] = std::max(c_.time[pipe_], c_.time[PIPE_S]) + cycles + start;
        c_.stats[pipe_].busy += cycles + start;
        c_.stats[pipe_].instructions += 1;
        c_.stats[pipe_].repeats += repeats;
        if (machine->yield_often && pipe_ != PIPE_V && pipe_ != PIPE_S && machine->rng() % 8 == 0)
            machine->yield();
    }

  private:
    bool ordered(int pipe, uint32_t n) const {
        if (pipe == pipe_ && (pipe == PIPE_S || self_ordered || n == n_)) return true;
        return c_.know[pipe_][actor(c_, pipe)] >= n;
    }
    void local(LocalMemory& m, size_t offset, size_t bytes, bool write) {
        if (bytes == 0) return;
        require(offset + bytes <= m.bytes, 6, at_, name_, " runs past the end of ", m.name);
        if (!write && !machine->dry) {
            const void* hole = std::memchr(&m.valid[offset], 0, bytes);
            require(!hole, 9, at_, name_, " reads byte ", static_cast<const uint8_t*>(hole) - m.valid.data(),
                    " of ", m.name, ", which nobody wrote");
        }
        if (machine->dry) return;
        for (size_t g = offset / m.granule; g <= (offset + bytes - 1) / m.granule; ++g) {
            Granule& e = m.log[g];
            const bool unit = unit_flag && e.write_unit;
            if (e.write_n && !unit && !ordered(e.write_pipe, e.write_n))
                hazard(write ? "WAW" : "RAW", "written", m.name, e.write_pipe, e.write_site);
            if (!write) {
                e.read_n[pipe_] = n_, e.read_site[pipe_] = site_;
                e.read_since = true;
                continue;
            }
            for (int p = 0; p < kNumPipes; ++p) {
                if (e.read_n[p] && p != pipe_ && !unit && !ordered(p, e.read_n[p]))
                    hazard("WAR", "read", m.name, p, e.read_site[p]);
                e.read_n[p] = 0;
            }
            const bool whole = offset <= g * m.granule && offset + bytes >= (g + 1) * m.granule;
            if (whole && !e.read_since) ++machine->warnings;
            e.write_n = n_, e.write_pipe = static_cast<uint8_t>(pipe_), e.write_site = site_;
            e.write_unit = unit_flag, e.read_since = !whole;
        }
        if (write) std::fill_n(m.valid.begin() + offset, bytes, 1);
    }
    [[noreturn]] void hazard(const char* kind, const char* verb, const char* where, int pipe, uint32_t site) {
        fail(11, at_, kind, " hazard on ", where, ": ", name_, " on ", pipe_name(pipe_),
             " may start before the data ", verb, " by ", pipe_name(pipe), " at ",
             place(machine->sites[site]), " is done; needs ", pipe == pipe_ ? "PipeBarrier<PIPE_" : "a flag ",
             pipe_name(pipe), pipe == pipe_ ? ">" : std::string("_") + pipe_name(pipe_));
    }
    void gm_log(GmBuffer& b, size_t offset, size_t bytes, bool write, bool scalar) {
        if (b.fake || machine->dry) return;
        if (b.log.empty()) b.log.resize(b.bytes / 32 + 1);
        for (size_t g = offset / 32; g <= (offset + bytes - 1) / 32; ++g) {
            const size_t lo = std::max(offset, g * 32) - g * 32,
                         hi = std::min(offset + bytes, g * 32 + 32) - g * 32;
            const uint32_t mask = static_cast<uint32_t>(((1ull << hi) - 1) & ~((1ull << lo) - 1));
            std::vector<GmAccess>& log = b.log[g];
            size_t kept = 0;
            for (GmAccess& a : log) {
                const bool mine = a.actor == static_cast<uint32_t>(actor(c_, pipe_));
                const bool known = c_.know[pipe_][a.actor] >= a.n || (mine && pipe_ == PIPE_S);
                const bool conflict = (a.mask & mask) && (a.write || write) &&
                                      !(a.atomic && write && c_.atomic) && !(mine && !(a.write && write));
                if (conflict && !known) gm_hazard(b, offset, a, write);
                if ((a.mask & mask) && a.write && a.dirty_line && !mine)
                    fail(17, at_, name_, " meets bytes of ", b.name, " that ", place(machine->sites[a.site]),
                         " wrote by scalar and did not clean from the data cache");
                if (scalar && !write && a.write && !mine && !fresh(b.base + g * 32))
                    fail(17, at_, "scalar read of ", b.name, " written at ", place(machine->sites[a.site]),
                         " without DataCacheCleanAndInvalid");
                const bool covered = known && (a.mask & ~mask) == 0 && (write || (mine && !a.write));
                if (!covered) log[kept++] = a;
            }
            log.resize(kept);
            log.push_back({static_cast<uint32_t>(actor(c_, pipe_)), n_, site_, mask, write,
                           write && c_.atomic, write && scalar});
        }
    }
    bool fresh(uintptr_t address) const { return c_.fresh_lines.count(address / 64) > 0; }
    [[noreturn]] void gm_hazard(const GmBuffer& b, size_t offset, const GmAccess& a, bool write) {
        const Core& other = *machine->cores[a.actor / kNumPipes];
        fail(11, at_, "unordered access to ", b.name, " near byte ", offset, ": ", name_,
             write ? " writes" : " reads", " what ", pipe_name(a.actor % kNumPipes), " of ", core_name(other),
             " at ", place(machine->sites[a.site]), a.write ? " wrote" : " read");
    }

    Core& c_;
    int pipe_;
    const char* name_;
    At at_;
    uint32_t site_, n_ = 0;
};

}  // namespace emu
