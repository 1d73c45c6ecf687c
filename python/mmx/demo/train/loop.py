"""The training loop: resumable legs, one optimiser step per batch, checkpoint files in a folder."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmx.demo.train.data.dialogue import Encoder
from mmx.demo.train.data.mix import make_batch
from mmx.demo.train.model import Model, Shape, index_loss
from mmx.demo.train.optim import Optimizer
from mmx.demo.train.schedule import TOTAL, step_plan

INDEX_FROM, INDEX_ROWS, INDEX_QUERIES = 1024, 4, 128
BIAS_RATE = 2e-3


class Batches(Dataset[dict[str, Tensor]]):
    """Batch ``i`` belongs to step ``first + i`` and depends on the seed and the step alone."""

    def __init__(self, tokenizer: str, seed: int, first: int, last: int, num_tokens: int) -> None:
        self.tokenizer, self.seed, self.first, self.last = tokenizer, seed, first, last
        self.num_tokens = num_tokens
        self.encoder: Encoder | None = None

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        if self.encoder is None:
            self.encoder = Encoder(Tokenizer.from_str(self.tokenizer))
        step = self.first + i
        plan = step_plan(step)
        length = min(plan.length, self.num_tokens)
        ids, mask = make_batch(self.seed, step, self.encoder, self.num_tokens, length, plan.needle_share)
        tokens, written = torch.from_numpy(ids).long(), torch.from_numpy(mask)
        # The state at a position predicts the next token: these are the positions before written ones.
        before = torch.cat([written[:, 1:], torch.zeros_like(written[:, :1])], 1)
        rows = before.flatten().nonzero().squeeze(1)
        return {
            "tokens": tokens,
            "rows": rows,
            "targets": tokens.flatten()[rows + 1],
            "queries": self._queries(before, random.Random(f"{self.seed}/{step}/queries")),
        }

    def _queries(self, before: Tensor, rng: random.Random) -> Tensor:
        """Draw query positions for the index loss: half before written tokens, half anywhere."""
        drawn = []
        for row in before[:INDEX_ROWS]:
            candidates = row.nonzero().squeeze(1).tolist()
            anywhere = range(len(row) // 8, len(row))
            half = INDEX_QUERIES // 2
            drawn.append(rng.choices(candidates or anywhere, k=half) + rng.choices(anywhere, k=half))
        return torch.tensor(drawn)


class Trainer:
    """Model, optimiser and step counter; ``run`` advances them, ``save`` and ``load`` keep them in a file."""

    def __init__(self, tokenizer: Tokenizer, device: str, seed: int, num_tokens: int) -> None:
        torch.manual_seed(seed)
        self.tokenizer, self.device, self.seed, self.num_tokens = tokenizer, device, seed, num_tokens
        self.model = Model(Shape()).to(device)
        self.optimizer = Optimizer(self.model)
        self.step = 0
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        if device == "cuda":
            torch.set_float32_matmul_precision("high")
            for layer in self.model.decoder_layers():
                for name in ("project", "finish"):
                    setattr(layer, name, torch.compile(getattr(layer, name), dynamic=False))

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state(), "step": self.step}
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)

    def load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load(state["optimizer"])
        self.step = state["step"]

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return token loss, index loss (0 where rows are too short for one) and expert loads."""
        plan = step_plan(self.step)
        tokens = batch["tokens"]
        hidden, projections, loads = self.model(tokens, plan.selector, self.dtype)
        loss = F.cross_entropy(self.model.logits(hidden[batch["rows"]]), batch["targets"])
        index = loss.new_zeros(())
        if tokens.shape[1] >= INDEX_FROM:
            queries = batch["queries"]
            count, length = queries.shape[0], tokens.shape[1]
            for parts in projections:
                index = index + index_loss(
                    tuple(p[: count * length] for p in parts), count, queries, self.model.s
                )
        return loss, index, loads

    def train_step(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss, index, loads = self.losses(batch)
        (loss + index).backward()
        self.optimizer.step(step_plan(self.step).rate)
        self.optimizer.zero_grad()
        with torch.no_grad():
            # Experts that got too few tokens become easier to pick, no gradient involved.
            rate = BIAS_RATE * step_plan(self.step).rate
            sparse = [layer for layer in self.model.decoder_layers() if layer.sparse]
            for layer, load in zip(sparse, loads, strict=True):
                layer.router_bias += rate * torch.sign(load.mean() - load)
        self.step += 1
        return loss.detach(), index.detach()

    def run(self, last: int, seconds: float, workers: int, log_every: int = 100) -> None:
        """Train to step ``last`` or until ``seconds`` have passed, whichever comes first."""
        begin = time.monotonic()
        data = Batches(self.tokenizer.to_str(), self.seed, self.step, last, self.num_tokens)
        loader = DataLoader(
            data,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=8 if workers else None,
            pin_memory=self.device == "cuda",
        )
        sums, waited, mark, logged = torch.zeros(2, device=self.device), 0.0, begin, self.step
        fetched = time.monotonic()
        for batch in loader:
            waited += time.monotonic() - fetched
            batch = {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}
            sums += torch.stack(self.train_step(batch))
            if self.step % log_every == 0 or self.step == last:
                count = self.step - logged
                loss, index = (sums / count).tolist()
                now = time.monotonic()
                rate = count * self.num_tokens / (now - mark)
                print(
                    f"step {self.step}/{TOTAL}  loss {loss:.4f}  index {index:.4f}  {rate / 1e6:.2f} Mtok/s  "
                    f"waited {waited:.1f} s  {now - begin:.0f} s",
                    flush=True,
                )
                sums.zero_()
                waited, mark, logged = 0.0, now, self.step
            if time.monotonic() - begin > seconds:
                break
            fetched = time.monotonic()
