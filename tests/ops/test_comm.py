from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cases import load
from mmx import ops
from mmx.distributed.peers import Peers
from mmx.ops import reference
from ops.compare import assert_close_to_truth, assert_equal, strided
from ops.ranks import connect, mirror, on_all_ranks

DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]
EPS = 1e-6


def words(hidden: int, dtype: torch.dtype) -> int:
    return hidden * dtype.itemsize // 4


def make(dims: dict[str, int], dtype: torch.dtype, device: torch.device, rng: torch.Generator) -> tuple:
    """The ranks' parts, the residual stream and the norm's weight."""
    shape = (dims["num_tokens"], dims["hidden"])
    parts = [torch.randn(shape, generator=rng).to(dtype).to(device) for _ in range(dims["num_ranks"])]
    residual = torch.randn(shape, generator=rng).to(dtype).to(device)
    return parts, residual, (torch.rand(shape[1], generator=rng) - 0.5).to(dtype).to(device)


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("comm", "all_reduce_add_rms_norm"))
def test_all_reduce_add_rms_norm(dims, dtype, gemma, device, rng):
    """As the sum and then ``add_rms_norm``, bit for bit; the same on every rank; several times in a row."""
    peers = connect(dims["num_ranks"], dims["num_tokens"] + 1, words(dims["hidden"], dtype) + 2, device)
    for _ in range(3):
        parts, residual, weight = make(dims, dtype, device, rng)
        total = sum((part.float() for part in parts[1:]), parts[0].float()).to(dtype)
        expected_sum = residual + total
        expected = ops.add_rms_norm(residual.clone(), total, weight, EPS, gemma)
        parts = [strided(part, 8) for part in parts]
        streams, outs = [residual.clone() for _ in parts], [torch.empty_like(residual) for _ in parts]
        # The first call is alone: a kernel is loaded on first use, for which no other one may be waiting.
        quantize = dims["hidden"] % 128 == 0
        expected_codes = ops.fp8_quantize(expected) if quantize else ()
        alone = ops.all_reduce_add_rms_norm(residual.clone(), total, weight, EPS, gemma, quantize=quantize)
        for got, wanted in zip(alone, (expected, *expected_codes), strict=True):
            assert_equal(got.float(), wanted.float(), name="the only rank")
        if len(peers) > 1:

            def call(
                place: Peers,
                rank: int,
                parts=parts,
                streams=streams,
                outs=outs,
                weight=weight,
                quantize=quantize,
            ) -> tuple[torch.Tensor, ...]:
                return ops.all_reduce_add_rms_norm(
                    streams[rank], parts[rank], weight, EPS, gemma, *place, quantize, out=outs[rank]
                )[1:]

            found = on_all_ranks(peers, call)
            for stream, out, codes in zip(streams, outs, found, strict=True):
                assert_equal(stream, expected_sum, name="residual")
                assert_equal(out, expected)
                for got, wanted in zip(codes, expected_codes, strict=True):
                    assert_equal(got.float(), wanted.float(), name="codes and scale")
        truth = reference.rms_norm(expected_sum.double(), weight, EPS, gemma)
        assert_close_to_truth(expected, truth, reference.rms_norm(expected_sum, weight, EPS, gemma))


def test_the_reference_speaks_with_the_kernel(rng):
    """One rank of each: words and their numbers are the same."""
    dims, dtype = {"num_tokens": 3, "num_ranks": 2, "hidden": 64}, torch.bfloat16
    peers = connect(2, 4, 32, torch.device("cpu"))
    parts, residual, weight = make(dims, dtype, torch.device("cpu"), rng)
    functions = (ops.all_reduce_add_rms_norm, reference.all_reduce_add_rms_norm)

    def call(place: Peers, rank: int) -> torch.Tensor:
        return functions[rank](residual.clone(), parts[rank], weight, EPS, True, *place)[0]

    for _ in range(3):
        mine, theirs = on_all_ranks(peers, call)
        assert_close_to_truth(mine, theirs.double(), theirs)
    assert peers[0].epochs.tolist() == peers[1].epochs.tolist() == [3, 3, 3, 0]


