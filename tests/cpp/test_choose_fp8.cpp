#include "cuda/kernels/moe/choose_fp8.h"
#include "tests/cpp/expect.h"

using namespace mmx;
using namespace mmx::cuda;

namespace {

Fp8MoeGateUpParams gate_up(int64_t num_tokens, int64_t hidden, int64_t inter) {
    Fp8MoeGateUpParams p{};
    p.num_tokens = num_tokens;
    p.topk = 8;
    p.num_local_experts = 256;
    p.hidden = hidden;
    p.inter = inter;
    return p;
}

/// Which kernel runs depends on sizes of the model only, so that a row has one result in every batch.
void test_fits() {
    for (const int64_t tokens : {1, 8, 128, 65536}) {
        EXPECT(sm90_fp8_fits(gate_up(tokens, 3072, 1536)));
        EXPECT(!sm90_fp8_fits(gate_up(tokens, 3072, 1500)));
        EXPECT(!sm90_fp8_fits(gate_up(tokens, 3000, 1536)));
    }
    Fp8MoeGateUpParams many = gate_up(1, 3072, 1536);
    many.num_local_experts = kMoeMaxExperts + 1;
    EXPECT(!sm90_fp8_fits(many));
    Fp8MoeDownParams down{};
    down.num_local_experts = 256;
    down.hidden = 3072;
    down.inter = 1536;
    down.out_dtype = DType::kBF16;
    EXPECT(sm90_fp8_fits(down));
    down.out_dtype = DType::kF32;
    EXPECT(!sm90_fp8_fits(down));
    Fp8LinearParams linear{};
    linear.n = 8192;
    linear.k = 3072;
    linear.out_stride = 8192;
    linear.out_dtype = DType::kBF16;
    EXPECT(sm90_fp8_fits(linear));
    linear.out_stride = 8193;
    EXPECT(!sm90_fp8_fits(linear));
}

/// More rows never get a smaller tile.
void test_tiles_grow() {
    for (const int64_t n : {128, 3072, 8192}) {
        int expert = 0, dense = 0;
        for (int64_t rows = 1; rows <= 1 << 19; rows = rows * 3 / 2 + 1) {
            const int dense_tile = static_cast<int>(choose_fp8_dense_tile(rows, n, 3072));
            const int expert_tile = static_cast<int>(choose_fp8_tile(rows, 256, n));
            EXPECT(dense_tile >= dense && expert_tile >= expert);
            dense = dense_tile;
            expert = expert_tile;
        }
    }
}

/// Experts and dense products have tiles of their own while the weights are what takes the time.
void test_tiles_of_experts() {
    for (const int64_t rows : {1, 100, 1000, 100000})
        for (const int64_t n : {128, 3072, 8192})
            for (const int64_t experts : {1, 2, 256}) {
                const auto is_of_experts = [](Fp8Tile tile) {
                    return tile == Fp8Tile::kFew || tile == Fp8Tile::k256x32;
                };
                const Fp8Tile tile = choose_fp8_tile(rows, experts, n);
                EXPECT(is_of_experts(tile) || tile == Fp8Tile::kWide);
                EXPECT(!is_of_experts(choose_fp8_dense_tile(rows, n, 3072)));
            }
    EXPECT(choose_fp8_tile(64, 256, 3072) == Fp8Tile::kFew);
    EXPECT(choose_fp8_tile(64, 256, 2 * kFp8FewMaxK) == Fp8Tile::k256x32);
    EXPECT(choose_fp8_tile(24 * 256, 256, 3072) == Fp8Tile::k256x32);
    EXPECT(choose_fp8_tile(64 * 256, 256, 3072) == Fp8Tile::kWide);
    EXPECT(choose_fp8_dense_tile(8, 8192, 3072) == Fp8Tile::kStream);
    EXPECT(choose_fp8_dense_tile(8, 8192, 2 * kFp8StreamMaxK) == Fp8Tile::k64x64);
    EXPECT(choose_fp8_dense_tile(9, 8192, 3072) == Fp8Tile::kRows);
    EXPECT(choose_fp8_dense_tile(64, 8192, 3072) == Fp8Tile::kRows);
    EXPECT(choose_fp8_dense_tile(64, 8192, 2 * kFp8RowsMaxK) == Fp8Tile::k64x64);
    EXPECT(choose_fp8_dense_tile(65, 8192, 3072) == Fp8Tile::k64x64);
    EXPECT(choose_fp8_dense_tile(4096, 6144, 3072) == Fp8Tile::kWide);
}

/// Sums of few rows in fp32; of many, counts and rows of x in plan order.
void test_workspace() {
    EXPECT(fp8_gate_up_workspace_bytes(gate_up(1, 3072, 1536)) == 8 * 1536 * 4);
    EXPECT(fp8_gate_up_workspace_bytes(gate_up(256, 3072, 1536)) == 0);
    EXPECT(fp8_gate_up_workspace_bytes(gate_up(8192, 3072, 1536)) == kMoeCountBytes + 65536 * 3072);
    EXPECT(fp8_gate_up_workspace_bytes(gate_up(8192, 3000, 1536)) == int64_t{65536} * 1536 * 4);
}

/// Streamed products: tiles of at most 64 weight rows in equal shares, a ring and scales that fit.
void test_stream_plan() {
    constexpr int64_t kSharedMemory = 227 * 1024;
    for (const int64_t n : {128, 1024, 3072, 6144, 8192, 12800, 200064}) {
        const Fp8StreamPlan plan = make_fp8_stream_plan(n, 132);
        EXPECT(plan.box_rows <= Fp8StreamPlan::kTileRows && plan.box_rows % 8 == 0);
        EXPECT(plan.smem_bytes(kFp8StreamMaxK / kFp8Group) <= kSharedMemory);
        for (int64_t t = 0; t < plan.num_tiles; ++t) {
            const int64_t rows = n * (t + 1) / plan.num_tiles - n * t / plan.num_tiles;
            EXPECT(rows > 0 && rows <= plan.box_rows);
        }
    }
    EXPECT(make_fp8_stream_plan(3072, 132).num_tiles == 132);
    EXPECT(make_fp8_stream_plan(3072, 132).box_rows == 24);
}

/// Up to 64 rows: tiles that cover the weight rows once, of widths for which there is a kernel; a ring that
/// fits beside the scales and has a stage for every turn.
void test_rows_plan() {
    constexpr int64_t kSharedMemory = 227 * 1024;
    for (const int64_t m : {9, 16, 17, 33, 64})
        for (int64_t n = 128; n <= 16384; n += 128) {
            const Fp8RowsPlan plan = make_fp8_rows_plan(m, n, 132);
            EXPECT(plan.x_rows >= m && plan.x_rows <= Fp8RowsPlan::kMaxRows && plan.x_rows % 8 == 0);
            EXPECT(plan.num_tiles * plan.tile_rows >= n && (plan.num_tiles - 1) * plan.tile_rows < n);
            EXPECT(plan.takes_turns ? plan.tile_rows <= 32 : plan.tile_rows == 48 || plan.tile_rows == 64);
            EXPECT(plan.stages >= 3 && plan.stages <= Fp8RowsPlan::kMaxStages);
            EXPECT(plan.smem_bytes(kFp8RowsMaxK / kFp8Group) <= kSharedMemory);
        }
    EXPECT(make_fp8_rows_plan(16, 3072, 132).num_tiles == 128);
    EXPECT(make_fp8_rows_plan(16, 3072, 132).tile_rows == 24);
    EXPECT(make_fp8_rows_plan(16, 8192, 132).tile_rows == 64);
}

/// Tiles of rows cover every row once, are multiples of 8 (or 64) high and nearly equal.
void test_split_rows() {
    for (const int step : {8, 64})
        for (const int height : {64, 128})
            for (int rows = 1; rows <= 1000; ++rows) {
                const RowTiles tiles = split_rows(rows, height, step);
                EXPECT(tiles.height % step == 0 && tiles.height <= height);
                EXPECT(tiles.count * tiles.height >= rows && (tiles.count - 1) * tiles.height < rows);
                EXPECT(tiles.count == (rows + height - 1) / height);
            }
}

/// Full and half tiles cover every row once, and no unit of 64 rows is empty.
void test_split_wide_rows() {
    for (int rows = 0; rows <= 1000; ++rows) {
        const Fp8WideTiles tiles = split_wide_rows(rows);
        EXPECT(tiles.half == 0 || tiles.half == 1);
        EXPECT(2 * tiles.full + tiles.half == (rows + 63) / 64);
        EXPECT(tiles.full + tiles.half == split_rows(rows, 128, 64).count);
    }
}

}  // namespace

int main() {
    test_fits();
    test_tiles_grow();
    test_tiles_of_experts();
    test_workspace();
    test_stream_plan();
    test_rows_plan();
    test_split_rows();
    test_split_wide_rows();
    return test::finish("choose_fp8");
}
