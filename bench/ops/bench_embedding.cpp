#include <algorithm>
#include <vector>

#include "bench/common/bench.h"

using namespace mmx;

MMX_BENCH(embedding) {
    for (const bench::Case& c : b.cases("embedding", "embedding"))
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
            const int64_t num_tokens = c["num_tokens"], hidden = c["hidden"], num_rows = c["num_rows"];
            std::vector<int64_t> rows(static_cast<size_t>(num_tokens));
            for (size_t i = 0; i < rows.size(); ++i)
                rows[i] = c["first_row"] + static_cast<int64_t>(i) * 2654435761 % num_rows;
            const bench::Buffer ids = b.upload(rows), weight = b.randn(dtype, num_rows * hidden);
            const bench::Buffer out = b.empty(dtype, num_tokens * hidden);
            const EmbeddingParams p{.out = out.as(),
                                    .weight = weight.as(),
                                    .ids = ids.as<int64_t>(),
                                    .num_tokens = num_tokens,
                                    .hidden = hidden,
                                    .num_rows = num_rows,
                                    .first_row = c["first_row"],
                                    .out_stride = hidden,
                                    .dtype = dtype};
            // The baseline copies as many bytes, from the head of the table.
            const int64_t bytes = std::min(out.bytes(), weight.bytes());
            b.run("embedding", c, dtype,
                  {.bytes = 2.0 * static_cast<double>(out.bytes()),
                   .out = &out,
                   .baseline = "copy",
                   .baseline_run = [&, bytes] { b.backend().copy(out.as(), weight.as(), bytes); }},
                  b.ops().embedding, p);
        }
}
