#include <charconv>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "bench/common/bench.h"
#include "cpp/core/check.h"

namespace mmx::bench {

namespace {

std::vector<std::pair<std::string, BenchFunction>>& registry() {
    static std::vector<std::pair<std::string, BenchFunction>> benches;
    return benches;
}

constexpr const char* kUsage =
    "mmx_bench [--backend cpu|cuda] [--op NAME ...] [--case DIMENSION=N ...] [--threads N] [--cold] "
    "[--large]\n"
    "          [--cases FOLDER] [--seed N] [--json] [--list]\n"
    "Times the kernels of one backend; without --op all of them. --case: of cases with that dimension only\n"
    "those of this size, or of one of several. --large: shapes of whole models, which want a large GPU,\n"
    "instead of the usual ones. --cold: with nothing in the caches. --cases: where the csv files lie.\n"
    "--seed: other random numbers, in other places of the memory.\n";

int64_t to_number(const std::string& flag, const std::string& text) {
    int64_t number = 0;
    const char* end = text.data() + text.size();
    const auto [at, error] = std::from_chars(text.data(), end, number);
    MMX_CHECK(error == std::errc() && at == end && number >= 0, flag, " must be an integer from 0 on, got ",
              text);
    return number;
}

/// Adds what `text`, DIMENSION=N, asks for.
void add_case(Options& options, const std::string& text) {
    const size_t equals = text.find('=');
    MMX_CHECK(equals != std::string::npos && equals > 0, "--case must be DIMENSION=N, got ", text);
    const std::string dimension = text.substr(0, equals);
    options.only[dimension].insert(to_number("--case " + dimension, text.substr(equals + 1)));
}

}  // namespace

Registration::Registration(const char* op, BenchFunction function) { registry().emplace_back(op, function); }

int run_main(int argc, char** argv) {
    std::string backend_name = "cpu";
    std::set<std::string> wanted;
    int num_threads = 0;
    Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string flag = argv[i];
        const auto value = [&] {
            MMX_CHECK(i + 1 < argc, flag, " needs a value");
            return std::string(argv[++i]);
        };
        if (flag == "--case") {
            add_case(options, value());
        } else if (flag == "--backend") {
            backend_name = value();
        } else if (flag == "--op") {
            const std::string op = value();
            bool known = false;
            for (const auto& [name, function] : registry()) known |= name == op;
            MMX_CHECK(known, "--op: no benchmark is named ", op, " (see --list)");
            wanted.insert(op);
        } else if (flag == "--threads") {
            num_threads = static_cast<int>(to_number(flag, value()));
        } else if (flag == "--cases") {
            options.cases = value();
        } else if (flag == "--seed") {
            options.seed = static_cast<uint64_t>(to_number(flag, value()));
        } else if (flag == "--cold") {
            options.cold = true;
        } else if (flag == "--large") {
            options.large = true;
        } else if (flag == "--json") {
            options.json = true;
        } else if (flag == "--list") {
            for (const auto& [name, function] : registry()) std::printf("%s\n", name.c_str());
            return 0;
        } else if (flag == "--help") {
            std::fputs(kUsage, stdout);
            return 0;
        } else {
            fail("unknown argument ", flag, "\n", kUsage);
        }
    }
    MMX_CHECK(backend_name == "cpu" || backend_name == "cuda", "--backend must be cpu or cuda, got ",
              backend_name);
    const std::unique_ptr<Backend> backend(backend_name == "cpu" ? make_cpu_backend(num_threads)
                                                                 : make_cuda_backend());
    Bench bench(*backend, backend_name, options);
    for (const auto& [name, function] : registry())
        if (wanted.empty() || wanted.contains(name)) function(bench);
    return 0;
}

}  // namespace mmx::bench

int main(int argc, char** argv) {
    try {
        return mmx::bench::run_main(argc, argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "mmx_bench: %s\n", error.what());
        return 2;
    }
}
