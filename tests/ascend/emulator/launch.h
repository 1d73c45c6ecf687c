#pragma once

#include <ucontext.h>

#include "tests/ascend/emulator/sync.h"

namespace emu {

/// How a launch runs. Schedule 0: cores in order; 1: in reverse; others: a seed of random order with control
/// moving after copies and cross-core flags.
struct Options {
    Chip chip{};
    int schedule = 0;
    bool dry = false;            // addresses, clocks and times only: tensors need no memory
    bool lines_counted = false;  // of a second dry run: the first has counted who reads what
    std::string mutant{};
};

struct Report {
    std::string violation;  // empty: every check held
    int check = 0;
    double microseconds = 0, cycles = 0;  // modelled
    double hbm_bytes = 0;
    std::string binding;             // busiest pipe and its share of the time
    double busy[2][kNumPipes] = {};  // longest per kind of core, AIV and AIC, in cycles
    uint64_t instructions = 0, repeats = 0, warnings = 0, unaligned_copies = 0, bank_conflicts = 0;
    double gm_read_bytes = 0, gm_write_bytes = 0;
    std::set<std::string> sites;
};

/// Runs every core as a fiber of this thread; one runs at a time, so a launch repeats exactly by its seed.
class Scheduler {
  public:
    Scheduler(Machine& m, std::function<void()> kernel, int schedule)
        : m_(m), kernel_(std::move(kernel)), schedule_(schedule), fibers_(m.cores.size()) {
        m.rng.seed(static_cast<uint32_t>(schedule));
        m.yield_often = schedule >= 2;
        m.yield = [this] { swapcontext(&fibers_[core->index].context, &main_); };
    }

    void run() {
        active_ = this;
        for (size_t i = 0; i < fibers_.size(); ++i) {
            Fiber& f = fibers_[i];
            f.stack.resize(kStack);
            getcontext(&f.context);
            f.context.uc_stack.ss_sp = f.stack.data();
            f.context.uc_stack.ss_size = kStack;
            f.context.uc_link = &main_;
            makecontext(&f.context, reinterpret_cast<void (*)()>(&Scheduler::enter), 0);
        }
        for (;;) {
            std::vector<int> ready;
            bool all_done = true;
            for (const auto& c : m_.cores) {
                all_done = all_done && c->done;
                if (!c->done && (!c->blocked_until || c->blocked_until())) ready.push_back(c->index);
            }
            if (all_done) return;
            if (ready.empty()) deadlock();
            const size_t pick = schedule_ == 0   ? 0
                                : schedule_ == 1 ? ready.size() - 1
                                                 : m_.rng() % ready.size();
            core = m_.cores[ready[pick]].get();
            swapcontext(&main_, &fibers_[ready[pick]].context);
            if (failed_) throw violation_;
        }
    }

  private:
    static constexpr size_t kStack = 128 * 1024;
    struct Fiber {
        ucontext_t context;
        std::vector<char> stack;
    };
    static void enter() {
        Scheduler& s = *active_;
        try {
            s.kernel_();
        } catch (const Violation& v) {
            s.failed_ = true;
            s.violation_ = v;
            s.violation_.text += " [" + core_name(*core) + "]";
        }
        core->done = true;
    }
    [[noreturn]] void deadlock() {
        std::string text = "check 14: deadlock:";
        for (const auto& c : m_.cores)
            if (!c->done) text += " " + core_name(*c) + " waits for " + c->blocked_on + ";";
        throw Violation{14, text};
    }

