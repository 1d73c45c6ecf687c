#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <source_location>
#include <sstream>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "tests/ascend/emulator/tables.h"

/// Memories of the chip with their shadow: which bytes were written, who touched each granule last.
namespace emu {

using At = std::source_location;

inline constexpr int kNumPipes = 7;
inline const char* pipe_name(int pipe) {
    static const char* const names[] = {"S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX", "ALL"};
    return names[pipe];
}

/// What a check throws; `check` is its row in docs/ascend.md.
struct Violation {
    int check;
    std::string text;
};

inline std::string place(const At& at) {
    const std::string file = at.file_name();
    return file.substr(file.rfind('/') + 1) + ":" + std::to_string(at.line());
}

template <class... Parts>
[[noreturn]] void fail(int check, const At& at, const Parts&... parts) {
    std::ostringstream text;
    text << "check " << check << " at " << place(at) << ": ";
    (text << ... << parts);
    throw Violation{check, text.str()};
}

template <class... Parts>
void require(bool ok, int check, const At& at, const Parts&... parts) {
    if (!ok) fail(check, at, parts...);
}

/// Chip of architecture 2201. Rates are bytes per cycle of one core, from the chip's description files.
struct Chip {
    const char* name = "910B2";
    int num_aic = 24, num_aiv = 48;
    double mhz = 1800;
    double hbm_bytes_per_second = 1.6e12;
    static constexpr size_t kUb = 192 * 1024, kL1 = 512 * 1024, kL0 = 64 * 1024, kL0c = 128 * 1024,
                            kBt = 1024;
    static constexpr size_t kUbUsable = 188160, kL1Usable = kL1 - 256;
    static constexpr double kHbmAic = 32, kHbmAiv = 16, kL2Read = 110, kL2Write = 86, kUbToL2 = 64;
    static constexpr double kL0aLoad = 256, kL0bLoad = 128, kUbCopy = 256;
    /// Start-up of an instruction and its issue by the scalar unit. Not published: assumed.
    static constexpr double kStartVector = 16, kStartCopy = 32, kStartCube = 16, kIssue = 4;
};

/// Last accesses to one granule of a core's own memory: instruction number and place per pipe, 0 if none.
struct Granule {
    uint32_t write_n = 0, write_site = 0;
    uint8_t write_pipe = 0;
    bool write_unit = false, read_since = true;
    uint32_t read_n[kNumPipes] = {}, read_site[kNumPipes] = {};
};

struct LocalMemory {
    const char* name;
    size_t bytes, granule;
    std::vector<uint8_t> data, valid;
    std::vector<Granule> log;

    LocalMemory(const char* name, size_t bytes, size_t granule)
        : name(name), bytes(bytes), granule(granule) {}
    /// Gives the memory content and, unless only addresses and times matter, a shadow.
    void open(bool with_shadow) {
        data.assign(bytes, 0xCC);
        valid.assign(bytes, 0);
        if (with_shadow) log.resize(bytes / granule);
    }
    void poison(size_t begin, size_t size) {
        std::fill_n(data.begin() + begin, size, 0xCC);
        std::fill_n(valid.begin() + begin, size, 0);
    }
};

/// One access to a granule of global memory: by which pipe of which core, which of its 32 bytes.
struct GmAccess {
    uint32_t actor, n, site, mask;
    bool write, atomic, dirty_line;
};

/// A tensor that kernels may touch. `fake` ones have an address range but no memory (timing runs).
struct GmBuffer {
    std::string name;
    uintptr_t base = 0;
    size_t bytes = 0;
    bool writable = false, fake = false, scratch = false;
    std::vector<uint8_t> valid;  // of scratch and outputs; empty: all bytes hold data
    std::vector<std::vector<GmAccess>> log = {};
    std::vector<uint32_t> line_reads = {};  // bytes read of each 512-byte line
};

}  // namespace emu
