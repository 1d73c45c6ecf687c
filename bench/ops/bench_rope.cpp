#include <vector>

#include "bench/common/bench.h"

using namespace mmx;

MMX_BENCH(rope) {
    for (const bench::Case& c : b.cases("rope", "rope"))
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
            const int64_t num_tokens = c["num_tokens"], num_heads = c["num_heads"], head_dim = c["head_dim"];
            const int64_t rotary_dim = c["rotary_dim"], row = num_heads * head_dim, count = num_tokens * row;
            std::vector<int64_t> places(static_cast<size_t>(num_tokens));
            for (size_t i = 0; i < places.size(); ++i) places[i] = static_cast<int64_t>(i);
            const bench::Buffer positions = b.upload(places), x = b.randn(dtype, count);
            const bench::Buffer cos_sin = b.randn(DType::kF32, num_tokens * rotary_dim);
            const bench::Buffer out = b.empty(dtype, count);
            const RopeParams p{.out = out.as(),
                               .x = x.as(),
                               .cos_sin = cos_sin.as<float>(),
                               .positions = positions.as<int64_t>(),
                               .num_tokens = num_tokens,
                               .num_heads = num_heads,
                               .head_dim = head_dim,
                               .rotary_dim = rotary_dim,
                               .max_positions = num_tokens,
                               .out_token_stride = row,
                               .out_head_stride = head_dim,
                               .x_token_stride = row,
                               .x_head_stride = head_dim,
                               .dtype = dtype};
            b.run("rope", c, dtype,
                  {.bytes = 2.0 * static_cast<double>(x.bytes()) + static_cast<double>(cos_sin.bytes()),
                   .out = &out,
                   .baseline = "copy",
                   .baseline_run = [&] { b.backend().copy(out.as(), x.as(), x.bytes()); }},
                  b.ops().rope, p);
        }
}
