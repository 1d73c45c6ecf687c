"""Text <-> token ids with the ``tokenizer.json`` of a checkpoint (byte-level BPE).

Added tokens ("control tokens") are recognised here and not in the library, because whether a marker is a
control token depends on who wrote it: `Tokenizer.encode_rendered` takes control tokens from the chat
template only. No id is known to this module; all come from the files, by text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from mmx.tokenizer.user_text import RenderedPrompt, check_unicode

# Media placeholders stand for input positions; a sampled one has no meaning.
_INPUT_ONLY = ("]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>[")


class Tokenizer:
    """Tokenizer of a checkpoint folder.

    Reads ``tokenizer.json``; ``generation_config.json``, ``config.json`` and ``tokenizer_config.json`` where
    present. ``ValueError`` names the file and what is wrong with it.

    ``vocab_size``: rows of the model's embedding (from ``config.json``), at least the highest id + 1.
    ``control_ids``: text -> id of every added token, special or not.
    ``special_ids``: ids of the added tokens that are flagged special.
    ``eos_token_ids``: ids that end an answer.
    ``unused_ids``: ids below ``vocab_size`` without text; they decode to nothing and must never be sampled.
    ``input_only_ids``: media placeholders, which must never be sampled either.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        spec = _read_json(self.folder / "tokenizer.json")
        if spec is None:
            raise ValueError(f"tokenizer: {self.folder} has no tokenizer.json")
        try:
            self._read(spec)
        except ValueError:
            raise
        except Exception as error:  # the library's own, or of values of another kind than it writes
            raise ValueError(f"tokenizer: the files in {self.folder} can not be read: {error!r}") from error

    def _read(self, spec: Mapping[str, Any]) -> None:
        names = ("tokenizer_config.json", "config.json", "generation_config.json")
        config, model_config, generation_config = (_read_json(self.folder / name) or {} for name in names)
        _check_byte_level(spec)
        added = spec.get("added_tokens") or []
        self.control_ids: dict[str, int] = {token["content"]: token["id"] for token in added}
        self.special_ids = frozenset(token["id"] for token in added if token.get("special"))
        self.special_token_texts = _special_token_texts(config)
        self._prefix_ids, self._suffix_ids = _template_ids(spec.get("post_processor"))
        self._controls = _longest_first(self.control_ids)

        self._tokens: dict[int, str] = {token_id: text for text, token_id in spec["model"]["vocab"].items()}
        self._bytes: dict[int, bytes] = {i: text.encode() for text, i in self.control_ids.items()}
        num_ids = max([*self._tokens, *self._bytes], default=-1) + 1
        self.vocab_size = max(num_ids, _model_vocab_size(model_config))
        known = self._tokens.keys() | self._bytes.keys()
        self.unused_ids = tuple(i for i in range(self.vocab_size) if i not in known)
        self.input_only_ids = tuple(self.ids_of(_INPUT_ONLY).values())
        self.eos_token_ids = self._eos_token_ids(generation_config)
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(_without_controls(spec, self.control_ids)))

    # ---- text -> ids ---------------------------------------------------------------------------------

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Ids of ``text``, control tokens recognised wherever they are spelled (trusted text only).

        ``add_special_tokens``: also what the file's post-processor puts around a text (MiniMax: nothing).
        """
        ids = self._encode_with_controls(text, None)
        return [*self._prefix_ids, *ids, *self._suffix_ids] if add_special_tokens else ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of ``text`` with every marker as ordinary text."""
        return self._encode_pieces([text])[0]

    def encode_rendered(self, prompt: RenderedPrompt) -> list[int]:
        """Ids of a rendered chat: control tokens where the template wrote them, ordinary text elsewhere.

        Equal to ``encode(prompt.text)`` whenever no caller text takes part in a marker.
        """
        return self._encode_with_controls(prompt.hidden, prompt)

    def _encode_with_controls(self, text: str, prompt: RenderedPrompt | None) -> list[int]:
        pieces = self._controls.split(text)
        plain = [prompt.alphabet.show(piece) for piece in pieces[::2]] if prompt else pieces[::2]
        encoded = self._encode_pieces(plain)
        ids = encoded[0]
        for control, piece_ids in zip(pieces[1::2], encoded[1:], strict=True):
            ids.append(self.control_ids[control])
            ids += piece_ids
        return ids

    def _encode_pieces(self, pieces: list[str]) -> list[list[int]]:
        try:
            return [piece.ids for piece in self._plain.encode_batch_fast(pieces, add_special_tokens=False)]
        except TypeError:
            for piece in pieces:
                check_unicode(piece)
            raise

    # ---- ids -> text ---------------------------------------------------------------------------------

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one token, possibly part of a character; empty for an id without text."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = _bytes_of(self._tokens.get(token_id, ""))
        return known

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        return b"".join(self.token_bytes(i) for i in ids if i not in skipped).decode("utf-8", "replace")

    def id_of(self, text: str) -> int | None:
        """Id of the control token spelled ``text``, else of the entry with its bytes, else None."""
        if text in self.control_ids:
            return self.control_ids[text]
        token_id = self._plain.token_to_id("".join(_BYTE_TO_CHAR[byte] for byte in text.encode()))
        return token_id if token_id in self._tokens else None

    def ids_of(self, texts: Iterable[str]) -> dict[str, int]:
        """Ids of those ``texts`` that are control tokens; the rest is left out."""
        return {text: self.control_ids[text] for text in texts if text in self.control_ids}

    def _eos_token_ids(self, generation: Mapping[str, Any]) -> tuple[int, ...]:
        # As the engine finds them (model_config.load_eos_token_ids): ids in config.json are class defaults.
        found = generation.get("eos_token_id", self.control_ids.get("[e~["))
        if found is None and "eos_token" in self.special_token_texts:
            found = self.id_of(self.special_token_texts["eos_token"])
        ids = found if isinstance(found, list) else [found]
        if not ids or any(not isinstance(i, int) or not 0 <= i < self.vocab_size for i in ids):
            raise ValueError(
                f"tokenizer: eos_token_id in {self.folder}/generation_config.json must be an id or a list of "
                f"ids below {self.vocab_size}, got {found!r}"
            )
        return tuple(ids)


