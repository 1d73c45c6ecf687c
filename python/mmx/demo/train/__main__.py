"""Train the demo model: ``python -m mmx.demo.train --device cuda --leg-seconds 450``.

A leg resumes from ``STATE/state.pt`` if it is there and ends after ``--leg-seconds``; when the last step is
done, the checkpoint is written to ``--out`` (default: the package's own model folder).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer

from mmx.demo.train.data.mix import corpus
from mmx.demo.train.export import save_checkpoint
from mmx.demo.train.loop import Trainer
from mmx.demo.train.model import Shape
from mmx.demo.train.schedule import TOTAL
from mmx.demo.train.tokenizer import train_tokenizer
from mmx.model_path import demo_model_path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mmx.demo.train", description=__doc__)
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--state", type=Path, default=Path(".demo_state"), help="folder of the resumable state"
    )
    parser.add_argument(
        "--out", type=Path, default=demo_model_path(), help="folder of the finished checkpoint"
    )
    parser.add_argument("--steps", type=int, default=TOTAL, help="stop after this many steps in all")
    parser.add_argument("--leg-seconds", type=float, default=float("inf"), help="stop this leg after so long")
    parser.add_argument("--tokens", type=int, default=65536, help="tokens of one step")
    parser.add_argument("--workers", type=int, default=0, help="processes that generate data")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not 1 <= args.steps <= TOTAL:
        parser.error(f"--steps must be between 1 and {TOTAL}, got {args.steps}")
    return args


def main() -> None:
    args = parse()
    saved = args.state / "tokenizer.json"
    if saved.exists():
        tokenizer = Tokenizer.from_file(str(saved))
    else:
        tokenizer = train_tokenizer(corpus(args.seed, 6000), Shape().vocab)
        args.state.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(saved))
    trainer = Trainer(tokenizer, args.device, args.seed, args.tokens)
    state = args.state / "state.pt"
    if state.exists():
        trainer.load(state)
    trainer.run(args.steps, args.leg_seconds, args.workers)
    trainer.save(state)
    if trainer.step < args.steps:
        print(f"leg over at step {trainer.step} of {args.steps}; run the same command again to go on")
        return
    template = (demo_model_path() / "chat_template.jinja").read_text(encoding="utf-8")
    save_checkpoint(trainer.model, tokenizer, template, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
