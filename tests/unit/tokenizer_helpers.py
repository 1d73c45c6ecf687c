"""Small tokenizers with the marker sets of M2 and M3, made from the one that ships with the demo model."""

from __future__ import annotations

import json
from pathlib import Path

from mmx.tokenizer import ChatTemplate, Tokenizer, reference_template
from mmx.tokenizer.messages import Family

DEMO = Path(__file__).parents[2] / "python" / "mmx" / "demo" / "model"
NS = "]<]minimax[>["


def m3_tokenizer() -> Tokenizer:
    return Tokenizer(DEMO)


def m2_folder(folder: Path) -> Path:
    """Writes a tokenizer with M2's markers: other strings, and none after the tool call tags."""
    spec = json.loads((DEMO / "tokenizer.json").read_text("utf-8"))
    renamed = {"<tool_call>": "<minimax:tool_call>", "</tool_call>": "</minimax:tool_call>"}
    added = []
    for token in spec["added_tokens"]:
        if "frame" in token["content"] or "mm:think" in token["content"] or token["content"] == NS:
            continue
        added.append({**token, "content": renamed.get(token["content"], token["content"])})
    spec["added_tokens"] = added
    (folder / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        (folder / name).write_text((DEMO / name).read_text("utf-8"), "utf-8")
    return folder


def reference_chat_template(family: Family, markers: list[str] | None = None) -> ChatTemplate:
    known = markers if markers is not None else list(m3_tokenizer().control_ids)
    return ChatTemplate(reference_template(family), markers=known, family=family)
