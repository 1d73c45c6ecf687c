"""Runs a small case of every op, and of every kernel that serves it, under NVIDIA's compute-sanitizer.

    python tests/ops/sanitize.py                      memcheck, then racecheck: minutes on one GPU
    python tests/ops/sanitize.py --tool initcheck --only router sampling

The cases are tests of this folder, so that results are checked as well. Several processes per tool share the
GPU; torch's own kernels are not looked at. Exits with 1 if a test fails or a tool has something to report; of
racecheck's reports those count that ops/racecheck.py does not explain, for which the library must be built
with -DCMAKE_CUDA_FLAGS=-lineinfo and nvcc be there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ops.racecheck import check_handovers, judge

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests/ops/test_"
CASES = "MMX_SANITIZED_CASES"
REPORTED = 9  # a tool's exit code if it has something to report; pytest's are smaller
PASSED = re.compile(r"^=*\s*(\d+ passed(?!.*(failed|error)).*)")

# op -> beginnings of test ids in this folder, each a kernel or a form of it; * stands for any characters.
SMALL: dict[str, list[str]] = {
    "gated_act": ["activation.py::test_gated_act[cuda-num_tokens33-"],
    "paged_attention": [
        "attention.py::test_paged_attention[cuda-num_seqs4-q_len40-",
        "attention.py::test_paged_attention_gives_codes_of_its_result[cuda-decode-in-parts-bf16]",
        "fp8_pages.py::test_paged_attention[cuda-num_seqs5-",
        "small_sm90.py::test_dense[decode-bf16-",
        "small_sm90.py::test_dense[decode-fp8-",
        "small_sm90.py::test_dense[prompts-bf16-",
        "small_sm90.py::test_dense[prompts-fp8-",
        "small_sm90.py::test_dense[long-prompt-bf16-",
        "small_sm90.py::test_dense[long-prompt-fp8-",
    ],
    "sparse_attention": [
        "attention.py::test_sparse_attention[cuda-num_seqs3-",
        "fp8_pages.py::test_sparse_attention[cuda-num_seqs4-",
        "small_sm90.py::test_sparse[one-token-",
        "small_sm90.py::test_sparse[decode-",
        "small_sm90.py::test_sparse[many-",
        "small_sm90.py::test_sparse[neighbours-bf16-",
        "small_sm90.py::test_sparse[neighbours-fp8-",
        "small_sm90.py::test_sparse[lists-bf16-",
        "small_sm90.py::test_sparse[lists-fp8-",
    ],
    "embedding": ["embedding.py::test_embedding[cuda-num_tokens33-"],
    "fp8_linear": [
        "fp8.py::test_fp8_linear[cuda-m3-",
        "fp8.py::test_fp8_linear[cuda-m5-",
        "fp8.py::test_fp8_linear[cuda-m130-",
        "fp8.py::test_fp8_linear_row_is_the_same_in_every_batch[cuda-384-",
    ],
    "fp8_moe_down": [
        "fp8.py::test_fp8_moe_down[cuda-num_tokens33-",
        "fp8.py::test_fp8_moe_down[cuda-num_tokens9-",
        "fp8.py::test_fp8_moe_down[cuda-num_tokens300-",
    ],
    "fp8_moe_gate_up": [
        "fp8.py::test_fp8_moe_gate_up[cuda-num_tokens33-*0]",
        "fp8.py::test_fp8_moe_gate_up[cuda-num_tokens9-",
        "fp8.py::test_fp8_moe_gate_up[cuda-num_tokens300-*0]",
    ],
    "fp8_quantize": ["fp8.py::test_fp8_quantize[cuda-m65-"],
    "mxfp8_dequant": ["fp8.py::test_mxfp8_dequant[cuda-m5-"],
    "linear": [
        "gemm.py::test_linear[cuda-m3-",
        "gemm.py::test_linear_row_is_the_same_in_every_batch[cuda-bf16]",
    ],
    "index_k_store": ["kv_cache.py::test_index_k_store[cuda-num_tokens11-"],
    "kv_store": ["kv_cache.py::test_kv_store[cuda-num_tokens11-", "fp8_pages.py::test_store_shapes[cuda-"],
    "moe_combine": ["moe.py::test_moe_combine[cuda-num_tokens65-"],
    "moe_down": [
        "moe.py::test_moe_down[cuda-num_tokens3-",
        "moe.py::test_moe_down[cuda-num_tokens33-*wide",
        "moe.py::test_moe_down[cuda-num_tokens210-*bf16-wide",
    ],
    "moe_gate_up": [
        "moe.py::test_moe_gate_up[cuda-num_tokens3-*0]",
        "moe.py::test_moe_gate_up[cuda-num_tokens33-*wide-0]",
        "moe.py::test_moe_gate_up[cuda-num_tokens210-*bf16-wide-0]",
        "moe_batches.py::test_one_expert_has_every_token_and_most_have_none[cuda-3]",
        "moe_batches.py::test_one_expert_has_every_token_and_most_have_none[cuda-1500]",
        "moe_batches.py::test_rows_of_other_ranks_are_never_read[cuda-900]",
    ],
    "moe_plan": ["moe.py::test_moe_plan[cuda-num_tokens65-", "moe.py::test_moe_plan[cuda-num_tokens401-"],
    "moe_router_plan": [
        "moe.py::test_moe_router_plan[cuda-num_tokens31-",
        "moe.py::test_moe_router_plan[cuda-num_tokens33-*bf16",
    ],
    "moe_router": [
        "moe.py::test_moe_router[cuda-num_tokens7-",
        "moe.py::test_moe_router[cuda-num_tokens65-*bf16",
        "moe_batches.py::test_router_scores_do_not_depend_on_the_batch[cuda-130]",
    ],
    "add_rms_norm": ["norm.py::test_add_rms_norm[cuda-num_tokens5-"],
    "add_rms_norm_quantize": ["norm.py::test_add_rms_norm_quantize[cuda-num_tokens5-"],
    "combine_add_rms_norm": ["norm.py::test_combine_add_rms_norm[cuda-num_tokens5-"],
    # Why one rank and mirrors: under these tools kernels run one after the other, so that none may wait for
    # another.
    "all_reduce_add_rms_norm": [
        "comm.py::test_all_reduce_add_rms_norm[cuda-num_tokens3-num_ranks1-",
        "comm.py::test_numbers_of_exchanges_run_over[cuda]",
    ],
    "rms_norm": [
        "norm.py::test_rms_norm[cuda-num_tokens3-",
        "norm.py::test_rms_norm[cuda-num_tokens7-",
        "norm.py::test_rms_norm[cuda-num_tokens4-*bf16",
    ],
    "qk_mean_squares": ["qkv.py::test_mean_squares_that_come_back[cuda]"],
    "norm_rope_store": [
        "qkv.py::test_norm_rope_store_by_given_mean_squares[cuda-",
        "qkv.py::test_norm_rope_store[cuda-num_tokens5-",
        "qkv.py::test_norm_rope_store[cuda-num_tokens3-*bf16",
        "qkv.py::test_e4m3_pages_hold_the_codes_of_the_stored_rows[cuda-num_tokens9-",
        "qkv.py::test_e4m3_pages_hold_the_codes_of_the_stored_rows[cuda-num_tokens3-",
    ],
    "fp8_block_dequant": ["quant.py::test_fp8_block_dequant[cuda-rows5-"],
    "rope": ["rope.py::test_rope[cuda-num_tokens7-", "rope.py::test_rope[cuda-num_tokens1-num_heads8-"],
    "adjust_logits": ["sampling.py::test_adjust_logits[cuda-num_rows5-"],
    "logprobs": ["sampling.py::test_logprobs[cuda-num_rows7-"],
    "sample": [
        "sampling.py::test_sample[cuda-num_rows3-vocab5003-(1.0, 40",
        "sampling.py::test_sample[cuda-num_rows3-vocab5003-(0.5",
        "sampling.py::test_rows_of_one_batch_have_their_own_settings[cuda]",
    ],
    "select_blocks": [
        "selector.py::test_select_blocks[cuda-num_seqs3-*normal",
        "attention_sm90.py::test_select_blocks[ragged-normal]",
        "attention_sm90.py::test_select_blocks[mixed-normal]",
        "pages_sm90.py::test_select_blocks[ragged-fp8-normal-True]",
        "prompts_sm90.py::test_select_normal[scores-fp8]",
        "prompts_sm90.py::test_select_of_many_blocks[few-tokens-bf16-numbers0]",
        "prompts_sm90.py::test_select_of_many_blocks[few-tokens-fp8-numbers0]",
    ],
}


def chosen(only: Sequence[str]) -> list[str]:
    """Beginnings of the cases whose op or test is named by one of ``only``; all if it names none."""
    return [
        case
        for op, cases in SMALL.items()
        for case in cases
        if not only or any(word in op or word in case for word in only)
    ]


class Choose:
    """A pytest plugin that keeps the tests that begin like ``cases``; a case without a test is an error."""

    def __init__(self, cases: Sequence[str]) -> None:
        self.patterns = {case: re.compile(re.escape(HERE + case).replace(r"\*", ".*")) for case in cases}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        missing = [
            case for case, pattern in self.patterns.items() if not any(pattern.match(i.nodeid) for i in items)
        ]
        if missing:
            raise pytest.UsageError(f"no test begins like {', '.join(missing)}")
        kept = [item for item in items if any(p.match(item.nodeid) for p in self.patterns.values())]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def files(cases: Sequence[str]) -> list[str]:
    return sorted({HERE + case.split("::")[0] for case in cases})


def run_tests(cases: Sequence[str]) -> int:
    options = [
        "-q",
        "--durations=8",
        "-p",
        "no:cacheprovider",
        "-m",
        "cuda",
        f"--rootdir={ROOT}",
        *files(cases),
    ]
    return int(pytest.main(options, plugins=[Choose(cases)]))


def run_sanitizer(tool: str, program: Sequence[str], log: Path, cases: Sequence[str] = ()) -> int:
    # Why not API errors: tests of faults and torch's own probing make some.
    command = ["compute-sanitizer", "--tool", tool, "--report-api-errors", "no", "--print-limit", "0"]
    command += ["--error-exitcode", str(REPORTED), *program]
    env = os.environ | {CASES: "\n".join(cases), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with log.open("w") as file:
        return subprocess.run(command, env=env, check=False, stdout=file, stderr=subprocess.STDOUT).returncode


def failed_handovers(folder: Path) -> list[str]:
    """What racecheck says of each way to hand words over, against what is said of it."""
    program, log = folder / "handovers", folder / "racecheck-handovers.log"
    command = ["nvcc", "-std=c++20", "-gencode=arch=compute_90a,code=sm_90a", "-O3", "-lineinfo"]
    subprocess.run([*command, f"-I{ROOT}", "-o", program, "tests/ops/handovers.cu"], check=True)
    run_sanitizer("racecheck", [str(program)], log)
    return check_handovers(log.read_text().splitlines())


def failed_parts(tool: str, cases: Sequence[str], jobs: int, folder: Path) -> list[str]:
    """Runs the cases in ``jobs`` processes; says of each what a reader has to look at."""
    parts = [part for part in (cases[i::jobs] for i in range(jobs)) if part]
    logs = [folder / f"{tool}-{i}.log" for i in range(len(parts))]
    program = ["--kernel-name", "kns=mmx", sys.executable, __file__]
    with ThreadPoolExecutor(len(parts)) as pool:
        codes = list(pool.map(lambda part, log: run_sanitizer(tool, program, log, part), parts, logs))
    found = []
    for code, log in zip(codes, logs, strict=True):
        lines = log.read_text().splitlines()
        print(f"  {log}: {next((line for line in reversed(lines) if PASSED.search(line)), 'did not end')}")
        if code not in (0, REPORTED) or not any(PASSED.search(line) for line in lines):
            found.append(f"{log}: a test failed or did not end")
        if tool != "racecheck":
            found += [f"{log}: see there"] * (code == REPORTED)
            continue
        used, unexplained = judge(lines)
        for entry, times in used.items():
            print(f"    {entry.handover} x {times}: {entry.ends[0]} <> {entry.ends[1]}")
        found += map(str, unexplained)
        if code == REPORTED and not used and not unexplained:
            found.append(f"{log}: reports that are not understood")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tools = ("memcheck", "racecheck", "initcheck", "synccheck")
    parser.add_argument("--tool", nargs="+", choices=tools, default=["memcheck", "racecheck"])
    parser.add_argument("--only", nargs="+", default=[], help="parts of names of ops or tests")
    parser.add_argument("--jobs", type=int, default=max(1, min(12, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--logs", type=Path, help="folder for what the tools say; default: a new one")
    args = parser.parse_args()
    folder = (args.logs or Path(tempfile.mkdtemp(prefix="sanitize-"))).resolve()
    os.chdir(ROOT)
    cases = chosen(args.only)
    if not cases:
        parser.error(f"--only: no op and no test is called like {' or '.join(args.only)}")
    for program in ("compute-sanitizer", *["nvcc"] * ("racecheck" in args.tool)):
        if shutil.which(program) is None:
            parser.error(f"{program} is not on PATH; it is part of the CUDA toolkit")
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for tool in args.tool:
        print(f"{tool}:", flush=True)
        if tool == "racecheck":
            found += failed_handovers(folder)
        found += failed_parts(tool, cases, args.jobs, folder)
    print("\n".join(["to be looked at:", *found]) if found else "nothing found")
    return len(found) > 0


if __name__ == "__main__":
    sys.exit(run_tests(os.environ[CASES].split("\n")) if CASES in os.environ else main())
