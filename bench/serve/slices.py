"""Full-width slices of the real models with random weights: prompts as ids in, ids out.

    python bench/serve/slices.py --slice dense=3,sparse=4 [--prompt 1024] [--batches 1 8 32 128]
                                 [--prefill 8192 32768] [--long 32768] [--tokens 64] [--profile] [--json FILE]
    python bench/serve/slices.py --slice layers=16

``dense=D,sparse=S`` is a MiniMax-M3 of D dense and S block-sparse layers, ``layers=L`` a MiniMax-M2.5 of L
layers with fp8 matrices; a config.json is all the checkpoint there is. Greedy, no end token, no prefix cache,
new random prompts in every run. TTFT: from the submission of one prompt to its first token. TPOT of a batch:
from the moment the last sequence has its first token, the time until all have ``--tokens`` more, over
``--tokens``; no sequence ends or joins meanwhile. Both are seen where a client of the engine sees them.
``--profile`` splits a step by kernel and says how long the GPU idles between steps; ``--json`` then holds the
order of a step's kernels and what each adds. ``--parallel`` takes settings of ``ParallelConfig``: the slice
then runs over that many devices of the machine.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import msgspec  # noqa: E402
import torch  # noqa: E402

from mmx.config import EngineConfig, ParallelConfig, SamplingParams  # noqa: E402
from mmx.engine.channel import LocalChannel  # noqa: E402
from mmx.engine.engine import Engine  # noqa: E402
from mmx.engine.ranked import start_runner  # noqa: E402
from mmx.model_config import load_model_config  # noqa: E402
from mmx.protocol import Abort, Failed, StepOutput, Submit  # noqa: E402
from mmx.runner.kv_pool import page_bytes  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from serve.step_profile import profile_steps  # noqa: E402

PAGE = 128
COMMON: dict[str, Any] = {
    "vocab_size": 200064,
    "head_dim": 128,
    "rotary_dim": 64,
    "rope_theta": 5000000,
    "rms_norm_eps": 1e-6,
    "use_qk_norm": True,
    "scoring_func": "sigmoid",
    "use_routing_bias": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
M3: dict[str, Any] = COMMON | {
    "architectures": ["MiniMaxM3SparseForCausalLM"],
    "hidden_size": 6144,
    "intermediate_size": 3072,
    "dense_intermediate_size": 12288,
    "shared_intermediate_size": 3072,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "use_gemma_norm": True,
    "attention_output_gate": False,
    "qk_norm_type": "per_head",
    "hidden_act": "swigluoai",
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.0,
    "max_position_embeddings": 1048576,
}
M2: dict[str, Any] = COMMON | {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "qk_norm_type": "per_layer",
    "hidden_act": "silu",
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "shared_intermediate_size": 0,
    "max_position_embeddings": 196608,
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "float8_e4m3fn",
        "weight_block_size": [128, 128],
    },
}


def slice_config(text: str) -> dict[str, Any]:
    """config.json of ``dense=3,sparse=4`` or ``layers=16``; ValueError for anything else."""
    try:
        counts = {key: int(number) for key, _, number in (part.partition("=") for part in text.split(","))}
    except ValueError:
        counts = {}
    if counts.keys() == {"layers"} and counts["layers"] > 0:
        num_layers = counts["layers"]
        return M2 | {"num_hidden_layers": num_layers, "attn_type_list": [1] * num_layers}
    if counts.keys() == {"dense", "sparse"} and min(counts.values()) >= 0 and sum(counts.values()) > 0:
        flags = [0] * counts["dense"] + [1] * counts["sparse"]
        sparse = {
            "use_sparse_attention": True,
            "sparse_num_index_heads": 4,
            "sparse_index_dim": 128,
            "sparse_topk_blocks": 16,
            "sparse_block_size": PAGE,
            "sparse_local_block": 1,
            "sparse_init_block": 0,
            "sparse_score_type": "max",
            "sparse_attention_freq": flags,
            "sparse_disable_index_value": flags,
        }
        return M3 | {
            "num_hidden_layers": len(flags),
            "moe_layer_freq": flags,
            "sparse_attention_config": sparse,
        }
    raise ValueError(f"slice must be dense=N,sparse=N or layers=N, got {text!r}")


class Slice:
    """An engine in this process, driven step by step."""

    def __init__(
        self, folder: Path, longest: int, max_tokens: int, args: argparse.Namespace, begin: float
    ) -> None:
        config = load_model_config(folder)
        # Why the margin: the scheduler keeps pages back while sequences run.
        num_pages = int(1.15 * (max_tokens // PAGE + 2 * max(args.batches, default=1))) + 8
        self.vocab = config.vocab_size
        self.config = EngineConfig(
            model=str(folder),
            device=args.device,
            load_format="dummy",
            max_model_len=longest,
            max_num_seqs=max(args.batches, default=1),
            max_num_batched_tokens=args.max_num_batched_tokens,
            enable_prefix_caching=False,
            enforce_eager=args.enforce_eager,
            kv_cache_bytes=num_pages * page_bytes(config, torch.bfloat16),
            parallel=msgspec.convert(
                dict(pair.split("=") for pair in args.parallel), ParallelConfig, strict=False
            ),
        )
        self.begin = begin
        self.channel = LocalChannel()
        self.phases: dict[str, float] = {}
        self.runner = start_runner(self.config, self._progress)
        self.engine = Engine(self.config, self.runner, self.channel)
        self._random = torch.Generator().manual_seed(1)
        self._num_requests = 0

    def _progress(self, phase: str, done: float) -> None:
        self.phases[phase] = round(time.perf_counter() - self.begin, 2)

    def submit(self, count: int, length: int, max_tokens: int) -> list[str]:
        ids = []
        for _ in range(count):
            prompt = torch.randint(0, self.vocab, (length,), generator=self._random).tolist()
            params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
            name = str(self._num_requests)
            self._num_requests += 1
            self.channel.inbox.append(Submit(request_id=name, prompt_token_ids=prompt, params=params))
            ids.append(name)
        return ids

    def steps(self) -> Iterator[list[str]]:
        """Run the engine; after each step, the requests that got a token."""
        while True:
            self.engine.step()
            names = []
            for message in self.channel.outbox:
                if isinstance(message, Failed):
                    raise RuntimeError(message.message)
                if isinstance(message, StepOutput):
                    names += [out.request_id for out in message.outputs]
            self.channel.outbox.clear()
            yield names

    def stop(self, ids: list[str]) -> None:
        self.channel.inbox.append(Abort(request_ids=ids))
        self.engine.step()
        self.channel.outbox.clear()

    def ttft(self, length: int) -> float:
        """Seconds from submission to the first token of one prompt."""
        self.submit(1, length, 1)
        begin = time.perf_counter()
        for names in self.steps():
            if names:
                break
        seconds = time.perf_counter() - begin
        self.stop([])
        return seconds

    def start_batch(self, batch: int, length: int, max_tokens: int) -> tuple[list[str], Iterator[list[str]]]:
        """Submit prompts and step until every sequence has a token."""
        ids = self.submit(batch, length, max_tokens)
        waiting = set(ids)
        steps = self.steps()
        while waiting:
            waiting -= set(next(steps))
        return ids, steps

    def tpot(self, batch: int, length: int, num_tokens: int) -> float:
        """Seconds per token of a full batch."""
        prefill_steps = batch * (-(-length // self.config.max_num_batched_tokens) + 1)
        ids, steps = self.start_batch(batch, length, prefill_steps + num_tokens + 8)
        begin = time.perf_counter()
        for _ in range(num_tokens):
            if len(next(steps)) != batch:
                raise RuntimeError(f"a step did not give a token to each of {batch} sequences")
        seconds = time.perf_counter() - begin
        self.stop(ids)
        return seconds / num_tokens


def measure(bench: Slice, args: argparse.Namespace) -> dict[str, Any]:
    ready = time.perf_counter() - bench.begin
    result: dict[str, Any] = {"start_to_ready_s": round(ready, 1), "phases_s": bench.phases}
    print(f"ready after {ready:.1f} s: {bench.phases}", flush=True)
    rows: list[dict[str, Any]] = []
    for length in args.prefill:
        bench.ttft(min(length, args.max_num_batched_tokens))
        seconds = statistics.median(bench.ttft(length) for _ in range(args.repeats))
        row = {"prompt": length, "ttft_ms": round(1e3 * seconds, 2), "tokens_s": round(length / seconds)}
        rows.append(row)
        print(json.dumps(rows[-1]), flush=True)
    decodes = [(batch, args.prompt) for batch in args.batches]
    decodes += [(1, length) for length in args.long]
    for batch, length in decodes:
        seconds = bench.tpot(batch, length, args.tokens)
        row = {"batch": batch, "prompt": length, "tpot_ms": round(1e3 * seconds, 3)}
        rows.append(row | {"tokens_s": round(batch / seconds, 1)})
        print(json.dumps(rows[-1]), flush=True)
    result["rows"] = rows
    if args.profile:
        result["profiles"] = profiles(bench, args)
    return result


def profiles(bench: Slice, args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for length in args.prefill[:1]:
        table = profile_steps(lambda length=length: bench.ttft(length), f"prefill of {length}")
        found.append(table)
    decodes = [(batch, min(args.prompt, 256)) for batch in args.batches]
    for batch, length in decodes + [(1, length) for length in args.long]:
        ids, steps = bench.start_batch(batch, length, 256)
        next(steps)
        title = f"decode batch {batch} after {length}"
        table = profile_steps(lambda steps=steps: [next(steps) for _ in range(8)], title, 8)
        found.append(table)
        bench.stop(ids)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--slice", action="append", required=True, help="several are run one after the other")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--prefill", type=int, nargs="*", default=[8192, 32768])
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32, 128])
    parser.add_argument("--long", type=int, nargs="*", default=[], help="prompt lengths of TPOT at batch 1")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument(
        "--parallel", nargs="*", default=[], metavar="SETTING=VALUE", help="such as tensor_parallel_size=2"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    longest_prompt = max([*args.prefill, *args.long, args.prompt])
    extra = args.tokens + 2 * max(args.batches, default=1) + 256
    most = max([longest_prompt + extra, *(batch * (args.prompt + extra) for batch in args.batches)])
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    results = {"command": " ".join(sys.argv), "device": device, "torch": torch.__version__}
    print(json.dumps(results), flush=True)
    begin = STARTED
    for text in args.slice:
        config = slice_config(text)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "config.json").write_text(json.dumps(config))
            print(f"slice {text}", flush=True)
            bench = Slice(folder, longest_prompt + extra, most, args, begin)
            results[text] = measure(bench, args)
            if args.parallel:
                bench.runner.close()
            del bench
        begin = time.perf_counter()
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
