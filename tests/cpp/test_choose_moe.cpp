#include "cuda/kernels/moe/choose.h"
#include "tests/cpp/expect.h"

using namespace mmx;
using namespace mmx::cuda;

namespace {

MoeGateUpParams gate_up_params(int64_t num_tokens, int64_t hidden, int64_t inter) {
    MoeGateUpParams p{};
    p.num_tokens = num_tokens;
    p.topk = 4;
    p.num_local_experts = 128;
    p.hidden = p.x_stride = hidden;
    p.inter = inter;
    p.dtype = p.weight_dtype = DType::kBF16;
    return p;
}

MoeDownParams down_params(int64_t num_rows, int64_t hidden, int64_t inter) {
    MoeDownParams p{};
    p.num_rows = num_rows;
    p.num_local_experts = 128;
    p.hidden = hidden;
    p.inter = inter;
    p.dtype = p.weight_dtype = DType::kBF16;
    return p;
}

/// Tiles hold every row, none is empty, none is higher than allowed, and no tile more than needed.
void test_split_rows() {
    EXPECT(split_rows(0, 64).count == 0);
    EXPECT(split_rows(270, 160).count == 2 && split_rows(270, 160).height == 136);
    for (const int max_height : {8, 32, 64, 160})
        for (int rows = 1; rows <= 5000; ++rows) {
            const RowTiles tiles = split_rows(rows, max_height);
            EXPECT(tiles.height % 8 == 0 && tiles.height <= max_height);
            EXPECT(tiles.count * tiles.height >= rows);
            EXPECT((tiles.count - 1) * tiles.height < rows);
            EXPECT((tiles.count - 1) * max_height < rows);
        }
}

void test_fits() {
    EXPECT(sm90_bf16_fits(gate_up_params(1, 6144, 3072)));
    EXPECT(sm90_bf16_fits(gate_up_params(65536, 6144, 3072)));
    EXPECT(sm90_bf16_fits(down_params(65536 * 4, 6144, 3072)));
    EXPECT(sm90_bf16_fits(down_params(4, 3072, 192)));
    EXPECT(!sm90_bf16_fits(gate_up_params(1, 6144 + 32, 3072)));
    EXPECT(!sm90_bf16_fits(gate_up_params(1, 6144, 3072 + 8)));
    EXPECT(!sm90_bf16_fits(down_params(4, 6144 + 16, 3072)));
    MoeGateUpParams p = gate_up_params(1, 6144, 3072);
    p.weight_dtype = DType::kE4M3;
    EXPECT(!sm90_bf16_fits(p));
    p = gate_up_params(1, 6144, 3072);
    p.x_stride = 6148;
    EXPECT(!sm90_bf16_fits(p));
    p = gate_up_params(1, 6144, 3072);
    p.num_local_experts = kMoeMaxExperts + 1;
    EXPECT(!sm90_bf16_fits(p));
}

void test_bf16_tile() {
    EXPECT(choose_bf16_tile(4, 128) == MoeBf16Tile::k64x8);
    EXPECT(choose_bf16_tile(256, 128) == MoeBf16Tile::k64x32);
    EXPECT(choose_bf16_tile(2048 * 4, 128) == MoeBf16Tile::k256x96);
    EXPECT(choose_bf16_tile(4096 * 4, 128) == MoeBf16Tile::k256x160Cluster);
    EXPECT(choose_bf16_tile(8192 * 4, 128) == MoeBf16Tile::k128x304Cluster);
    // The choice only ever grows with the rows.
    for (const int64_t experts : {1, 16, 128, 256})
        for (int64_t rows = 1; rows < 70000; rows += 7)
            EXPECT(choose_bf16_tile(rows, experts) <= choose_bf16_tile(rows + 7, experts));
}

void test_copied_bytes() {
    EXPECT(bf16_copied_bytes(gate_up_params(8192, 6144, 3072)) == kMoeCountBytes + 8192 * 4 * 6144 * 2);
    EXPECT(bf16_copied_bytes(gate_up_params(4096, 6144, 3072)) == kMoeCountBytes + 4096 * 4 * 6144 * 2);
    EXPECT(bf16_copied_bytes(gate_up_params(1024, 6144, 3072)) == 0);
    EXPECT(bf16_copied_bytes(gate_up_params(65536, 6144, 3072)) == 0);  // would be 3.2 GB
    EXPECT(bf16_copied_bytes(gate_up_params(8192, 6144, 3072 + 8)) == 0);
    EXPECT(bf16_ticket_bytes(down_params(8192 * 4, 6144, 3072)) == kMoeTicketBytes);
    EXPECT(bf16_ticket_bytes(down_params(4096 * 4, 6144, 3072)) == 0);
}

MoeRouterParams router_params(int64_t num_tokens, int64_t num_experts) {
    MoeRouterParams p{};
    p.num_tokens = num_tokens;
    p.hidden = p.x_stride = 6144;
    p.num_experts = num_experts;
    p.topk = 4;
    p.dtype = DType::kBF16;
    return p;
}

void test_router_plan() {
    EXPECT(sm90_router_fits(router_params(1, 128)));
    EXPECT(!sm90_router_fits(router_params(1, kRouterMaxExperts + 1)));
    MoeRouterParams f32 = router_params(1, 128);
    f32.dtype = DType::kF32;
    EXPECT(!sm90_router_fits(f32));
    for (const int64_t experts : {1, 128, 130, 256})
        for (const int64_t tokens : {0, 1, 9, 65, 512, 513, 2048, 8192, 65536}) {
            const RouterPlan plan = make_router_plan(router_params(tokens, experts));
            EXPECT(kRouterSplits % plan.blocks == 0 && plan.blocks >= 2);
            // A block writes every sum of its own, unless it takes exactly half of them.
            EXPECT(plan.num_sums == (plan.few || plan.blocks == 2 ? 2 : kRouterSplits));
            EXPECT(plan.cluster == (tokens > 4 * kRouterTokens ? 2 : 1));
            EXPECT(plan.few == (tokens <= kRouterFewTokens));
            EXPECT(plan.sums % 256 == 0 && plan.sums >= (plan.few ? 0 : 3 * experts * 6144 * 2));
            EXPECT(plan.total == plan.sums + plan.num_sums * tokens * experts * 4);
        }
    EXPECT(make_router_plan(router_params(8192, 128)).blocks == 2);
    EXPECT(make_router_plan(router_params(1, 128)).blocks == kRouterSplits);
    MoePlanParams plan{};
    plan.num_tokens = 8, plan.topk = 4, plan.num_local_experts = 128;
    EXPECT(router_plans(router_params(8, 128), plan));
    EXPECT(!router_plans(router_params(kRouterPlanTokens + 1, 128), plan));
    plan.num_local_experts = kRouterPlanExperts;
    EXPECT(!router_plans(router_params(8, 128), plan));
    MoeRouterParams wide = router_params(1, 128);
    wide.hidden = 64 * kRouterFewChunks * kRouterSplits + 64;
    EXPECT(!make_router_plan(wide).few);
}

}  // namespace

int main() {
    test_split_rows();
    test_fits();
    test_bf16_tile();
    test_copied_bytes();
    test_router_plan();
    return test::finish("choose_moe");
}
