"""String constraints of JSON schemas (``pattern``, ``format``) as terminals of the grammar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import llguidance

from mmx.grammar.errors import NO_TEXT, SchemaError, check_time, reason_of
from mmx.grammar.lark import MAX_TEXT

_DAY = (
    "(?:[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
    "|[0-9]{4}-(?:0[13-9]|1[0-2])-(?:29|30)|[0-9]{4}-(?:0[13578]|1[02])-31"
    "|[0-9]{2}(?:0[48]|[2468][048]|[13579][26])-02-29)"
)
_DATE = _DAY.replace("[0-9]{4}", "(?:[0-9]{3}[1-9]|[1-9][0-9]{3})")
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_CLOCK})"
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,20}[a-zA-Z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,4}}"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_GROUP = "[0-9a-fA-F]{1,4}"
_ATOM = "[a-zA-Z0-9_+-]{1,30}"
_PATH = "(?:/[a-zA-Z0-9._~-]{1,40}){0,8}/?"
_QUERY = r"(?:\?[a-zA-Z0-9._~=&-]{1,100})?(?:#[a-zA-Z0-9._~-]{1,40})?"

NO_NAME = "no name that can be written is left for a member that is not declared"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": "P(?:[0-9]{1,3}[YMWD]|(?:[0-9]{1,3}D)?T[0-9]{1,3}(?:H(?:[0-9]{1,2}M)?|M(?:[0-9]{1,2}S)?|S))",
    "email": rf"{_ATOM}(?:\.{_ATOM}){{0,3}}@{_LABEL}(?:\.{_LABEL}){{1,3}}",
    "hostname": _HOST,
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",
    "ipv6": f"(?:{_GROUP}:){{7}}{_GROUP}|(?:{_GROUP}:){{1,6}}:{_GROUP}|::(?:{_GROUP}:){{0,5}}{_GROUP}|::",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "uri": f"(?:https?|ftp)://{_HOST}(?::[1-9][0-9]{{0,3}})?{_PATH}{_QUERY}|(?:urn|mailto):[a-zA-Z0-9@.:_-]{{1,60}}",
}
"""Format name -> regular expression. Other formats are annotations, as JSON Schema allows."""

_QUANTIFIER = re.compile(r"(?:[*+?]|\{[0-9]+(?:,[0-9]*)?\})")
_ENDS = re.compile(r"(?<!\\)(?:\\\\)*\$\Z")  # an anchor, not an escaped dollar sign
_CLASS_ESCAPES = {"d": "0-9", "w": "0-9A-Za-z_", "s": " \\t\\n\\r\\x{b}\\x{c}"}
_ESCAPES = {"d": "[0-9]", "w": "[0-9A-Za-z_]", "D": "[^0-9]", "W": "[^0-9A-Za-z_]"}
_ESCAPES |= {"s": "[ \\t\\n\\r\\x{b}\\x{c}]", "S": "[^ \\t\\n\\r\\x{b}\\x{c}]"}


def pattern(source: str, path: str) -> str:
    """Terminal of all strings in which the ECMA regular expression ``source`` is found somewhere."""
    return "(" + " | ".join(f"/{_branch(part, path)}/" for part in _split(source, path)) + ")"


def _split(source: str, path: str) -> list[str]:
    """The alternatives outside any group."""
    if len(source) > MAX_TEXT:
        raise SchemaError(path, f"{path} has more than {MAX_TEXT} characters", "grammar_too_complex")
    parts, depth, start, i = [], 0, 0, 0
    while i < len(source):
        char = source[i]
        if char == "\\":
            i += 1
        elif char == "[":
            i = _class_end(source, i, path)
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and depth == 0:
            parts.append(source[start:i])
            start = i + 1
        i += 1
    return [*parts, source[start:]]


def _class_end(source: str, start: int, path: str) -> int:
    i = start + 1 + (source[start + 1 : start + 2] == "^")
    while i < len(source) and source[i] != "]":
        i += 2 if source[i] == "\\" else 1
    if i >= len(source):
        raise SchemaError(
            path, f"{path} is not a regular expression: a class is not closed", "invalid_schema"
        )
    return i


def _branch(source: str, path: str) -> str:
    before, after = "(?s:.*)", "(?s:.*)"
    if source.startswith("^"):
        source, before = source[1:], ""
    if _ENDS.search(source) is not None:
        source, after = source[:-1], ""
    return f"{before}(?:{_checked(source, path)}){after}"


@lru_cache(maxsize=1024)
def _fault(regex: str) -> str | None:
    """Why ``regex`` is none in the grammar's dialect; None if it is one."""
    failed, messages = llguidance.LLMatcher.validate_grammar_with_warnings(f"start: /{regex}/")
    return reason_of("\n".join(messages)) if failed else None