    inline static thread_local Scheduler* active_ = nullptr;
    Machine& m_;
    std::function<void()> kernel_;
    int schedule_;
    std::vector<Fiber> fibers_;
    ucontext_t main_;
    bool failed_ = false;
    Violation violation_;
};

inline void check_at_exit(const Core& c) {
    const std::string who = " at the end of the kernel on " + core_name(c);
    const auto violate = [&](int check, const std::string& what) {
        throw Violation{check, "check " + std::to_string(check) + ": " + what + who};
    };
    for (const auto& b : c.buffers)
        if (b->state > 0) violate(10, "a queue buffer is still in use");
    if (!c.flags.empty())
        violate(12, "a flag set at " + place(c.flags.begin()->second.at) + " was never waited for");
    for (const auto& [key, pending] : c.cross)
        if (!pending.empty()) violate(13, "cross-core flag " + std::to_string(key.first) + " is still set");
    if (c.counter_mode || c.mask_lo != ~0ull || c.mask_hi != ~0ull) violate(7, "the mask is not restored");
    if (c.atomic) violate(7, "atomic mode is still on");
}

/// Runs `kernel` on `num_blocks` blocks over the tensors `gm`.
inline Report launch(const std::function<void()>& kernel, Kind kind, int num_blocks,
                     std::vector<GmBuffer>& gm, const Options& options) {
    Machine m;
    m.chip = options.chip;
    m.kind = kind;
    m.num_blocks = num_blocks;
    m.dry = options.dry;
    m.gm = std::move(gm);
    m.lines_counted = options.lines_counted;
    m.mutants.active = options.mutant;
    machine = &m;
    const bool vector_only = kind == Kind::kAivOnly || kind == Kind::kMixAiv;
    for (int block = 0; block < num_blocks; ++block) {
        for (int part = vector_only ? 1 : 0; part < (kind == Kind::kMix12 ? 3
                                                     : vector_only        ? 2
                                                                          : 1);
             ++part) {
            auto c = std::make_unique<Core>();
            c->index = static_cast<int>(m.cores.size());
            c->block = block;
            c->is_aic = part == 0;
            c->sub = kind == Kind::kMix12 && part > 0 ? part - 1 : 0;
            for (LocalMemory* memory : {&c->l1, &c->l0a, &c->l0b, &c->l0c, &c->bt})
                if (c->is_aic) memory->open(!m.dry);
            if (!c->is_aic) c->ub.open(!m.dry);
            m.cores.push_back(std::move(c));
        }
    }
    for (auto& c : m.cores)
        for (Clock& clock : c->know) clock.assign(m.actors(), 0);
    Report report;
    try {
        const int cores = vector_only ? m.chip.num_aiv : m.chip.num_aic;
        if (num_blocks < 1 || num_blocks > cores)
            throw Violation{20, "check 20: " + std::to_string(num_blocks) + " blocks on " +
                                    std::to_string(cores) + " cores"};
        Scheduler(m, kernel, options.schedule).run();
        for (const auto& c : m.cores) check_at_exit(*c);
        if (m.sync_used && m.high_ids_used)
            throw Violation{13, "check 13: flag ids 11 to 14 belong to SyncAll, which this kernel uses"};
    } catch (const Violation& v) {
        report.violation = v.text;
        report.check = v.check;
    }
    double cycles = 1, hbm = m.hbm_write_bytes, busiest = 0;
    for (const auto& c : m.cores) {
        hbm += c->hbm_read_bytes;
        report.gm_read_bytes += c->gm_read_bytes;
        report.gm_write_bytes += c->gm_write_bytes;
        for (int p = 0; p < kNumPipes; ++p) {
            cycles = std::max(cycles, c->time[p]);
            double& longest = report.busy[c->is_aic][p];
            longest = std::max(longest, c->stats[p].busy);
            report.instructions += c->stats[p].instructions;
            report.repeats += c->stats[p].repeats;
            if (longest > busiest)
                busiest = longest, report.binding = std::string(c->is_aic ? "AIC " : "AIV ") + pipe_name(p);
        }
    }
    const double compute = cycles / m.chip.mhz, memory = hbm / m.chip.hbm_bytes_per_second * 1e6;
    report.microseconds = std::max(compute, memory);
    if (memory > compute) report.binding = "HBM";
    report.hbm_bytes = hbm;
    report.warnings = m.warnings;
    report.unaligned_copies = m.unaligned_copies;
    report.bank_conflicts = m.bank_conflicts;
    report.sites = std::move(m.mutants.sites);
    report.cycles = cycles;
    gm = std::move(m.gm);
    machine = nullptr;
    core = nullptr;
    return report;
}

}  // namespace emu
