"""Copies through the buffers of a lane, and their order and errors."""

from __future__ import annotations

import pytest
import torch

from mmx.weights.stage import Lane, copy_all


@pytest.mark.parametrize("shape", [(1,), (7,), (5, 3), (64, 33), (300, 2), (2, 500)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_lane_copies_whatever_fits_into_its_buffers_or_not(
    shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator
) -> None:
    lane = Lane(torch.device("cpu"), 256)
    source = torch.randn(shape, generator=rng)
    for cut in (source, source.repeat(2, *[2] * (len(shape) - 1))[tuple(slice(n) for n in shape)]):
        target = torch.full(shape, torch.nan, dtype=dtype)
        lane.copy(target, cut)
        torch.testing.assert_close(target, source.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_all_jobs_are_done_and_counted(device: str) -> None:
    targets = [torch.zeros(100 + i, 17, device=device) for i in range(60)]
    sources = [torch.full((100 + i, 17), float(i)) for i in range(60)]
    jobs = [(targets[i], lambda i=i: sources[i], i) for i in range(60)]
    assert sorted(copy_all(jobs, torch.device(device), lane_bytes=4096)) == list(range(60))
    for target, source in zip(targets, sources, strict=True):
        assert torch.equal(target.cpu(), source)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_the_first_error_is_raised_and_ends_the_work(device: str) -> None:
    begun = []

    def read(i: int) -> torch.Tensor:
        begun.append(i)
        if i == 5:
            raise ValueError("tensor 5 is broken")
        return torch.zeros(3)

    jobs = [(torch.zeros(3, device=device), lambda i=i: read(i), 1) for i in range(500)]
    with pytest.raises(ValueError, match="tensor 5 is broken"):
        list(copy_all(jobs, torch.device(device)))
    assert len(begun) < 100
