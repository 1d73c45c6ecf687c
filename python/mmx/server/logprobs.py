"""Logprobs of generated tokens in the two forms of the API."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from mmx.protocol import TokenLogprobs
from mmx.server.choice import TokenEntry
from mmx.tokenizer import Tokenizer

# JSON has no minus infinity.
FLOOR = -9999.0
_utf8 = codecs.getincrementaldecoder("utf-8")


def _finite(value: float) -> float:
    return value if value > FLOOR else FLOOR


class LogprobFormat:
    """Writes token entries; with ``as_ids`` a token is shown as ``token_id:N``."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._offsets: dict[int, int] = {}
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}

    def _text(self, token_id: int) -> str:
        if self._as_ids:
            return f"token_id:{token_id}"
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    def _offset(self, choice_index: int, token_id: int) -> int:
        """Where the choice's next token begins in its text; one inside a character begins where that does."""
        offset = self._offsets.get(choice_index, 0)
        decoder = self._decoders.setdefault(choice_index, _utf8("replace"))
        self._offsets[choice_index] = offset + len(decoder.decode(self._tokenizer.token_bytes(token_id)))
        return offset

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

    def prompt(self, token_ids: Sequence[int], infos: Sequence[TokenLogprobs]) -> list[Any]:
        """``prompt_logprobs``: null for the first prompt token, for each other one its own and the best
        alternatives, by id. Without ``infos`` (a request that was aborted in its prompt) the first only."""
        found: list[Any] = [None]
        for token_id, info in zip(token_ids[1:], infos, strict=bool(infos)):
            entry = {
                str(i): {"logprob": _finite(value), "rank": rank, "decoded_token": self._text(i)}
                for rank, (i, value) in enumerate(zip(info.top_ids, info.top_logprobs, strict=True), 1)
            }
            own = {"logprob": _finite(info.logprob), "rank": info.rank, "decoded_token": self._text(token_id)}
            found.append({str(token_id): own, **{i: top for i, top in entry.items() if i != str(token_id)}})
        return found

    def echoed(
        self, choice_index: int, token_ids: Sequence[int], infos: Sequence[TokenLogprobs], num_top: int
    ) -> dict[str, Any]:
        """The parallel lists of a completions choice for its prompt; those of the answer go on from there."""
        entries = [
            TokenEntry(
                token_id,
                TokenLogprobs(info.logprob, info.rank, info.top_ids[:num_top], info.top_logprobs[:num_top]),
            )
            for token_id, info in zip(token_ids[1:], infos, strict=bool(infos))
        ]
        first = self._text(token_ids[0])
        offset = self._offset(choice_index, token_ids[0])
        lists = self.completion(choice_index, entries)
        return {
            "tokens": [first, *lists["tokens"]],
            "token_logprobs": [None, *lists["token_logprobs"]],
            "top_logprobs": [None, *lists["top_logprobs"]],
            "text_offset": [offset, *lists["text_offset"]],
        }

    def completion(self, choice_index: int, entries: Sequence[TokenEntry]) -> dict[str, Any]:
        """The parallel lists of a completions choice; offsets go on from call to call of one choice."""
        tokens, values, tops, offsets = [], [], [], []
        for token_id, info in entries:
            text = self._text(token_id)
            tokens.append(text)
            values.append(_finite(info.logprob))
            pairs = zip(info.top_ids, info.top_logprobs, strict=True)
            top = {self._text(i): _finite(p) for i, p in pairs}
            tops.append({**top, text: _finite(info.logprob)})
            offsets.append(self._offset(choice_index, token_id))
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
