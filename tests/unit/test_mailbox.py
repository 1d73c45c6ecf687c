"""Words between host and device that no copy engine carries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmx.runner.upload import Mailbox

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.mark.parametrize("device", DEVICES)
def test_words_arrive_in_order_however_many_are_under_way(device: str) -> None:
    mailbox = Mailbox(700, torch.device(device))
    target, seen = torch.zeros(700, dtype=torch.int64, device=device), []
    for step in range(3 * Mailbox.SLOTS):
        size = 1 + 53 * step
        mailbox.send(np.arange(size) * 2**40 - step, target[:size])
        seen.append(target.clone())
    for step, found in enumerate(seen):
        size = 1 + 53 * step
        assert found[:size].tolist() == [i * 2**40 - step for i in range(size)]


@pytest.mark.parametrize("device", DEVICES)
def test_the_latest_answers_hold_on_the_host(device: str) -> None:
    mailbox = Mailbox(5, torch.device(device))
    source = torch.zeros(5, dtype=torch.int64, device=device)
    held = []
    for step in range(9):
        source.fill_(step - 2**50)
        held.append(mailbox.fetch(source[: 1 + step % 5]))
    if device == "cuda":
        torch.cuda.synchronize()
    for step in range(9 - Mailbox.SLOTS, 9):
        assert held[step].device.type == "cpu"
        assert held[step].tolist() == [step - 2**50] * (1 + step % 5)
