#pragma once

#include <cstdint>

#include "cpp/core/dtype.h"

namespace mmx {

/// out[i] = weight[ids[i] - first_row], or zeros where that row is not held (vocabulary-parallel shards).
struct EmbeddingParams {
    void* out;           // [num_tokens, hidden]
    const void* weight;  // [num_rows, hidden]
    const int64_t* ids;  // [num_tokens]
    int64_t num_tokens, hidden, num_rows, first_row;
    int64_t out_stride;
    DType dtype;
};

}  // namespace mmx
