#pragma once

#include "ascend/common/kernel.h"
#include "ascend/common/tiling.h"
#include "cpp/core/params/attention.h"

/// What cube and vector cores of the attention kernels agree on: tasks, chunks, and where they meet in
/// memory.
namespace mmx::ascend {

constexpr uint32_t kRows = 128, kChunk = 512, kMaxHeadDim = 128, kMaxSplits = 16;
constexpr int64_t kScoreBytes = int64_t{kRows} * kChunk * 4, kWeightBytes = int64_t{kRows} * kChunk * 2,
                  kProductBytes = int64_t{kRows} * kMaxHeadDim * 4;
/// Of one split of one task: its output before division, and its maxima and sums as blocks of 8.
constexpr int64_t kPartBytes = kProductBytes + 2 * int64_t{kRows} * kBlock;
constexpr uint16_t kScoresReady = 0, kWeightsReady = 1, kProductReady = 2;

struct AttentionTiling {
    PagedAttentionParams p;
    const int32_t* block_ids;  // [num_tokens, num_kv_heads, topk]; null: dense
    int64_t topk;
    uint32_t group, tile_tokens, num_splits;
    int64_t score_offset, weight_offset, product_offset, part_offset, workspace_bytes;
    int num_blocks;
};

/// Query tokens [token, token + tokens) at positions from `position` on, under one KV head, over the blocks
/// [begin, end) of their list; `part` numbers the task's split among all.
struct AttentionTask {
    int64_t seq, token, position, head, part;
    int64_t list;  // of block_ids; -1: the list is 0, 1, 2, ...
    uint32_t tokens, begin, end;
};

/// Blocks [begin, end) of a task's list that pass through in one step.
struct AttentionChunk {
    AttentionTask task;
    uint32_t begin, end;
    bool first, last;
    int64_t number, task_number;  // of this core
};

__aicore__ inline int64_t logical_block(const AttentionTiling& t, const AttentionTask& task, uint32_t index) {
    return task.list < 0 ? index : global<int32_t>(t.block_ids).GetValue(task.list + index);
}

/// Keys of a logical block that the task's last token sees.
__aicore__ inline uint32_t visible_keys(const AttentionTiling& t, const AttentionTask& task, int64_t block) {
    const int64_t end = task.position + task.tokens - block * t.p.block_size;
    return static_cast<uint32_t>(most<int64_t>(0, least<int64_t>(end, t.p.block_size)));
}

/// Calls f(task) for the tasks of worker `index` of `count`. `splits`: parts per task.
template <class F>
__aicore__ inline void each_task(const AttentionTiling& t, int64_t index, int64_t count, uint32_t splits,
                                 F&& f) {
    const GlobalTensor<int32_t> bounds = global<int32_t>(t.p.cu_seqlens_q),
                                lens = global<int32_t>(t.p.seq_lens);
    int64_t done = 0;
    for (int64_t seq = 0; seq < t.p.num_seqs; ++seq) {
        const int64_t first_token = bounds.GetValue(seq), q_len = bounds.GetValue(seq + 1) - first_token;
        if (q_len == 0) continue;
        const int64_t position = lens.GetValue(seq) - q_len,
                      tiles = (q_len + t.tile_tokens - 1) / t.tile_tokens;
        const int64_t units = t.p.num_kv_heads * tiles * splits;
        for (int64_t unit = (index - done % count + count) % count; unit < units; unit += count) {
            const int64_t tile = unit / splits % tiles;
            AttentionTask task;
            task.seq = seq;
            task.head = unit / splits / tiles;
            task.part = done + unit;
            task.tokens = static_cast<uint32_t>(least<int64_t>(t.tile_tokens, q_len - tile * t.tile_tokens));
            task.token = first_token + tile * t.tile_tokens;
            task.position = position + tile * t.tile_tokens;
            task.list = -1;
            uint32_t blocks = static_cast<uint32_t>((task.position + task.tokens - 1) / t.p.block_size + 1);
            if (t.block_ids) {
                task.list = (task.token * t.p.num_kv_heads + task.head) * t.topk;
                const GlobalTensor<int32_t> ids = global<int32_t>(t.block_ids)[task.list];
                for (blocks = 0; blocks < t.topk && ids.GetValue(blocks) >= 0;) ++blocks;
            }
            const Share part = share(blocks, unit % splits, splits);
            task.begin = static_cast<uint32_t>(part.begin);
            task.end = static_cast<uint32_t>(part.end);
            f(task);
        }
        done += units;
    }
}

/// Calls f(chunk) for the chunks of core `core` in the order in which cube and vector cores take them.
template <class F>
__aicore__ inline void each_chunk(const AttentionTiling& t, int64_t core, F&& f) {
    const uint32_t step = kChunk / static_cast<uint32_t>(t.p.block_size);
    int64_t number = 0, task_number = 0;
    each_task(t, core, t.num_blocks, t.num_splits, [&](const AttentionTask& task) MMX_DEVICE_LAMBDA {
        // Why the grid: chunks lie at the same positions whatever the split is.
        for (uint32_t begin = task.begin; begin < task.end;) {
            const uint32_t end = least((begin / step + 1) * step, task.end);
            f(AttentionChunk{task, begin, end, begin == task.begin, end == task.end, number++, task_number});
            begin = end;
        }
        if (task.begin < task.end) ++task_number;
    });
}

template <class T>
__aicore__ inline GlobalTensor<T> exchange(const AttentionTiling& t, int64_t offset, int64_t slot_bytes,
                                           int64_t core, int64_t number) {
    return global<T>(t.p.workspace)[(offset + (2 * core + number % 2) * slot_bytes) / sizeof(T)];
}

}  // namespace mmx::ascend
