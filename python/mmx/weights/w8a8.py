"""Matrices of ModelSlim's w8a8 checkpoints, whose ``quant_model_description.json`` says how each is stored.

"W8A8_DYNAMIC" stores int8 codes [out, in] and a scale per row; "W8A8" (static) also what its int8 product
needs: the input's scale and offset, and bias and scale of the sums, which follow from the others. A rotation
(QuaRot) is folded into the matrices, nothing of it is left to do.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from mmx.errors import WeightsError
from mmx.model_config import W8A8_DESCRIPTION
from mmx.weights.rules import Piece, text_name
from mmx.weights.stream import Checkpoint

FLOAT = "FLOAT"
STATIC, DYNAMIC = "W8A8", "W8A8_DYNAMIC"
# Names beside ``X.weight`` are ``X.<part>``.
_PARTS = {
    DYNAMIC: ("weight_scale", "weight_offset"),
    STATIC: ("weight_scale", "weight_offset", "input_scale", "input_offset", "quant_bias", "deq_scale"),
}
# Scales may be bf16, whose products are off by at most 2^-8 + 2^-9.
_SCALE_TOLERANCE = 0.01


def read_kinds(folder: Path) -> dict[str, str]:
    """How each tensor is stored, by its name without the multimodal wrapper's prefix."""
    path = folder / W8A8_DESCRIPTION
    try:
        described = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except ValueError as error:
        raise WeightsError(f"{path} must be a JSON object: {error}") from None
    if described.get("kv_cache_type"):
        raise WeightsError(f"{path.name}: kv_cache_type {described['kv_cache_type']!r} can not be read yet")
    kinds = {}
    for name, kind in described.items():
        text = text_name(name)
        if text is None or not name.endswith(".weight"):
            continue
        if kind not in (FLOAT, STATIC, DYNAMIC):
            raise WeightsError(f"{path.name}: {name} must be {FLOAT}, {STATIC} or {DYNAMIC}, got {kind!r}")
        kinds[text] = str(kind)
    return kinds


def part_names(name: str, kind: str) -> tuple[str, ...]:
    """The tensors that belong to the matrix ``name``."""
    return tuple(name.removesuffix("weight") + part for part in _PARTS.get(kind, ()))


def read_int8(
    kind: str, checkpoint: Checkpoint, found: dict[str, str], name: str, piece: Piece, dtype: torch.dtype
) -> torch.Tensor:
    """Code times the scale of its row, in fp32 and then rounded to ``dtype``: what is taken by ``piece``.

    Raises WeightsError where a tensor has another shape or type than its kind, where codes have an offset, or
    where the parts of a static matrix add up to more than its product: a bias, which no matrix of the model
    has.
    """
    rows = piece.rows or (0, piece.shape[0])

    def read(part: str, types: tuple[str, ...], *shapes: tuple[int, ...]) -> torch.Tensor:
        tensor = name.removesuffix("weight") + part
        checkpoint.require(found[tensor], tensor, types, shapes)
        values = checkpoint.read(found[tensor])
        return values.reshape(-1) if part != "weight" else values

    floats = ("F32", "BF16", "F16")
    num_rows = piece.shape[0]
    per_row = ((num_rows, 1), (num_rows,))
    codes = read("weight", ("I8",), piece.shape)[slice(*rows)]
    scale = read("weight_scale", floats, *per_row)[slice(*rows)].float()
    if read("weight_offset", (*floats, "I8"), *per_row).count_nonzero():
        raise WeightsError(f"tensor {name} has offsets that are not 0: only symmetric codes can be read")
    if kind == STATIC:
        one = ((1,), ())
        input_scale = read("input_scale", floats, *one).float()
        offset = read("input_offset", ("I8", *floats), *one).double()
        bias = read("quant_bias", ("I32",), (num_rows,))[slice(*rows)].double()
        deq = read("deq_scale", ("F32", "I64"), (num_rows,))[slice(*rows)]
        # Why: models in fp16 store the scale's 32 bits in an integer.
        deq = deq.to(torch.int32).view(torch.float32) if deq.dtype == torch.int64 else deq
        if not torch.allclose(deq, input_scale * scale, rtol=_SCALE_TOLERANCE, atol=0.0):
            raise WeightsError(f"tensor {name}: its deq_scale is not input_scale times weight_scale")
        if not torch.equal(bias, -offset * codes.sum(1, dtype=torch.int64)):
            raise WeightsError(
                f"tensor {name}: its quant_bias is more than the offset's, but the model has no bias"
            )
    values = codes.float().mul_(scale[:, None])
    if piece.cols is not None:
        values = values.narrow(1, piece.cols[0], piece.cols[1] - piece.cols[0])
    return values.to(dtype)
