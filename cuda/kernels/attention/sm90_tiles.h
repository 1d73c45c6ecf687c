#pragma once

#include "cpp/core/params/attention.h"
#include "cpp/core/stream.h"
#include "cuda/kernels/attention/tile_plan.h"

namespace mmx::cuda::sm90 {

/// Device memory of a list of row tiles of kListedTokens tokens x 16 heads, each with its own list of pages.
struct ListedTiles {
    int *num_tiles, *next_unit;  // one number each; next_unit starts at 0
    RowTile* tiles;              // [num_tiles]
    const int* order;            // [num_tiles] in the order in which they are begun
    const TilePage* pages;       // [tile, kMaxTilePages], descending blocks, at least one
};

void listed_prefill(const char* op, const PagedAttentionParams& p, const ListedTiles& list, Stream stream);

}  // namespace mmx::cuda::sm90
