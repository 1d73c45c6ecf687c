"""transformers' own models, filled from a tiny checkpoint: the truth for whole models.

Traps of transformers 5.17 avoided here: it ignores ``rotary_dim`` of an M2 config without
``partial_rotary_factor``; it has no names for a text-only M3 checkpoint, so they are translated; in bf16 it
would round the router's weights and bias, so these stay fp32.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

_M3_NAMES = (
    (".block_sparse_moe.", ".mlp."),
    ("mlp.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),
    ("index_q_proj", "indexer.q_proj"),
    ("index_k_proj", "indexer.k_proj"),
    ("index_q_norm", "indexer.q_norm"),
    ("index_k_norm", "indexer.k_norm"),
)


def load_oracle(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The transformers model of a checkpoint that ``tiny.py`` wrote, router and bias in fp32."""
    raw = json.loads((folder / "config.json").read_text())
    text = dict(raw.get("text_config", raw))
    for key in ("architectures", "model_type", "use_mtp", "torch_dtype", "dtype", "quantization_config"):
        text.pop(key, None)
    text |= {"partial_rotary_factor": text["rotary_dim"] / text["head_dim"]}
    text |= {"bos_token_id": 1, "eos_token_id": 2}
    if raw.get("model_type") == "minimax_m2":
        config = transformers.MiniMaxM2Config(**text)
        model = transformers.MiniMaxM2ForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    else:
        config = transformers.MiniMaxM3VLTextConfig(**text)
        model = transformers.MiniMaxM3VLForCausalLM(config)
        files = sorted(folder.glob("*.safetensors"))
        model.load_state_dict(m3_state(item for file in files for item in load_file(file).items()))
    model.eval().requires_grad_(False)
    if dtype != torch.float32:
        wide = {name: tensor for name, tensor in model.state_dict().items() if _is_router(name)}
        model.to(dtype)
        for name, tensor in wide.items():
            owner = model.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], _like(getattr(owner, name.rpartition(".")[2]), tensor))
    return model


def _is_router(name: str) -> bool:
    return name.endswith(("mlp.gate.weight", "e_score_correction_bias"))


def _like(old: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    value = value.float()
    return torch.nn.Parameter(value, requires_grad=False) if isinstance(old, torch.nn.Parameter) else value


def m3_state(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """An M3's text weights in fp32 under the names of transformers, of a raw checkpoint's ``tensors``."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        name = name.removeprefix("language_model.")
        if name.startswith(("vision_tower.", "multi_modal_projector.")):
            continue
        for ours, theirs in _M3_NAMES:
            if theirs not in name:
                name = name.replace(ours, theirs)
        state[name] = tensor.float()
    for name in [name for name in state if name.endswith(".gate_proj.weight")]:
        gate, up = state.pop(name), state.pop(name.replace("gate_proj", "up_proj"))
        state[name.replace("gate_proj", "gate_up_proj")] = torch.cat([gate, up])
    for first in [name for name in state if name.endswith(".experts.0.w1.weight")]:
        prefix = first.removesuffix("0.w1.weight")
        count = sum(name.startswith(prefix) for name in state) // 3
        w1, w2, w3 = (
            torch.stack([state.pop(f"{prefix}{expert}.{w}.weight") for expert in range(count)])
            for w in ("w1", "w2", "w3")
        )
        state[f"{prefix}gate_up_proj"], state[f"{prefix}down_proj"] = torch.cat([w1, w3], 1), w2
    return state
