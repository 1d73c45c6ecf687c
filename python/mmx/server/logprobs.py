"""Logprobs of generated tokens in the two forms of the API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmx.server.choice import TokenEntry
from mmx.tokenizer import Tokenizer

# JSON has no minus infinity.
FLOOR = -9999.0


def _finite(value: float) -> float:
    return value if value > FLOOR else FLOOR


class LogprobFormat:
    """Writes token entries; with ``as_ids`` a token is shown as ``token_id:N``."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._offsets: dict[int, int] = {}

    def _text(self, token_id: int) -> str:
        if self._as_ids:
            return f"token_id:{token_id}"
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    def _one(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = list(self._tokenizer.token_bytes(token_id))
        return {"token": self._text(token_id), "logprob": _finite(logprob), "bytes": raw}

    def chat(self, entries: Sequence[TokenEntry]) -> dict[str, Any]:
        """``{"content": [...]}`` of a chat choice."""
        content = []
        for token_id, info in entries:
            top = [self._one(i, p) for i, p in zip(info.top_ids, info.top_logprobs, strict=True)]
            content.append({**self._one(token_id, info.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def completion(self, choice_index: int, entries: Sequence[TokenEntry]) -> dict[str, Any]:
        """The parallel lists of a completions choice; offsets go on from call to call of one choice."""
        tokens, values, tops, offsets = [], [], [], []
        offset = self._offsets.get(choice_index, 0)
        for token_id, info in entries:
            text = self._text(token_id)
            tokens.append(text)
            values.append(_finite(info.logprob))
            pairs = zip(info.top_ids, info.top_logprobs, strict=True)
            top = {self._text(i): _finite(p) for i, p in pairs}
            tops.append({**top, text: _finite(info.logprob)})
            offsets.append(offset)
            offset += len(text)
        self._offsets[choice_index] = offset
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
