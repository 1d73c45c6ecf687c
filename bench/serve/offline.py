"""mmx against transformers on the same random M3-shaped model, in one run on this machine's CPU.

    python bench/serve/offline.py [--dtype bfloat16|float32] [--prefill 1024] [--prompt 128] [--tokens 48]
                                  [--batches 1 8 32] [--repeats 3] [--json FILE]

The checkpoint (8 layers, 7 of them block-sparse with 32 experts; proportions as in M3) is written to a
temporary folder and read by both. Prefill is the time to the first token of one prompt of ``--prefill``
tokens; decode the time of ``--tokens`` further tokens of a batch of prompts of ``--prompt`` tokens. Greedy,
no end token, medians over the repeats, each with new prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from mmx import LLM, SamplingParams

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from models.oracle import load_oracle  # noqa: E402
from models.tiny import write_tiny_checkpoint  # noqa: E402

SHAPE: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 192,
    "dense_intermediate_size": 768,
    "shared_intermediate_size": 192,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rotary_dim": 32,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "sparse": {"sparse_topk_blocks": 4, "sparse_block_size": 128},
}
# prompts [num_prompts][num_tokens], number of tokens -> tokens after each prompt
Generate = Callable[[list[list[int]], int], list[list[int]]]


def mmx_generate(folder: Path, dtype: str) -> Generate:
    llm = LLM(
        str(folder),
        device="cpu",
        dtype=dtype,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        kv_cache_bytes=1 << 30,
    )

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        return [result.token_ids for result in llm.generate(prompts, params, use_tqdm=False)]

    return generate


def transformers_generate(folder: Path, dtype: str) -> Generate:
    model = load_oracle(folder, getattr(torch, dtype))

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                eos_token_id=None,
            )
        return output[:, ids.shape[1] :].tolist()

    return generate


def timed(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


class Load:
    """Prompts that no engine has seen before."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def prompts(self, count: int, length: int) -> list[list[int]]:
        vocab = SHAPE["vocab_size"]
        ids: list[list[int]] = torch.randint(0, vocab, (count, length), generator=self._generator).tolist()
        return ids


def prefill(generate: Generate, load: Load, length: int, repeats: int) -> float:
    """Prompt tokens per second of one prompt."""
    generate(load.prompts(1, length), 1)
    seconds = [timed(lambda: generate(load.prompts(1, length), 1)) for _ in range(repeats)]
    return length / statistics.median(seconds)


def decode(generate: Generate, load: Load, batch: int, length: int, num_tokens: int, repeats: int) -> float:
    """Tokens per second of all sequences after their first tokens."""
    generate(load.prompts(batch, length), 2)
    seconds = []
    for _ in range(repeats):
        prompts = load.prompts(batch, length)
        first = timed(lambda prompts=prompts: generate(prompts, 1))
        seconds.append(timed(lambda prompts=prompts: generate(prompts, num_tokens + 1)) - first)
    return batch * num_tokens / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--prefill", type=int, default=1024)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_tiny_checkpoint(
            Path(temporary), "m3", getattr(torch, args.dtype), seed=1, variant=SHAPE
        )
        engines = {
            "mmx": mmx_generate(folder, args.dtype),
            "transformers": transformers_generate(folder, args.dtype),
        }
        num_params = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        num_params //= getattr(torch, args.dtype).itemsize
        rows: dict[str, dict[str, float]] = {}
        rows[f"prefill {args.prefill}"] = {
            name: prefill(generate, Load(1), args.prefill, args.repeats) for name, generate in engines.items()
        }
        for batch in args.batches:
            rows[f"decode batch {batch}"] = {
                name: decode(generate, Load(2), batch, args.prompt, args.tokens, args.repeats)
                for name, generate in engines.items()
            }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{' '.join(sys.argv)}   {machine}, {versions}")
    print(f"M3-shaped model, {num_params / 1e6:.0f} M parameters, {args.dtype}, tokens/s:")
    for what, rates in rows.items():
        ratio = rates["mmx"] / rates["transformers"]
        print(
            f"{what:16} mmx {rates['mmx']:9.1f}   transformers {rates['transformers']:9.1f}   {ratio:5.2f}x"
        )
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
