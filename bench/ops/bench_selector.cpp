#include "bench/common/paged.h"

using namespace mmx;

MMX_BENCH(select_blocks) {
    for (const bench::Case& c : b.cases("selector", "select_blocks"))
        for (const auto& [dtype, pages] : bench::page_types(b)) {
            const bench::PagedBatch batch(b, c);
            const int64_t heads = c["num_index_heads"], dim = c["index_dim"], topk = c["topk"];
            const int64_t page_size = batch.block_size * dim;
            const bench::Buffer q = b.randn(dtype, batch.num_tokens * heads * dim);
            const bench::Buffer k = b.randn(pages, batch.num_blocks * page_size);
            const bench::Buffer ids = b.empty(DType::kI32, batch.num_tokens * heads * topk);
            SelectBlocksParams p{.block_ids = ids.as<int32_t>(),
                                 .index_q = q.as(),
                                 .index_k_cache = k.as(),
                                 .block_table = batch.block_table.as<int32_t>(),
                                 .cu_seqlens_q = batch.cu_seqlens_q.as<int32_t>(),
                                 .seq_lens = batch.seq_lens.as<int32_t>(),
                                 .workspace = nullptr,
                                 .workspace_bytes = 0,
                                 .num_tokens = batch.num_tokens,
                                 .num_seqs = batch.num_seqs,
                                 .num_index_heads = heads,
                                 .index_dim = dim,
                                 .num_blocks = batch.num_blocks,
                                 .block_size = batch.block_size,
                                 .max_blocks_per_seq = batch.blocks_per_seq,
                                 .topk = topk,
                                 .init_blocks = c["init_blocks"],
                                 .local_blocks = c["local_blocks"],
                                 .max_seqlen_q = batch.q_len,
                                 .index_q_token_stride = heads * dim,
                                 .index_q_head_stride = dim,
                                 .cache_block_stride = page_size,
                                 .block_table_stride = batch.blocks_per_seq,
                                 .dtype = dtype,
                                 .cache_dtype = pages,
                                 .fixed_split = false};
            p.workspace_bytes = b.ops().select_blocks_workspace ? b.ops().select_blocks_workspace(p) : 0;
            const bench::Buffer workspace = b.empty(DType::kI8, std::max<int64_t>(1, p.workspace_bytes));
            p.workspace = p.workspace_bytes ? workspace.as() : nullptr;
            const bench::Buffer copied = b.empty(pages, batch.num_blocks * page_size);
            const double num_keys =
                static_cast<double>(batch.num_tokens) *
                (static_cast<double>(batch.seq_len) - static_cast<double>(batch.q_len - 1) / 2);
            bench::Work work{.bytes = static_cast<double>(q.bytes() + k.bytes() + ids.bytes()),
                             .flops = 2.0 * num_keys * static_cast<double>(heads * dim),
                             .math = DType::kF32,
                             .out = &ids};
            if (batch.q_len == 1) {
                work.baseline = "copy of index-K";
                work.baseline_run = [&] { b.backend().copy(copied.as(), k.as(), k.bytes()); };
            }
            b.run("select_blocks", c, pages, work, b.ops().select_blocks, p);
        }
}
