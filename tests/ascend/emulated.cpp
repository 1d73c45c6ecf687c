// The AscendC kernels behind a C function, run on the emulator: what the Python tests load.
#include <kernel_operator.h>

#include "tests/ascend/emulator/launch.h"
#include "tests/ascend/kernels.h"

namespace {

using mmx::ascend::Cores;

/// One launch of an op: its kind, its blocks and its body with the tiling bound.
struct Prepared {
    emu::Kind kind;
    int num_blocks;
    std::function<void()> body;
};
using Prepare = Prepared (*)(const void* params, const Cores& cores);
using Workspace = int64_t (*)(const void* params, const Cores& cores);

struct Entry {
    Prepare prepare;
    Workspace workspace;
};

#define MMX_ENTRY(op, Params, kind)                                                                 \
    {#op,                                                                                           \
     {[](const void* params, const Cores& cores) -> Prepared {                                      \
          const auto t = mmx::ascend::op##_tiling(*static_cast<const mmx::Params*>(params), cores); \
          return {emu::Kind::kind, t.num_blocks, [t] { mmx::ascend::op##_kernel(t); }};             \
      },                                                                                            \
      nullptr}},
#define MMX_WORKSPACE_ENTRY(op, Params, kind)                                                        \
    {#op,                                                                                            \
     {[](const void* params, const Cores& cores) -> Prepared {                                       \
          const auto t = mmx::ascend::op##_tiling(*static_cast<const mmx::Params*>(params), cores);  \
          return {emu::Kind::kind, t.num_blocks, [t] { mmx::ascend::op##_kernel(t); }};              \
      },                                                                                             \
      [](const void* params, const Cores& cores) {                                                   \
          return mmx::ascend::op##_workspace_bytes(*static_cast<const mmx::Params*>(params), cores); \
      }}},

const std::map<std::string, Entry>& entries() {
    static const std::map<std::string, Entry> all{MMX_ASCEND_KERNELS(MMX_ENTRY)
                                                      MMX_ASCEND_WORKSPACE_KERNELS(MMX_WORKSPACE_ENTRY)};
    return all;
}

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c;
    }
    return out + "\"";
}

std::string to_json(const emu::Report& r, int num_blocks) {
    std::ostringstream out;
    out << "{\"violation\": " << quoted(r.violation) << ", \"check\": " << r.check
        << ", \"blocks\": " << num_blocks << ", \"microseconds\": " << r.microseconds
        << ", \"cycles\": " << r.cycles << ", \"hbm_bytes\": " << r.hbm_bytes
        << ", \"binding\": " << quoted(r.binding) << ", \"instructions\": " << r.instructions
        << ", \"repeats\": " << r.repeats << ", \"warnings\": " << r.warnings
        << ", \"unaligned_copies\": " << r.unaligned_copies << ", \"bank_conflicts\": " << r.bank_conflicts
        << ", \"gm_read_bytes\": " << r.gm_read_bytes << ", \"gm_write_bytes\": " << r.gm_write_bytes
        << ", \"busy\": {";
    const char* comma = "";
    for (int aic = 0; aic < 2; ++aic)
        for (int p = 0; p < emu::kNumPipes; ++p) {
            if (r.busy[aic][p] == 0) continue;
            out << comma << quoted(std::string(aic ? "AIC " : "AIV ") + emu::pipe_name(p)) << ": "
                << r.busy[aic][p];
            comma = ", ";
        }
    out << "}, \"sites\": [";
    comma = "";
    for (const std::string& site : r.sites) out << comma << quoted(site), comma = ", ";
    out << "]}";
    return out.str();
}

/// Result that the caller reads until its next call.
const char* keep(std::string text) {
    static std::string last;
    last = std::move(text);
    return last.c_str();
}

}  // namespace

extern "C" {

/// A tensor of a launch. `kind`: 0 input, 1 output or in place, 2 scratch; plus 4: an address without memory.
struct MmxEmulatedTensor {
    const char* name;
    void* data;
    int64_t bytes;
    int32_t kind;
};

struct MmxEmulatedOptions {
    int32_t schedule, num_aic, num_aiv, dry;
    double mhz, hbm_bytes_per_second;
    const char* mutant;
};

__attribute__((visibility("default"))) int64_t mmx_emulated_workspace(const char* op, const void* params,
                                                                      int num_aic) {
    const Entry& entry = entries().at(op);
    try {
        return entry.workspace ? entry.workspace(params, {num_aic, 2 * num_aic}) : 0;
    } catch (const mmx::Error&) {
        return 0;  // the run says why
    }
}

/// Runs one op; the answer is JSON: the report, or {"refused": why} when the op does not take these Params.
__attribute__((visibility("default"))) const char* mmx_emulated_run(const char* op, const void* params,
                                                                    const MmxEmulatedTensor* tensors,
                                                                    int num_tensors,
                                                                    const MmxEmulatedOptions* options) {
    Prepared prepared;
    try {
        prepared = entries().at(op).prepare(params, {options->num_aic, options->num_aiv});
    } catch (const mmx::Error& error) {
        return keep("{\"refused\": " + quoted(error.what()) + "}");
    }
    std::vector<emu::GmBuffer> gm;
    for (int i = 0; i < num_tensors; ++i) {
        const MmxEmulatedTensor& t = tensors[i];
        emu::GmBuffer b;
        b.name = t.name;
        b.base = reinterpret_cast<uintptr_t>(t.data);
        b.bytes = static_cast<size_t>(t.bytes);
        b.writable = (t.kind & 3) != 0;
        b.scratch = (t.kind & 3) == 2;
        b.fake = (t.kind & 4) != 0;
        if (b.scratch && !b.fake) b.valid.assign(b.bytes, 0);
        gm.push_back(std::move(b));
    }
    emu::Options o;
    o.chip.num_aic = options->num_aic;
    o.chip.num_aiv = options->num_aiv;
    o.chip.mhz = options->mhz;
    o.chip.hbm_bytes_per_second = options->hbm_bytes_per_second;
    o.schedule = options->schedule;
    o.dry = options->dry != 0;
    o.mutant = options->mutant ? options->mutant : "";
    emu::Report report = emu::launch(prepared.body, prepared.kind, prepared.num_blocks, gm, o);
    if (o.dry) {
        o.lines_counted = true;
        report = emu::launch(prepared.body, prepared.kind, prepared.num_blocks, gm, o);
    }
    return keep(to_json(report, prepared.num_blocks));
}

/// Names of the ops, separated by spaces.
__attribute__((visibility("default"))) const char* mmx_emulated_ops() {
    std::string names;
    for (const auto& [name, entry] : entries()) names += (names.empty() ? "" : " ") + name;
    return keep(names);
}
}
