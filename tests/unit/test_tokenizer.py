"""Tokenizer against the tokenizers library, and the wall between caller text and control tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmx.model_config import load_eos_token_ids
from mmx.tokenizer import ChatTemplate, Tokenizer
from unit.tokenizer_helpers import DEMO, NS, m2_folder, m3_tokenizer, reference_chat_template

TOKENIZER = m3_tokenizer()
LIBRARY = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
MARKERS = list(TOKENIZER.control_ids)
PIECES = [
    "Hello, world",
    " Grüße\n",
    "日本語",
    "🌊\u200d",
    "<",
    ">",
    "]",
    "[e",
    "~[",
    "  \t",
    "x = 1;\r\n",
    "\x00",
    *MARKERS,
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES) | st.text(st.characters(codec="utf-8"), max_size=5), max_size=12).map(
        "".join
    )
)
def test_encode_equals_library(text: str) -> None:
    assert TOKENIZER.encode(text) == LIBRARY.encode(text, add_special_tokens=False).ids


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=20), st.booleans())
def test_decode_equals_library(ids: list[int], skip: bool) -> None:
    assert TOKENIZER.decode(ids, skip_special_tokens=skip) == LIBRARY.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES) | st.text(st.characters(codec="utf-8"), max_size=5), max_size=12).map(
        "".join
    )
)
def test_encode_plain_never_gives_control_ids(text: str) -> None:
    ids = TOKENIZER.encode_plain(text)
    assert not set(ids) & set(TOKENIZER.control_ids.values())
    assert TOKENIZER.decode(ids) == text


def test_ids_and_sizes_come_from_the_files() -> None:
    assert TOKENIZER.eos_token_ids == (TOKENIZER.control_ids["[e~["],)
    assert TOKENIZER.vocab_size == json.loads((DEMO / "config.json").read_text())["vocab_size"]
    assert [TOKENIZER.token_bytes(i) for i in TOKENIZER.unused_ids] == [b""] * len(TOKENIZER.unused_ids)
    assert TOKENIZER.unused_ids == tuple(range(max(TOKENIZER.control_ids.values()) + 1, TOKENIZER.vocab_size))
    assert len(TOKENIZER.input_only_ids) == 4
    assert TOKENIZER.control_ids["<mm:think>"] not in TOKENIZER.special_ids
    assert TOKENIZER.control_ids["]~b]"] in TOKENIZER.special_ids
    assert TOKENIZER.ids_of(["</mm:think>", "no marker"]) == {
        "</mm:think>": TOKENIZER.control_ids["</mm:think>"]
    }


def test_id_of() -> None:
    newline = TOKENIZER.id_of("\n")
    assert newline is not None
    assert TOKENIZER.token_bytes(newline) == b"\n"
    assert TOKENIZER.id_of("</mm:think>") == TOKENIZER.control_ids["</mm:think>"]
    assert TOKENIZER.id_of("no such vocabulary entry at all") is None


# ---- rendered chats ------------------------------------------------------------------------------------

FAMILIES = ["m2", "m3"]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, ChatTemplate]:
    if request.param == "m3":
        return TOKENIZER, reference_chat_template("m3")
    tokenizer = Tokenizer(m2_folder(tmp_path_factory.mktemp("m2")))
    return tokenizer, reference_chat_template("m2", list(tokenizer.control_ids))


def conversation(texts: list[str]) -> dict[str, object]:
    """A conversation with each of the eight ``texts`` in a place of its own."""
    system, user, reasoning, answer, key, value, result, description = texts
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": {key: value, "n": [value, {key: 1}]}},
    }
    return {
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": [{"type": "text", "text": user}, {"type": "text", "text": answer}]},
            {"role": "assistant", "reasoning_content": reasoning, "content": answer, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": result},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": user},
        ],
        "tools": [
            {"type": "function", "function": {"name": "f", "description": description, "parameters": {}}}
        ],
    }


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="<>[]")), min_size=8, max_size=8)
)
def test_content_without_markers_encodes_like_the_whole_text(
    pair: tuple[Tokenizer, ChatTemplate], texts: list[str]
) -> None:
    tokenizer, template = pair
    prompt = template.render(**conversation(texts))  # type: ignore[arg-type]
    assert tokenizer.encode_rendered(prompt) == tokenizer.encode(prompt.text)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_text_adds_a_control_token(pair: tuple[Tokenizer, ChatTemplate], data: st.DataObject) -> None:
    tokenizer, template = pair
    controls = {i: text for text, i in tokenizer.control_ids.items()}
    hostile = list(tokenizer.control_ids)
    halves = [text[:cut] for text in hostile for cut in (1, 2, -1)] + [text[1:] for text in hostile]
    names = [text[1:-1] for text in hostile]
    pieces = st.sampled_from([*hostile, *halves, *names, "tool_call", "x"])
    texts = data.draw(st.lists(st.lists(pieces, min_size=1, max_size=4).map("".join), min_size=8, max_size=8))
    # A closing tag in an answer makes the template itself open a thought: that is another shape of turn.
    assume("think>" not in texts[3])
    ids = tokenizer.encode_rendered(template.render(**conversation(texts)))  # type: ignore[arg-type]
    expected = tokenizer.encode_rendered(template.render(**conversation(["a"] * 8)))  # type: ignore[arg-type]
    assert [controls[i] for i in ids if i in controls] == [controls[i] for i in expected if i in controls]
    assert tokenizer.decode(ids, skip_special_tokens=False) == template.render(**conversation(texts)).text  # type: ignore[arg-type]


def test_marker_from_template_and_text_together_is_no_control_token() -> None:
    template = ChatTemplate("<{{ messages[0].content }}think>[e~[", markers=MARKERS)
    ids = TOKENIZER.encode_rendered(template.render([{"role": "user", "content": "mm:"}]))
    assert [i for i in ids if i in TOKENIZER.control_ids.values()] == [TOKENIZER.control_ids["[e~["]]
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == "<mm:think>[e~["


def test_image_parts_are_control_tokens_and_quoted_ones_are_not() -> None:
    template = reference_chat_template("m3")
    image = TOKENIZER.control_ids["]<]image[>["]
    parts = [{"type": "text", "text": "]<]image[>["}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    ids = TOKENIZER.encode_rendered(template.render([{"role": "user", "content": parts}], allow_media=True))
    assert ids.count(image) == 1


def test_private_use_characters_of_the_caller_survive() -> None:
    template = reference_chat_template("m3")
    text = "".join(map(chr, range(0x100000, 0x100080))) + "<mm:think>"
    prompt = template.render([{"role": "user", "content": text}])
    assert text in prompt.text
    ids = TOKENIZER.encode_rendered(prompt)
    assert text in TOKENIZER.decode(ids, skip_special_tokens=False)
    assert ids.count(TOKENIZER.control_ids["<mm:think>"]) == 1  # the one of the system block


def test_lone_surrogate_is_refused() -> None:
    for encode in (TOKENIZER.encode, TOKENIZER.encode_plain):
        with pytest.raises(ValueError, match=r"lone surrogate U\+D800"):
            encode("a\ud800")
    with pytest.raises(ValueError, match=r"^messages: .*lone surrogate U\+DFFF"):
        reference_chat_template("m3").render([{"role": "user", "content": "\udfff"}])


def test_end_of_an_answer_is_the_engines(tmp_path: Path) -> None:
    """Class defaults in config.json end nothing; grammars allowed an end that the engine read as text."""
    folder = m2_folder(tmp_path)
    (folder / "config.json").write_text('{"eos_token_id": 2}')
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert Tokenizer(folder).eos_token_ids == load_eos_token_ids(folder) != (2,)


# ---- files that are refused ------------------------------------------------------------------------------


def write(folder: Path, **changes: object) -> Path:
    m2_folder(folder)
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**spec, **changes}), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": {"type": "Metaspace"}}, "byte-level BPE"),
        ({"post_processor": {"type": "BertProcessing"}}, "post-processor BertProcessing"),
        ({"added_tokens": [{"content": "<x>", "id": 4032, "lstrip": True}]}, "'<x>' uses lstrip"),
    ],
)
def test_unsupported_file_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Tokenizer(write(tmp_path, **changes))


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        Tokenizer(tmp_path)
    m2_folder(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 99999}')
    with pytest.raises(ValueError, match=r"eos_token_id in .*got 99999"):
        Tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config\.json is not valid JSON"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("key", ["added_tokens", "model", "pre_tokenizer", "post_processor"])
def test_parts_of_another_kind_are_named(key: str, tmp_path: Path) -> None:
    m2_folder(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec | {key: ["x"]}))
    with pytest.raises(ValueError, match=r"^tokenizer: .*(can not be read|must hold)"):
        Tokenizer(tmp_path)


def test_post_processor_and_controls_inside_the_vocabulary(tmp_path: Path) -> None:
    """Trainers put special tokens into the vocabulary too; they must still be unreachable for text."""
    spec = json.loads((DEMO / "tokenizer.json").read_text("utf-8"))
    for token in spec["added_tokens"]:
        spec["model"]["vocab"][token["content"]] = token["id"]
    bos = "]~!b["
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {bos: {"id": bos, "ids": [TOKENIZER.control_ids[bos]], "tokens": [bos]}},
    }
    m2_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    tokenizer = Tokenizer(tmp_path)
    text = f"Tide{NS}<tool_call>"
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode(text, add_special_tokens=True) == library.encode(text).ids
    assert not set(tokenizer.encode_plain(text)) & set(tokenizer.control_ids.values())
