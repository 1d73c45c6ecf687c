from __future__ import annotations

import pytest
import torch

from cases import load
from mmx import ops
from mmx.ops import reference
from ops.compare import POISON, assert_equal

DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("embedding", "embedding"))
def test_embedding(dims, dtype, device, rng):
    tokens, hidden, num_rows, first_row = (
        dims[name] for name in ("num_tokens", "hidden", "num_rows", "first_row")
    )
    weight = torch.randn(num_rows, hidden, generator=rng).to(dtype).to(device)
    # Ids of a larger vocabulary: some rows live on other shards.
    ids = torch.randint(0, first_row + 2 * num_rows + 1, (tokens,), generator=rng).to(device)
    expected = reference.embedding(weight, ids, first_row)
    assert_equal(ops.embedding(weight, ids, first_row), expected)
    wide = torch.full((tokens, hidden + 3), POISON, dtype=dtype, device=device)
    ops.embedding(weight, ids, first_row, out=wide[:, :hidden])
    assert_equal(wide[:, :hidden], expected)
    assert bool(wide[:, hidden:].isnan().all())


def test_embedding_borders_of_a_shard(device):
    weight = torch.tensor([[1.0], [2.0], [3.0]], device=device)
    ids = torch.tensor([9, 10, 12, 13, -1, 2**40, -(2**40)], device=device)
    assert_equal(ops.embedding(weight, ids, 10)[:, 0], torch.tensor([0.0, 1, 3, 0, 0, 0, 0]))


def test_shards_sum_to_the_whole_table(device, rng):
    weight = torch.randn(10, 6, generator=rng).to(device)
    ids = torch.randint(0, 10, (40,), generator=rng).to(device)
    parts = [ops.embedding(weight[a:b], ids, a) for a, b in ((0, 4), (4, 8), (8, 10))]
    assert_equal(sum(parts), weight[ids])


def test_embedding_does_not_depend_on_threads(rng):
    weight, ids = torch.randn(50, 777, generator=rng), torch.randint(0, 60, (301,), generator=rng)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(ops.embedding(weight, ids))
    torch.set_num_threads(1)
    assert_equal(results[1], results[0])


def test_embedding_names_what_is_wrong(device):
    weight, ids = torch.zeros(4, 8, device=device), torch.zeros(3, dtype=torch.int64, device=device)
    with pytest.raises(RuntimeError, match="embedding: ids must be int64, got int32"):
        ops.embedding(weight, ids.int())
    with pytest.raises(
        RuntimeError, match=r"embedding: out must be \[num_tokens=3, hidden=8\], got \[2, 8\]"
    ):
        ops.embedding(weight, ids, out=torch.zeros(2, 8, device=device))
    with pytest.raises(RuntimeError, match=r"the last 2 dimension\(s\) of weight must be contiguous"):
        ops.embedding(torch.zeros(4, 16, device=device)[:, :8], ids)


def test_opcheck(device, rng):
    weight, ids = torch.randn(4, 8, generator=rng).to(device), torch.tensor([0, 3, 9], device=device)
    torch.library.opcheck(torch.ops.mmx.embedding.default, (torch.empty(3, 8, device=device), weight, ids, 0))