def test_numbers_of_exchanges_run_over(device, rng):
    dims, dtype = {"num_tokens": 2, "num_ranks": 1, "hidden": 64}, torch.float32
    place = mirror(2, 64, device)
    place.epochs.copy_(torch.tensor([-3, 5]))
    (part,), residual, weight = make(dims, dtype, device, rng)
    expected = ops.add_rms_norm(residual.clone(), part + part, weight, EPS, False)
    for _ in range(4):
        (out,) = ops.all_reduce_add_rms_norm(residual.clone(), part, weight, EPS, False, *place)
        assert_equal(out, expected)
    # -1 is the last one and 1 would be odd as well.
    assert place.epochs.tolist() == [3, 9]


@pytest.mark.cuda
def test_in_a_graph(rng):
    device = torch.device("cuda")
    (part,), residual, weight = make(
        {"num_tokens": 5, "num_ranks": 1, "hidden": 256}, torch.bfloat16, device, rng
    )
    place = mirror(8, 128, device)
    expected = ops.add_rms_norm(residual.clone(), part + part, weight, EPS, True)
    stream, out = residual.clone(), torch.empty_like(part)

    def run() -> None:
        stream.copy_(residual)
        for _ in range(3):
            ops.all_reduce_add_rms_norm(stream, part, weight, EPS, True, *place, out=out)
            stream.copy_(residual)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for _ in range(3):
        out.zero_()
        graph.replay()
        assert_equal(out, expected)
    assert place.epochs.tolist() == [12] * 5 + [0] * 3


def test_a_lost_rank_is_an_error():
    (place, _) = connect(2, 1, 8, torch.device("cpu"), timeout=0.05)
    row, weight = torch.zeros(1, 8), torch.ones(8)
    with pytest.raises(RuntimeError, match=r"all_reduce_add_rms_norm: rank 1 sent nothing for 0.05 s"):
        ops.all_reduce_add_rms_norm(row, row.clone(), weight, EPS, False, *place)


@pytest.mark.cuda
def test_a_lost_rank_ends_the_kernel():
    """In a process of its own: an error of a kernel is the end of what it ran in."""
    program = """
import torch
from mmx import ops
from ops.ranks import connect
place = connect(2, 1, 8, torch.device("cuda"), timeout=0.2)[0]
row, weight = torch.zeros(1, 8, device="cuda"), torch.ones(8, device="cuda")
ops.all_reduce_add_rms_norm(row, row.clone(), weight, 1e-6, False, *place)
torch.cuda.synchronize()
"""
    tests = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tests, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode != 0
    assert "CUDA error" in done.stderr


def test_all_reduce_add_rms_norm_names_what_is_wrong(device):
    place = connect(2, 2, 8, device)[0]

    def call(
        message: str, num_tokens: int = 1, hidden: int = 8, quantize: bool = False, **changes: object
    ) -> None:
        x, weight = torch.zeros(num_tokens, hidden, device=device), torch.ones(hidden, device=device)
        with pytest.raises(RuntimeError, match=f"all_reduce_add_rms_norm: {message}"):
            ops.all_reduce_add_rms_norm(
                x, x.clone(), weight, EPS, False, *place._replace(**changes), quantize=quantize
            )

    call("inboxes have 2 rows, got 3 tokens", num_tokens=3)
    call("rows of inboxes must be an even number of words, at least 16, got 8", hidden=16)
    call("hidden must be a multiple of 8 and at most 8192, got 12", hidden=12)
    call("hidden must be a multiple of 128, got 8", quantize=True)
    call("hidden must be at least 8 for each of 4 ranks, got 16", hidden=16, inboxes=place.inboxes * 2)
    call(r"rank must be in \[0, 2\), got 2", rank=2)
    call("timeout must be positive, got 0", timeout=0.0)
    call("inboxes must be none, or with epochs those of 2 to 8 ranks, got 1", inboxes=place.inboxes[:1])
    call("inboxes must be none, or with epochs those of 2 to 8 ranks, got 2", epochs=None)
    call(
        r"inboxes must be \[2, 3, max_tokens, row_words\]",
        hidden=24,
        inboxes=[*place.inboxes, place.inboxes[0]],
    )


def test_opcheck(device, rng):
    x, weight = torch.randn(3, 8, generator=rng).to(device), torch.ones(8, device=device)
    op = torch.ops.mmx.all_reduce_add_rms_norm.default
    out = (torch.empty_like(x), None, None, x.clone())
    torch.library.opcheck(op, (*out, x, weight, EPS, True, [], None, 0, 0.0))
