"""The training script runs on a CPU, resumes where it stopped and writes a checkpoint that reads back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from mmx.demo.train.data.words import held_out
from mmx.demo.train.export import load_shape, load_weights
from mmx.demo.train.loop import Batches, Trainer
from mmx.demo.train.model import TRAINED, Model, Shape, index_loss
from mmx.demo.train.optim import orthogonalize
from mmx.demo.train.schedule import PHASES, TOTAL, WARMUP, step_plan
from mmx.model_path import demo_model_path


def _trainer() -> Trainer:
    tokenizer = Tokenizer.from_file(str(demo_model_path() / "tokenizer.json"))
    return Trainer(tokenizer, "cpu", seed=1, num_tokens=256)


def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, first, second = _trainer(), _trainer(), _trainer()
    whole.run(2, float("inf"), workers=0)
    first.run(1, float("inf"), workers=0)
    first.save(tmp_path / "state.pt")
    second.load(tmp_path / "state.pt")
    assert second.step == 1
    second.run(2, float("inf"), workers=0)
    for (name, a), (_, b) in zip(
        whole.model.named_parameters(), second.model.named_parameters(), strict=True
    ):
        # The optimiser's moments are kept in bf16 between legs.
        assert torch.allclose(a, b, atol=2e-3), name


def test_command_line(tmp_path: Path) -> None:
    state, out = tmp_path / "state", tmp_path / "out"
    state.mkdir()
    (state / "tokenizer.json").write_bytes((demo_model_path() / "tokenizer.json").read_bytes())
    command = [sys.executable, "-m", "mmx.demo.train", "--device", "cpu", "--steps", "2", "--tokens", "256"]
    command += ["--state", str(state), "--out", str(out)]
    half = subprocess.run([*command, "--leg-seconds", "0"], capture_output=True, text=True, check=True)
    assert "leg over at step 1 of 2" in half.stdout
    assert not out.exists()
    subprocess.run(command, capture_output=True, text=True, check=True)
    model = Model(load_shape(out))
    load_weights(model, out / "model.safetensors")
    assert (out / "chat_template.jinja").read_text() == (
        demo_model_path() / "chat_template.jinja"
    ).read_text()
    assert len(list(out.iterdir())) == 6


def test_loss_falls() -> None:
    trainer = _trainer()
    batch = Batches(trainer.tokenizer.to_str(), 0, 0, 1, trainer.num_tokens)[0]
    trainer.step = WARMUP
    losses = [float(trainer.train_step(batch)[0]) for _ in range(6)]
    assert losses[-1] < 0.7 * losses[0]


def test_index_learns_the_attention_and_nothing_else_does() -> None:
    torch.manual_seed(0)
    shape = Shape(vocab=64, hidden=64, num_layers=2, head_dim=16, rotary_dim=8, block_size=8, topk_blocks=4)
    model = Model(shape)
    tokens = torch.randint(0, 64, (2, 64))
    _, projections, _ = model(tokens, TRAINED)
    index_loss(projections[0], 2, torch.full((2, 3), 60), shape).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient == {
        f"layers.1.{name}" for name in ("index_q", "index_k", "index_q_norm", "index_k_norm")
    }


def test_orthogonalize_flattens_the_spectrum() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(2, 24, 64)))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_schedule_covers_every_step() -> None:
    assert step_plan(0).rate < step_plan(200).rate == 1.0
    assert step_plan(TOTAL - 1).rate < 0.05
    assert step_plan(TOTAL - 1).selector == TRAINED
    assert {step_plan(i).length for i in range(TOTAL)} == {n for phase in PHASES for n in phase.lengths}
    with pytest.raises(ValueError, match="step must be below"):
        step_plan(TOTAL)


def test_a_tenth_is_held_out() -> None:
    share = sum(held_out(a, "+", b) for a in range(100) for b in range(100)) / 10_000
    assert 0.08 < share < 0.12
