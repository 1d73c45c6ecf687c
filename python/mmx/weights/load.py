"""Strict filling of a model from a checkpoint: every tensor is used, every parameter is filled, once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from mmx import ops
from mmx.errors import WeightsError
from mmx.layout import Share
from mmx.model_config import FP8_BLOCK, ModelConfig
from mmx.weights.rules import MXFP8_SUFFIX, SCALE_SUFFIX, Piece, pieces, text_name
from mmx.weights.stage import Job, copy_all
from mmx.weights.stream import Checkpoint
from mmx.weights.w8a8 import FLOAT, part_names, read_int8, read_kinds

_FLOATS, _FP8 = ("BF16", "F16", "F32"), "F8_E4M3"


def load_weights(
    folder: Path,
    config: ModelConfig,
    parameters: Mapping[str, torch.Tensor],
    progress: Callable[[float], None],
    share: Share | None = None,
) -> None:
    """Fill ``parameters`` (name -> tensor of the model, any device) from the checkpoint in ``folder``: the
    whole model, or the ``share`` of one rank, which reads its slices only.

    Values are converted to the parameter's dtype. fp8-block matrices stay what they are where the parameter
    is e4m3, with its scales in the parameter of the same name and ``_scale``; else they are dequantised, as
    mxfp8 and int8 matrices are. ``progress`` gets the share of loaded bytes, up to 1, once per percent.
    Raises WeightsError naming the first tensor that is missing, unexpected, mis-shaped or of a wrong type.
    """
    checkpoint = Checkpoint(folder)
    found = {text: name for name in checkpoint.names() if (text := text_name(name)) is not None}
    table, names = pieces(config, share), pieces(config)
    suffix = MXFP8_SUFFIX if config.mxfp8 else SCALE_SUFFIX
    has_scales = config.fp8_blocks or config.mxfp8
    scales = {name + suffix for name, piece in names.items() if has_scales and piece.matrix}
    kinds = read_kinds(folder) if config.w8a8 else {}
    parts = [part for name in names for part in part_names(name, kinds.get(name, FLOAT))]
    needed = [*names, *parts]
    if missing := set(needed) - found.keys():
        name = min(missing, key=needed.index)
        raise WeightsError(
            f"tensor {name} is missing: {checkpoint.whereabouts(name)} ({len(missing)} missing in all)"
        )
    if unexpected := found.keys() - set(needed) - scales:
        name = min(unexpected)
        file = checkpoint.entry(found[name]).file
        raise WeightsError(
            f"tensor {name} in {file} is unexpected: the model of config.json has no such part "
            f"({len(unexpected)} unexpected in all)"
        )
    _check_filled(table, parameters)
    sizes = {name: checkpoint.entry(found[name]) for name in table}
    total = sum(entry.num_bytes for entry in sizes.values()) or 1
    jobs: list[Job] = []
    # Why sorted: files are read from front to back.
    for name in sorted(table, key=lambda name: (sizes[name].file, sizes[name].place)):
        piece = table[name]
        target = _target(parameters, piece)
        reader = _read_mxfp8 if config.mxfp8 and name + MXFP8_SUFFIX in found else _read
        if (kind := kinds.get(name, FLOAT)) != FLOAT:
            reader = partial(read_int8, kind)
        read = partial(reader, checkpoint, found, name, piece, target.dtype)
        jobs.append((target, read, sizes[name].num_bytes))
        if target.dtype == torch.float8_e4m3fn:
            blocks = _blocks_of(piece)
            jobs.append(
                (_target(parameters, blocks), partial(_read_scale, checkpoint, found, name, piece), 0)
            )
    done = 0
    for num_bytes in copy_all(jobs, next(iter(parameters.values())).device):
        before, done = done, done + num_bytes
        if 100 * before // total != 100 * done // total:
            progress(done / total)


def _target(parameters: Mapping[str, torch.Tensor], piece: Piece) -> torch.Tensor:
    target = parameters[piece.parameter]
    if piece.expert is not None:
        target = target[piece.expert]
    return target[piece.first_row : piece.first_row + piece.part_shape[0]]


def _read(
    checkpoint: Checkpoint, found: dict[str, str], name: str, piece: Piece, dtype: torch.dtype
) -> torch.Tensor:
    entry = checkpoint.entry(found[name])
    where = f"tensor {name} in {entry.file}"
    if entry.shape != piece.shape:
        raise WeightsError(f"{where} must have shape {list(piece.shape)}, got {list(entry.shape)}")
    scale_name = found.get(name + SCALE_SUFFIX)
    fp8 = entry.kind == _FP8
    if scale_name is None:
        if dtype == torch.float8_e4m3fn:
            raise WeightsError(
                f"{where} must be {_FP8} with {name + SCALE_SUFFIX}, as quantization_config says, "
                f"got {entry.kind} without"
            )
        if fp8:
            raise WeightsError(
                f"{where} is fp8 and needs {name + SCALE_SUFFIX} and fp8 in quantization_config"
            )
        if entry.kind not in _FLOATS:
            raise WeightsError(f"{where} must be {' or '.join(_FLOATS)}, got {entry.kind}")
        return _cut(checkpoint.read(found[name]), piece)
    if not fp8:
        raise WeightsError(f"{where} has a scale and must be {_FP8}, got {entry.kind}")
    if dtype == torch.float8_e4m3fn:
        return _cut(checkpoint.read(found[name]), piece)
    rows, cols = _blocks(piece)
    quantised = checkpoint.read(found[name])[rows.begin : rows.end, cols.begin : cols.end]
    scales = _read_scale(checkpoint, found, name, piece)
    values = ops.fp8_block_dequant(quantised.contiguous(), scales.contiguous(), dtype)
    return values[rows.inside, cols.inside]


def _read_mxfp8(
    checkpoint: Checkpoint, found: dict[str, str], name: str, piece: Piece, dtype: torch.dtype
) -> torch.Tensor:
    """Values of e4m3 codes with a power of two (e8m0) per 32 columns of a row."""
    scales = name + MXFP8_SUFFIX
    checkpoint.require(found[name], name, [_FP8], [piece.shape])
    checkpoint.require(found[scales], scales, ["U8"], [(piece.shape[0], -(-piece.shape[1] // 32))])
    codes, scale = checkpoint.read(found[name]), checkpoint.read(found[scales])
    return _cut(ops.mxfp8_dequant(codes, scale, dtype), piece)


def _read_scale(checkpoint: Checkpoint, found: dict[str, str], name: str, piece: Piece) -> torch.Tensor:
    """Scales of the blocks that cover what is taken."""
    scale = name + SCALE_SUFFIX
    expected = tuple(-(-size // FP8_BLOCK) for size in piece.shape)
    checkpoint.require(found[scale], scale, ["F32"], [expected])
    rows, cols = _blocks(piece)
    return checkpoint.read(found[scale])[rows.first : rows.last, cols.first : cols.last]


def _blocks_of(piece: Piece) -> Piece:
    """The piece whose elements are the scale blocks of ``piece``; a parameter that is e4m3 cuts none."""
    rows, cols = _blocks(piece)
    return Piece(
        piece.parameter + "_scale",
        (rows.last - rows.first, cols.last - cols.first),
        piece.first_row // FP8_BLOCK,
        piece.expert,
    )


def _cut(tensor: torch.Tensor, piece: Piece) -> torch.Tensor:
    """The rows and columns that are taken, as a view."""
    for dim, span in enumerate((piece.rows, piece.cols)):
        if span is not None:
            tensor = tensor.narrow(dim, span[0], span[1] - span[0])
    return tensor


class _Blocks(NamedTuple):
    """Scale blocks ``first .. last`` that cover a span, the elements ``begin .. end`` of them, and where
    among these the span lies."""

    first: int
    last: int
    begin: int
    end: int
    inside: slice


def _blocks(piece: Piece) -> list[_Blocks]:
    """Of its rows and of its columns."""
    found = []
    for span, size in zip((piece.rows, piece.cols), piece.shape, strict=True):
        begin, end = span or (0, size)
        first, last = begin // FP8_BLOCK, -(-end // FP8_BLOCK)
        start = first * FP8_BLOCK
        inside = slice(begin - start, end - start)
        found.append(_Blocks(first, last, start, min(last * FP8_BLOCK, size), inside))
    return found


def _check_filled(table: dict[str, Piece], parameters: Mapping[str, torch.Tensor]) -> None:
    """Invariant: the table covers every element of every parameter; a breach is a bug of the rules."""
    filled = dict.fromkeys(parameters, 0)
    for piece in table.values():
        filled[piece.parameter] += math.prod(piece.part_shape)
        if parameters[piece.parameter].dtype == torch.float8_e4m3fn:
            blocks = _blocks_of(piece)
            filled[blocks.parameter] += math.prod(blocks.part_shape)
    for name, parameter in parameters.items():
        if filled[name] != parameter.numel():
            raise AssertionError(f"rules fill {filled[name]} of {parameter.numel()} elements of {name}")