def _read_json(path: Path) -> Any:
    """Content of a JSON file, None if there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"tokenizer: {path} is not valid JSON: {error}") from None


def _check_byte_level(spec: Mapping[str, Any]) -> None:
    model_type = spec.get("model", {}).get("type")
    decoder = spec.get("decoder") or {}
    decoders = decoder.get("decoders", [decoder])
    if model_type != "BPE" or [part.get("type") for part in decoders] != ["ByteLevel"]:
        raise ValueError(
            f"tokenizer: tokenizer.json must hold a byte-level BPE (model BPE, decoder ByteLevel), got model "
            f"{model_type} and decoder {decoder.get('type')}"
        )
    for token in spec.get("added_tokens") or []:
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag):
                raise ValueError(
                    f"tokenizer: added token {token['content']!r} uses {flag}, which is not supported"
                )


def _without_controls(spec: Mapping[str, Any], controls: Mapping[str, int]) -> dict[str, Any]:
    """The tokenizer that knows no control token: neither as added token nor as vocabulary entry."""
    model = dict(spec["model"])
    removed = {text for text in controls if text in model["vocab"]}
    if removed:
        model["vocab"] = {text: i for text, i in model["vocab"].items() if text not in removed}
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        model["merges"] = [pair for pair in pairs if removed.isdisjoint((*pair, "".join(pair)))]
    plain: dict[str, Any] = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return {**spec, **plain, "model": model}


def _template_ids(processor: Mapping[str, Any] | None) -> tuple[list[int], list[int]]:
    """Ids that the post-processor puts before and after a single text."""
    before: list[int] = []
    after: list[int] = []
    for part in (processor or {}).get("processors", [processor or {}]):
        if part.get("type") not in (None, "ByteLevel", "TemplateProcessing"):
            raise ValueError(f"tokenizer: post-processor {part['type']} in tokenizer.json is not supported")
        target = before
        for item in part.get("single", []):
            if "Sequence" in item:
                target = after
            else:
                target += part["special_tokens"][item["SpecialToken"]["id"]]["ids"]
    return before, after


def _special_token_texts(config: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token``, ``eos_token`` ... of tokenizer_config.json, as templates may use them."""
    texts: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str):
            texts[name] = value
    return texts


def _model_vocab_size(config: Mapping[str, Any]) -> int:
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size", 0))
    if not isinstance(size, int):
        raise ValueError(f"tokenizer: vocab_size in config.json must be an integer, got {size!r}")
    return size


def _longest_first(texts: Iterable[str]) -> re.Pattern[str]:
    """Pattern with one group that finds the leftmost, then longest of ``texts``; never matches if none."""
    ordered = sorted(texts, key=len, reverse=True)
    return re.compile("(" + ("|".join(map(re.escape, ordered)) if ordered else r"(?!)") + ")")


def _byte_alphabet() -> dict[int, str]:
    """The byte-level BPE convention: printable Latin-1 bytes stand for themselves, the other 68 for
    U+0100 onwards, in order of the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in alphabet:
            alphabet[byte] = chr(0x100 + len(alphabet) - len(printable))
    return alphabet


_BYTE_TO_CHAR = _byte_alphabet()
_CHAR_TO_BYTE = {char: byte for byte, char in _BYTE_TO_CHAR.items()}


def _bytes_of(piece: str) -> bytes:
    """Bytes of a vocabulary entry; an entry outside the byte alphabet stands for itself."""
    if all(char in _CHAR_TO_BYTE for char in piece):
        return bytes(_CHAR_TO_BYTE[char] for char in piece)
    return piece.encode()
