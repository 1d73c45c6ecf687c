"""Ops in destination-passing form on top of the references, for devices that lack a kernel."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from mmx.ops import reference

# What a reference is told and an op sees at its outputs: by the reference's parameter.
_SEEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dtype": lambda given: given["out"].dtype,
    "topk": lambda given: (given["topk_ids"] if "topk_ids" in given else given["block_ids"]).shape[-1],
    "num_top": lambda given: given["top_ids"].shape[1],
    "num_local_experts": lambda given: given["expert_offsets"].shape[0] - 1,
    "quantize": lambda given: given["codes"] is not None,
}


def fallback(op: str) -> Callable[..., None]:
    """The reference of ``op`` with the op's arguments, which it takes by their names. What it returns goes to
    the outputs that it does not write itself."""
    function = getattr(reference, op)
    parameters = inspect.signature(function).parameters
    arguments = getattr(torch.ops.mmx, op).default._schema.arguments
    written = [arg.name for arg in arguments if arg.alias_info is not None and arg.alias_info.is_write]
    outputs = [name for name in written if name not in parameters and name != "workspace"]

    def run(*args: Any) -> None:
        given = {arg.name: value for arg, value in zip(arguments, args, strict=False)}
        seen = {name: _SEEN[name](given) for name in parameters.keys() & _SEEN.keys()}
        results = function(**{name: given[name] for name in parameters if name in given}, **seen)
        wanted = [name for name in outputs if given[name] is not None]
        if wanted:
            for name, result in zip(wanted, results if len(outputs) > 1 else [results], strict=True):
                given[name].copy_(result)

    return run
