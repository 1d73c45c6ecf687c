#include "cuda/kernels/gemm/choose.h"
#include "tests/cpp/expect.h"

using namespace mmx;
using namespace mmx::cuda;

namespace {

LinearParams linear_params(int64_t m, int64_t n, int64_t k) {
    LinearParams p{};
    p.m = m;
    p.n = n;
    p.k = p.x_stride = k;
    p.dtype = p.out_dtype = DType::kBF16;
    return p;
}

void test_fits() {
    EXPECT(sm90_linear_fits(linear_params(1, 9856, 6144)));
    EXPECT(sm90_linear_fits(linear_params(1, 33, 64)));
    EXPECT(!sm90_linear_fits(linear_params(1, 64, 96)));
    LinearParams p = linear_params(1, 64, 64);
    p.x_stride = 68;
    EXPECT(!sm90_linear_fits(p));
    p = linear_params(1, 64, 64);
    p.dtype = DType::kF32;
    EXPECT(!sm90_linear_fits(p));
}

/// Tiles hold every row, none more than `tile_rows`; the ring fits; rows of x do not change the tiles.
void test_plan() {
    for (const int64_t multiprocessors : {132, 114, 7})
        for (const int64_t n : {1, 8, 33, 192, 6144, 9856, 16896, 16897, 24576, 200064})
            for (const int64_t m : {1, 8, 9, 16, 33, 1000}) {
                const LinearPlan plan = make_linear_plan(m, n, multiprocessors);
                const LinearPlan one = make_linear_plan(1, n, multiprocessors);
                EXPECT(plan.num_tiles == one.num_tiles && plan.tile_rows == one.tile_rows);
                EXPECT(plan.num_tiles % multiprocessors == 0 || plan.num_tiles < multiprocessors);
                EXPECT(plan.tile_rows <= LinearPlan::kMaxTileRows);
                EXPECT(plan.columns >= std::min<int64_t>(m, 64) && plan.weight_bytes % 1024 == 0);
                EXPECT(plan.stages >= 4 && plan.stages <= LinearPlan::kMaxStages);
                EXPECT(plan.stages * plan.stage_bytes() <= 140 * 1024);
                for (int64_t t = 0; t < plan.num_tiles; ++t) {
                    const int64_t rows = n * (t + 1) / plan.num_tiles - n * t / plan.num_tiles;
                    EXPECT(rows >= 1 && rows <= plan.tile_rows);
                }
            }
    EXPECT(make_linear_plan(1, 9856, 132).num_tiles == 132);
    EXPECT(make_linear_plan(1, 24576, 132).num_tiles == 264);
}

}  // namespace

int main() {
    test_fits();
    test_plan();
    return test::finish("choose_gemm");
}
