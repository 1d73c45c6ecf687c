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
    for (const int64_t experts : {1, 8, 256})
        for (const int64_t n : {128, 3072, 8192}) {
            int before = 0;
            for (int64_t rows = 1; rows <= 1 << 19; rows = rows * 3 / 2 + 1) {
                const int tile = static_cast<int>(choose_fp8_tile(rows, experts, n));
                EXPECT(tile >= before);
                before = tile;
            }
        }
}

/// Experts and dense products have tiles of their own.
void test_tiles_of_experts() {
    for (const int64_t rows : {1, 100, 1000, 100000})
        for (const int64_t n : {128, 3072, 8192}) {
            const Fp8Tile tile = choose_fp8_tile(rows, 2, n);
            EXPECT(tile == Fp8Tile::k256x32 || tile == Fp8Tile::k256x128Pairs);
            const Fp8Tile dense = choose_fp8_tile(rows, 1, n);
            EXPECT(dense != Fp8Tile::k256x32 && dense != Fp8Tile::k256x128Pairs);
        }
    EXPECT(choose_fp8_tile(24 * 256, 256, 3072) == Fp8Tile::k256x32);
    EXPECT(choose_fp8_tile(64 * 256, 256, 3072) == Fp8Tile::k256x128Pairs);
    EXPECT(choose_fp8_tile(1, 1, 8192) == Fp8Tile::k64x16);
    EXPECT(choose_fp8_tile(64, 1, 8192) == Fp8Tile::k64x64);
    EXPECT(choose_fp8_tile(4096, 1, 6144) == Fp8Tile::kRows128x256);
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

}  // namespace

int main() {
    test_fits();
    test_tiles_grow();
    test_tiles_of_experts();
    test_split_rows();
    return test::finish("choose_fp8");
}
