#include "cuda/kernels/attention/choose.h"
#include "cuda/kernels/selector/choose.h"
#include "tests/cpp/expect.h"

using namespace mmx;
using namespace mmx::cuda;

namespace {

SelectBlocksParams select_params(int64_t num_seqs, int64_t q_len, int64_t max_blocks) {
    SelectBlocksParams p{};
    p.num_tokens = num_seqs * q_len;
    p.num_seqs = num_seqs;
    p.max_seqlen_q = q_len;
    p.num_index_heads = 4;
    p.index_dim = p.block_size = 128;
    p.max_blocks_per_seq = max_blocks;
    p.topk = 16;
    p.local_blocks = 1;
    p.index_q_token_stride = 4 * 128;
    p.index_q_head_stride = 128;
    p.cache_block_stride = 128 * 128;
    p.dtype = p.cache_dtype = DType::kBF16;
    return p;
}

PagedAttentionParams paged_params(int64_t num_seqs, int64_t q_len, int64_t heads, int64_t kv_heads,
                                  int64_t max_blocks) {
    PagedAttentionParams p{};
    p.num_tokens = num_seqs * q_len;
    p.num_seqs = num_seqs;
    p.max_seqlen_q = q_len;
    p.num_heads = heads;
    p.num_kv_heads = kv_heads;
    p.head_dim = p.block_size = 128;
    p.max_blocks_per_seq = max_blocks;
    p.q_token_stride = p.out_token_stride = heads * 128;
    p.q_head_stride = p.out_head_stride = 128;
    p.k_cache_block_stride = p.v_cache_block_stride = kv_heads * 128 * 128;
    p.dtype = p.cache_dtype = DType::kBF16;
    return p;
}

SparseAttentionParams sparse_params(int64_t num_seqs, int64_t q_len, int64_t max_blocks) {
    return {.base = paged_params(num_seqs, q_len, 64, 4, max_blocks), .block_ids = nullptr, .topk = 16};
}

void test_select() {
    EXPECT(choose_select(select_params(1, 1, 256)) == SelectKernel::kSm90Decode);
    EXPECT(choose_select(select_params(128, 8, 1024)) == SelectKernel::kSm90Decode);
    EXPECT(choose_select(select_params(1, 8192, 1024)) == SelectKernel::kSm90PrefillLists);
    EXPECT(choose_select(select_params(1, 1, kSelectMaxBlocks + 1)) == SelectKernel::kSimple);
    SelectBlocksParams p = select_params(1, 1, 256);
    p.dtype = p.cache_dtype = DType::kF32;
    EXPECT(choose_select(p) == SelectKernel::kSimple);
    EXPECT(select_workspace_bytes(p) == 0);
    p = select_params(1, 1, 256);
    p.index_q_head_stride = 131;
    EXPECT(choose_select(p) == SelectKernel::kSimple);
    p = select_params(1, 300, 256);
    p.num_index_heads = 3;  // leaves a prefill tile partly empty
    EXPECT(choose_select(p) == SelectKernel::kSm90Decode);
    p.num_index_heads = 33;
    EXPECT(choose_select(p) == SelectKernel::kSimple);
    EXPECT(select_workspace_bytes(select_params(2, 3, 255)) == 2 * 3 * 4 * 256 * 4);
    EXPECT(select_max_tiles(select_params(2, 65, 256)) >= 4);
    // Up to a few MB a score per block, then lists whose size does not depend on the context.
    for (const DType pages : {DType::kBF16, DType::kE4M3}) {
        p = select_params(1, 8192, kSelectListBlocks - 1);
        p.cache_dtype = pages;
        EXPECT(choose_select(p) == SelectKernel::kSm90Prefill);
        EXPECT(select_workspace_bytes(p) == 8192 * 4 * kSelectListBlocks * 4);
        p.max_blocks_per_seq = kSelectListBlocks;
        EXPECT(choose_select(p) == SelectKernel::kSm90PrefillLists);
        const int64_t bytes = select_workspace_bytes(p);
        EXPECT(bytes >= (8192 / 64 + kSelectMaxPrefillGrid) * 256 * 16 * 8 && bytes < 10 << 20);
        p.max_blocks_per_seq = kSelectMaxBlocks;
        EXPECT(select_workspace_bytes(p) == bytes);
        p.topk = 2 * kSelectKept;
        EXPECT(choose_select(p) == SelectKernel::kSm90Prefill);
    }
    // Many sequences beside a prompt: K is read again for every few tokens of it.
    p = select_params(300, 1, 64);
    p.max_seqlen_q = 2048;
    p.num_tokens = 299 + 2048;
    EXPECT(choose_select(p) == SelectKernel::kSm90Decode);
    p = select_params(1, 1, 256);
    p.cache_dtype = DType::kE4M3;
    p.cache_block_stride = 128 * 128 + 8;  // the copy engine steps by 16 bytes
    EXPECT(choose_select(p) == SelectKernel::kSimple);
}

void test_sparse() {
    EXPECT(choose_sparse(sparse_params(1, 1, 256)) == AttentionKernel::kSm90Decode);
    EXPECT(choose_sparse(sparse_params(1, 8192, 1024)) == AttentionKernel::kSm90Prefill);
    EXPECT(choose_sparse(sparse_params(1, kPrefillMinTokens - 1, 64)) == AttentionKernel::kSm90Decode);
    EXPECT(sparse_workspace_bytes(sparse_params(0, 1, 0)) == 0);  // a rank without tokens
    EXPECT(paged_workspace_bytes(paged_params(0, 1, 64, 4, 0)) == 0);
    EXPECT(choose_sparse(sparse_params(128, 2, 1024)) == AttentionKernel::kSm90Decode);  // lists stay short
    // Decodes beside a long chunk do not keep it from its lists.
    SparseAttentionParams p = sparse_params(65, 1, 256);
    p.base.num_tokens = 64 + 2048;
    p.base.max_seqlen_q = 2048;
    EXPECT(choose_sparse(p) == AttentionKernel::kSm90Prefill);
    p = sparse_params(1, 1, 256);
    p.topk = kDecodeMaxTopk + 1;
    EXPECT(choose_sparse(p) == AttentionKernel::kSimple);
    p = sparse_params(1, 1, 256);
    p.base.num_heads = 17 * 4;
    EXPECT(choose_sparse(p) == AttentionKernel::kSimple);
    EXPECT(sparse_workspace_bytes(sparse_params(8, 1, 256)) == 0);
    p = sparse_params(1, 8192, 1024);
    p.base.cache_dtype = DType::kE4M3;
    EXPECT(choose_sparse(p) == AttentionKernel::kSm90Prefill);
    // Under fixed_split decodes take a kernel of their own, with bf16 pages few of them; other models' heads
    // too.
    for (const bool codes : {false, true})
        for (const int64_t tokens : {1, 24, 25, 8192}) {
            p = sparse_params(1, tokens, 1024);
            p.base.cache_dtype = codes ? DType::kE4M3 : DType::kBF16;
            p.base.fixed_split = true;
            const bool decodes = tokens <= (codes ? 25 : 24);
            EXPECT(choose_sparse(p) ==
                   (decodes ? AttentionKernel::kSm90Decode : AttentionKernel::kSm90Prefill));
            EXPECT((sparse_workspace_bytes(p) == 0) == decodes);
            p.topk = kFixedChoices + 1;
            EXPECT(choose_sparse(p) == AttentionKernel::kSm90Prefill);
            p.base.num_heads = 6 * 4;
            EXPECT(choose_sparse(p) == AttentionKernel::kSm90Decode);
            EXPECT((sparse_decode_split(p, 132) == SparseSplit{kFixedSplits, 1}));
            EXPECT(!few_pages(p, sparse_decode_split(p, 132)));
        }
}

/// Every split of a token's blocks is a cluster that Hopper can launch, and the chip holds all at once.
void test_sparse_splits() {
    for (const int64_t topk : {1, 5, 16}) {
        for (int64_t tokens = 1; tokens <= 300; ++tokens) {
            SparseAttentionParams p = sparse_params(tokens, 1, 256);
            p.topk = topk;
            const SparseSplit split = sparse_decode_split(p, 132);
            EXPECT(split.blocks >= 1 && split.blocks <= topk);
            EXPECT(split.blocks == 1 || tokens * 4 * split.blocks <= 132 * split.per_multiprocessor);
            EXPECT(split.blocks > 1 || topk == 1 || tokens * 4 > 66);
            EXPECT(few_pages(p, split) == (topk == 16 && tokens == 1));
            p.base.cache_dtype = DType::kE4M3;
            EXPECT(few_pages(p, sparse_decode_split(p, 132)) == (topk == 16 && tokens <= 3));
        }
    }
}

void test_prefill_plan() {
    for (const int64_t tokens : {256, 2048, 2049, 8192}) {
        const SparseAttentionParams p = sparse_params(1, tokens, 1024);
        const PrefillPlan plan = make_prefill_plan(p);
        EXPECT(plan.num_slabs * plan.slab_tokens >= tokens);
        EXPECT(plan.slab_tokens <= kSlabTokens);
        // The worst case: every choice alone in its bucket needs a row tile and an item of its own.
        const int64_t chosen = plan.slab_tokens * 4 * 16, buckets = 4 * 1024;
        EXPECT(plan.slab_entries >= chosen + 3 * std::min(buckets, chosen));
        EXPECT(plan.slab_items >= std::min(buckets, chosen));
        EXPECT(plan.counts % 256 == 0 && plan.partials % 256 == 0);
        EXPECT(plan.total >= plan.partials + chosen * kPartialBytes);
        EXPECT(sparse_workspace_bytes(p) == plan.total);
        EXPECT(plan.unions && plan.buckets);
    }
    // Under fixed_split prompts are sorted into buckets; of decodes nothing is listed.
    for (const auto& [seqs, tokens] : {std::pair{1, 8192}, {1, 1}, {100, 1}, {64, 8}, {2000, 1}}) {
        SparseAttentionParams p = sparse_params(seqs, tokens, 1024);
        p.base.fixed_split = true;
        const PrefillPlan plan = make_prefill_plan(p);
        EXPECT(!plan.unions && plan.buckets == (tokens == 8192));
        if (plan.buckets) continue;
        EXPECT(plan.slab_entries == 0 && plan.slab_items == 0);
        EXPECT(plan.total >= plan.partials + plan.slab_tokens * 4 * 16 * kPartialBytes);
    }
}

void test_dense_plan() {
    for (const int64_t group : {1, 3, 6, 16})
        for (const int64_t seqs : {1, 5, 300}) {
            const PagedAttentionParams p = paged_params(seqs, 130, 4 * group, 4, 256);
            const DensePlan plan = make_dense_plan(p);
            EXPECT(plan.tile_tokens * group <= kDenseTileRows);
            EXPECT((plan.tile_tokens + 1) * group > kDenseTileRows);
            EXPECT(plan.max_tiles >= seqs * ((130 + plan.tile_tokens - 1) / plan.tile_tokens));
            EXPECT(paged_workspace_bytes(p) == plan.total);
        }
    // A head's K and V of 256 blocks are 16 MB.
    EXPECT(make_dense_plan(paged_params(1, 64, 64, 4, 64)).shared_heads == 4);
    EXPECT(make_dense_plan(paged_params(1, 64, 64, 4, 256)).shared_heads == 2);
    EXPECT(make_dense_plan(paged_params(1, 64, 36, 3, 256)).shared_heads == 1);
    EXPECT(make_dense_plan(paged_params(1, 64, 64, 4, 8192)).shared_heads == 1);
}

void test_fixed_parts() {
    PagedAttentionParams p = paged_params(8, 1, 64, 4, 1024);
    p.fixed_split = true;
    EXPECT(choose_paged(p) == AttentionKernel::kSm90Prefill);
    DensePlan plan = make_dense_plan(p);
    EXPECT(plan.parts == DensePlan::kJoined && plan.max_parts == 1024 / kPartPages);
    EXPECT(plan.max_tiles >= 8 * plan.max_parts);  // a tile per part
    EXPECT(plan.tile_tokens == 4);
    EXPECT(plan.total >= 8 * 64 * plan.max_parts * (128 + 2) * 4);
    EXPECT(plan.part_stats % 8 == 0 && plan.part_sums % 16 == 0);
    p = paged_params(1, 8192, 64, 4, 1024);
    p.fixed_split = true;
    plan = make_dense_plan(p);
    EXPECT(plan.parts == DensePlan::kInTurn);
    EXPECT(plan.total == plan.totals + kDenseMaxGrid * kDenseTileRows * 128 * 4 && plan.total < 10 << 20);
    p = paged_params(2048, 8, 64, 4, 1024);  // parts of all drafts would take more than the limit
    p.fixed_split = true;
    EXPECT(make_dense_plan(p).parts == DensePlan::kInTurn);
    EXPECT(make_dense_plan(paged_params(1, 8192, 64, 4, 1024)).parts == DensePlan::kNone);
}

void test_paged() {
    EXPECT(choose_paged(paged_params(32, 1, 48, 8, 256)) == AttentionKernel::kSm90Decode);
    EXPECT(choose_paged(paged_params(32, 8, 64, 4, 256)) == AttentionKernel::kSm90Decode);
    EXPECT(choose_paged(paged_params(1, 2048, 48, 8, 256)) == AttentionKernel::kSm90Prefill);
    EXPECT(choose_paged(paged_params(1, 8192, 64, 4, 2048)) == AttentionKernel::kSm90Prefill);
    // So many drafts share K and V in row tiles; single tokens have nothing to share.
    EXPECT(choose_paged(paged_params(2048, 8, 64, 4, 256)) == AttentionKernel::kSm90Prefill);
    EXPECT(choose_paged(paged_params(16384, 1, 64, 4, 256)) == AttentionKernel::kSm90Decode);
    for (const int64_t seqs : {1, 8, 32, 128})
        for (const int64_t blocks : {1, 2, 32, 256, 1024, 8192}) {
            const PagedAttentionParams p = paged_params(seqs, 1, 64, 4, blocks);
            EXPECT(choose_paged(p) == AttentionKernel::kSm90Decode);
            const int64_t partials = kPagedDecodeBlocks * 2 * kDecodePartialFloats * 4;
            EXPECT(paged_workspace_bytes(p) == (blocks == 1 ? 0 : partials));
        }
}

}  // namespace

int main() {
    test_select();
    test_sparse();
    test_sparse_splits();
    test_prefill_plan();
    test_dense_plan();
    test_fixed_parts();
    test_paged();
    return test::finish("choose");
}