def _checked(source: str, path: str) -> str:
    """``source`` translated. Why looked at by itself: what is put around it could close its groups."""
    regex = _translated(source, path)
    if regex and (fault := _fault(regex)) is not None:
        raise SchemaError(path, f"{path} is not a regular expression: {fault}", "invalid_schema")
    return regex


@lru_cache(maxsize=1)
def _bytes() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer("byte")


@lru_cache(maxsize=1024)
def _matcher(term: str) -> llguidance.LLMatcher:
    """In its first state; token ids are bytes."""
    check_time()
    return llguidance.LLMatcher(_bytes(), f"start: T\nT: {term}\n", log_level=0)


def matches_nothing(term: str) -> bool:
    """Whether no string is one of the terminal ``term``."""
    matcher = _matcher(term).deep_copy()
    matcher.compute_bitmask()
    return bool(matcher.get_error().startswith(NO_TEXT))


def finds(source: str, text: str, path: str) -> bool:
    """Whether the ECMA regular expression ``source`` is found somewhere in ``text``."""
    check_time()
    matcher, ids = _matcher(pattern(source, path)).deep_copy(), list(text.encode())
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


def all_of(terms: Sequence[str], left_out: str) -> str:
    """The terminal of strings that match every one of ``terms``, of which the first is made of the characters
    that the notation has for them: without ``left_out``."""
    term = " & ".join(terms)
    if matches_nothing(term):
        raise SchemaError(
            "", f"no string has the pattern and the length asked for and is written without {left_out}"
        )
    return term


def _translated(source: str, path: str) -> str:
    out, i = [], 0
    while i < len(source):
        char = source[i]
        if char == "\\":
            text, i = _escape(source, i, path, _ESCAPES)
            out.append(text)
            continue
        if char == "[":
            end = _class_end(source, i, path)
            out.append(_class(source[i + 1 : end], path))
            i = end + 1
            continue
        if char in "^$":
            raise SchemaError(path, f"{path} has an anchor inside, which can not be enforced")
        if source.startswith("(?", i) and not source.startswith("(?:", i):
            named = re.match(r"\(\?P?<[A-Za-z_]\w*>", source[i:])
            if named is None:
                what = source[i : i + 3] if source[i + 2 : i + 3] not in "=!<" else "a look ahead or behind"
                raise SchemaError(path, f"{path} uses {what}, which can not be enforced")
            out.append("(?:")
            i += named.end()
            continue
        quantifier = _QUANTIFIER.match(source, i)
        if quantifier is not None:
            out.append(quantifier[0])
            i = quantifier.end()
            # How greedy a quantifier is does not change what it matches.
            i += source[i : i + 1] == "?"
            continue
        out.append("\\/" if char == "/" else "\\" + char if char in "{}]#&~-" else char)
        i += 1
    return "".join(out)


def _escape(source: str, i: int, path: str, classes: dict[str, str]) -> tuple[str, int]:
    char = source[i + 1 : i + 2]
    if char in classes:
        return classes[char], i + 2
    code = re.match(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]+)\})", source[i:])
    if code is not None:
        return f"\\x{{{next(filter(None, code.groups()))}}}", i + code.end()
    unicode_class = re.match(r"\\[pP](?:\{[A-Za-z_=]+\}|[A-Z])", source[i:])
    if unicode_class is not None:
        return unicode_class[0], i + unicode_class.end()
    if char in ("n", "r", "t", "f", "v"):
        return "\\" + char, i + 2
    if not char or char.isalnum():
        raise SchemaError(path, f"{path} uses \\{char}, which can not be enforced")
    return f"\\x{{{ord(char):x}}}", i + 2


def _class(body: str, path: str) -> str:
    if body == "^":
        return "(?s:.)"
    out, i = ["["], 0
    while i < len(body):
        char = body[i]
        if i and body.startswith("--", i):  # a range up to it, not a difference
            out.append("-\\-")
            i += 2
            continue
        if char == "\\":
            if body[i + 1 : i + 2] in ("D", "W", "S"):
                out.append(_ESCAPES[body[i + 1]])
                i += 2
                continue
            text, i = _escape(body, i, path, _CLASS_ESCAPES)
            out.append(text)
            continue
        out.append(f"\\{char}" if char in "[&~/" or (char == "^" and i) else char)
        i += 1
    return "".join([*out, "]"])


def whole(source: str, path: str) -> str:
    """Terminal of the strings that match ``source`` from their first to their last character."""
    parts = []
    for part in _split(source, path):
        inner = part.removeprefix("^")
        if _ENDS.search(inner) is not None:
            inner = inner[:-1]
        parts.append(f"/{_checked(inner, path)}/")
    return " | ".join(parts)
