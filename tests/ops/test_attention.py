from __future__ import annotations

import pytest
import torch

from cases import load
from mmx import ops
from mmx.ops import reference
from ops.compare import assert_close_to_truth, assert_equal
from ops.paged import PagedBatch, draw_batch, draw_lens, make_batch

DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]
SPARSE = [pytest.param(False, id="dense"), pytest.param(True, id="sparse")]


def make(
    batch: PagedBatch, dims: dict[str, int], dtype: torch.dtype, device: torch.device, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [num_tokens, num_heads, head_dim] with a gap after each token and head, k_cache, v_cache."""
    wide = torch.randn(batch.num_tokens, dims["num_heads"] + 1, dims["head_dim"] + 3, generator=rng)
    q = wide.to(dtype).to(device)[:, : dims["num_heads"], : dims["head_dim"]]
    shape = (batch.num_blocks, dims["num_kv_heads"], batch.block_size, dims["head_dim"])
    k, v = (batch.poison_unused(torch.randn(shape, generator=rng), 2).to(dtype).to(device) for _ in range(2))
    return q, k, v


def random_blocks(batch: PagedBatch, num_kv_heads: int, topk: int, rng: torch.Generator) -> torch.Tensor:
    """[num_tokens, num_kv_heads, topk] like the selector's: the token's own block and random earlier ones."""
    ids = torch.full((batch.num_tokens, num_kv_heads, topk), -1, dtype=torch.int32)
    rows = iter(ids)
    for q_len, seq_len in zip(batch.q_lens, batch.seq_lens, strict=True):
        for position in range(seq_len - q_len, seq_len):
            own = position // batch.block_size
            for row in next(rows):
                earlier = torch.randperm(own, generator=rng)[: topk - 1]
                chosen = torch.cat([earlier, torch.tensor([own])]).sort().values.int()
                row[: chosen.numel()] = chosen
    return ids


def widened(args: tuple) -> tuple:
    return tuple(a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)


def check(name: str, *args: object) -> torch.Tensor:
    out = getattr(ops, name)(*args)
    run = getattr(reference, name)
    assert_close_to_truth(out, run(*widened(args)), run(*args))
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("attention", "paged_attention"))
def test_paged_attention(dims, dtype, device, rng):
    batch = draw_batch(dims, rng)
    args = make(batch, dims, dtype, device, rng)
    check("paged_attention", *args, *batch.arguments(device), dims["head_dim"] ** -0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lens", "heads", "kv_heads", "max_len"),
    [
        pytest.param([(1, 1000), (1, 7), (1, 129)], 12, 2, 9000, id="decode-in-parts"),
        pytest.param([(1, 200)] * 70, 4, 4, 300, id="decode-whole"),
        pytest.param([(70, 100), (1, 3)], 6, 2, 128, id="prompt"),
    ],
)
def test_paged_attention_gives_codes_of_its_result(lens, heads, kv_heads, max_len, dtype, device, rng):
    batch = make_batch(lens, 128, rng)
    dims = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": 128}
    args = make(batch, dims, dtype, device, rng)
    args = (args[0].contiguous(), *args[1:])
    table, *where = batch.arguments(device)
    table = torch.nn.functional.pad(table, (0, -(-max_len // 128) - table.shape[1]))
    tokens, width = batch.num_tokens, heads * 128
    codes = torch.empty(tokens, width, dtype=torch.float8_e4m3fn, device=device)
    scale = torch.empty(tokens, heads, device=device)
    out = ops.paged_attention(*args, table, *where, 0.1, codes=codes, codes_scale=scale)
    assert_equal(out, ops.paged_attention(*args, table, *where, 0.1), name="out")
    same, same_scale = ops.fp8_quantize(out.flatten(1))
    assert_equal(codes.float(), same.float(), name="codes")
    assert_equal(scale, same_scale, name="scale")


def test_paged_attention_refuses_codes_of_part_of_a_group(device, rng):
    batch = make_batch([(1, 5)], 16, rng)
    args = make(batch, {"num_heads": 3, "num_kv_heads": 1, "head_dim": 64}, torch.float32, device, rng)
    codes = torch.empty(1, 192, dtype=torch.float8_e4m3fn, device=device)
    with pytest.raises(RuntimeError, match="paged_attention: codes need heads side by side, 128 columns"):
        ops.paged_attention(
            *args, *batch.arguments(device), 0.1, codes=codes, codes_scale=torch.empty(1, 1, device=device)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("attention", "sparse_attention"))
def test_sparse_attention(dims, dtype, device, rng):
    batch = draw_batch(dims, rng)
    args = make(batch, dims, dtype, device, rng)
    ids = random_blocks(batch, dims["num_kv_heads"], dims["topk"], rng).to(device)
    check("sparse_attention", *args, ids, *batch.arguments(device), dims["head_dim"] ** -0.5)


@pytest.mark.parametrize("sparse", SPARSE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_shapes(dtype, sparse, device, rng):
    """50 shapes for each dtype and op, 200 in all."""

    def pick(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=rng))]

    for _ in range(50):
        kv_heads, block_size, topk = pick(1, 2, 3), pick(1, 4, 8, 16, 20), pick(1, 2, 4, 16)
        dims = {"num_kv_heads": kv_heads, "num_heads": kv_heads * pick(1, 2, 6, 7, 16)}
        dims["head_dim"] = pick(1, 8, 16, 24, 32, 40, 64, 100, 128)
        batch = make_batch(draw_lens(pick(1, 2, 5), pick(1, 3, 17), pick(17, 33, 100), rng), block_size, rng)
        args = make(batch, dims, dtype, device, rng)
        tail = (*batch.arguments(device), dims["head_dim"] ** -0.5)
        if sparse:
            check("sparse_attention", *args, random_blocks(batch, kv_heads, topk, rng).to(device), *tail)
        else:
            check("paged_attention", *args, *tail)


DIMS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32}


@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_with_every_block_is_dense(dtype, device, rng):
    batch = make_batch([(40, 61), (1, 64), (7, 7)], 8, rng)
    args, tail = make(batch, DIMS, dtype, device, rng), (*batch.arguments(device), 0.2)
    dense = ops.paged_attention(*args, *tail)
    sparse = ops.sparse_attention(*args, random_blocks(batch, 2, 9, rng).to(device), *tail)
    assert_equal(sparse, dense) if device.type == "cpu" else assert_close_to_truth(sparse, dense, dense)


@pytest.mark.parametrize("sparse", SPARSE)
@pytest.mark.parametrize(("block_size", "context"), [(8, 61), (128, 4500)])
def test_row_does_not_depend_on_its_batch(block_size, context, sparse, device, rng):
    """Whole prompt = chunks = single tokens = alone, bit for bit; 4500 positions are three segments."""
    batch = make_batch([(1, 30), (50, context), (20, 20)], block_size, rng)
    q, k, v = make(batch, DIMS, torch.float32, device, rng)
    ids = random_blocks(batch, 2, 6, rng).to(device)

    def run(part: PagedBatch, rows: slice) -> torch.Tensor:
        tail = (*part.arguments(device), 0.2)
        if sparse:
            return ops.sparse_attention(q[rows], k, v, ids[rows], *tail)
        return ops.paged_attention(q[rows], k, v, *tail)

    whole = run(batch, slice(0, batch.num_tokens))
    rows = batch.rows(1)
    assert_equal(run(batch.take(1, 50, context), rows), whole[rows], name="alone")
    done = 0
    for size in (1, 13, 33, 1, 1, 1):
        part = slice(rows.start + done, rows.start + done + size)
        chunk = run(batch.take(1, size, context - 50 + done + size), part)
        assert_equal(chunk, whole[part], name=f"chunk of {size} after {done}")
        done += size


@pytest.mark.parametrize("sparse", SPARSE)
def test_thread_count_and_repetition(sparse, rng):
    batch = make_batch([(30, 2500), (1, 4300), (1, 7)], 128, rng)
    args = make(batch, DIMS, torch.bfloat16, torch.device("cpu"), rng)
    blocks = (random_blocks(batch, 2, 16, rng),) if sparse else ()
    op = ops.sparse_attention if sparse else ops.paged_attention
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(op(*args, *blocks, *batch.arguments(torch.device("cpu")), 0.1))
    finally:
        torch.set_num_threads(threads)
    assert_equal(results[1], results[0])
    assert_equal(results[2], results[0])


@pytest.mark.parametrize("magnitude", [0.0, 1e-30, 30.0, 1e4])
def test_score_range(magnitude, device, rng):
    """Flat to one-hot softmax; scores far beyond what exp of an unshifted score would bear."""
    batch = make_batch([(20, 40), (1, 33)], 8, rng)
    q, k, v = make(batch, DIMS, torch.float32, device, rng)
    check("paged_attention", (q * magnitude).contiguous(), k, v, *batch.arguments(device), 1.0)


def test_nan_reaches_only_the_rows_that_see_it(device, rng):
    batch = make_batch([(12, 24)], 8, rng)
    q, k, v = make(batch, DIMS, torch.float32, device, rng)
    k[batch.block_table[0, 2].item(), 0, 1] = float("nan")  # position 17 of KV head 0, that is query row 5
    out = ops.paged_attention(q, k, v, *batch.arguments(device), 0.2)
    assert out[5:, :2].isnan().all()
    assert not out[:5].isnan().any()
    assert not out[:, 2:].isnan().any()


@pytest.mark.parametrize("sparse", SPARSE)
def test_names_what_is_wrong(sparse, device, rng):
    batch = make_batch([(2, 9)], 8, rng)
    q, k, v = make(batch, DIMS, torch.float32, device, rng)
    blocks = (random_blocks(batch, 2, 3, rng).to(device),) if sparse else ()
    name = "sparse_attention" if sparse else "paged_attention"
    op, tail = getattr(ops, name), (*blocks, *batch.arguments(device), 0.2)
    with pytest.raises(RuntimeError, match=rf"{name}: v_cache must be \[.*head_dim=32\], got"):
        op(q, k, v[..., :31].contiguous(), *tail)
    with pytest.raises(RuntimeError, match=f"{name}: num_heads=3 must be a multiple of num_kv_heads=2"):
        op(q[:, :3], k, v, *tail)
    with pytest.raises(RuntimeError, match=f"{name}: k_cache must be float32 or float8_e4m3fn, got bfloat16"):
        op(q, k.bfloat16(), v.bfloat16(), *tail)
    if sparse:
        with pytest.raises(RuntimeError, match=rf"{name}: block_ids must be \[num_tokens=2, num_kv"):
            op(q, k, v, blocks[0][:, :1], *tail[1:])


@pytest.mark.parametrize("sparse", SPARSE)
def test_opcheck(sparse, device, rng):
    batch = make_batch([(2, 9), (1, 5)], 8, rng)
    q, k, v = make(batch, DIMS, torch.float32, device, rng)
    blocks = (random_blocks(batch, 2, 3, rng).to(device),) if sparse else ()
    block_table, cu_seqlens_q, seq_lens, max_seqlen_q = batch.arguments(device)
    name = "sparse_attention" if sparse else "paged_attention"
    tensors = (torch.empty(q.shape, device=device), q, k, v, *blocks, block_table, cu_seqlens_q, seq_lens)
    scratch = ops._lib.workspace(name, device, *tensors, max_seqlen_q, 0.2)
    op = getattr(torch.ops.mmx, name).default
    torch.library.opcheck(op, (*tensors, scratch, max_seqlen_q, 0.2))


def test_no_tokens(device):
    """A rank that only takes part in the experts has none; sizes of real models, which take other kernels."""
    q, pages = torch.empty(0, 64, 128, device=device), torch.zeros(4, 4, 128, 128, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        table = torch.zeros(0, 1, dtype=torch.int32, device=device)
        where = (table, torch.zeros(1, dtype=torch.int32, device=device), table[:, 0], 0)
        parts = q.to(dtype), pages.to(dtype), pages.to(dtype)
        blocks = ops.select_blocks(q[:, :4].to(dtype), pages[:, 0].to(dtype), *where, 16, 0, 1)
        assert blocks.shape == (0, 4, 16)
        assert ops.sparse_attention(*parts, blocks, *where, 0.1).shape == (0, 64, 128)
        assert ops.paged_attention(*parts, *where, 0.1).shape == (0, 64, 128)
