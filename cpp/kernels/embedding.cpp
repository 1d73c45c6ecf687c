#include "cpp/kernels/common.h"

namespace mmx::cpu::MMX_CPU_ISA {

void embedding(const EmbeddingParams& p, Stream) {
    const int64_t bytes = dtype_bytes(p.dtype), row_bytes = p.hidden * bytes;
    parallel_for(p.num_tokens, ceil_div(65536, std::max<int64_t>(1, row_bytes)),
                 [&](int64_t begin, int64_t end) {
                     for (int64_t token = begin; token < end; ++token) {
                         char* out = static_cast<char*>(p.out) + token * p.out_stride * bytes;
                         const int64_t row = p.ids[token] - p.first_row;
                         if (row >= 0 && row < p.num_rows)
                             std::memcpy(out, static_cast<const char*>(p.weight) + row * row_bytes,
                                         static_cast<size_t>(row_bytes));
                         else
                             std::memset(out, 0, static_cast<size_t>(row_bytes));
                     }
                 });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
