"""Text that remembers which characters came from the caller, so that it can never spell a control token.

A chat template mixes its own literals (``]~b]user``) with caller text. Only the literals may become
control tokens, and the mixing happens inside a template we did not write. So every caller character that
occurs in any control token is replaced, one for one, by a private-use character (`MarkerAlphabet`) before
rendering. A control token found in the rendered text then consists of template characters only, also when
caller text and template text meet ("[e~" + "[e~[") or two caller strings do ("<thi" + "nk>").

`UserText` keeps templates working that look into the text (``content.split('</think>')``): it compares,
searches, cuts and strips by what the caller wrote, and returns pieces that still carry the replaced
characters. Where a template uses an operation that is not covered here, the result is a plain string with
replaced characters: the template may then overlook a marker, but nothing can be forged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

_PLANE_16 = range(0x100000, 0x10FFFE)


class MarkerAlphabet:
    """One-to-one map from the characters of all ``markers`` to private-use characters and back."""

    def __init__(self, markers: Iterable[str], first: int = _PLANE_16.start) -> None:
        self.markers = tuple(markers)
        chars = sorted({char for marker in self.markers for char in marker})
        self.private = range(first, first + len(chars))
        self._hide = {ord(char): code for char, code in zip(chars, self.private, strict=True)}
        self._show = {code: char for char, code in zip(chars, self.private, strict=True)}

    def hide(self, text: str) -> str:
        """``text`` as caller text: no character of it can take part in a marker."""
        return text.translate(self._hide)

    def show(self, text: str) -> str:
        """Inverse of `hide`; characters of the template pass unchanged."""
        return text.translate(self._show)

    def avoiding(self, used: set[int]) -> MarkerAlphabet | None:
        """An alphabet whose private characters do not occur in ``used``; None if all of plane 16 is taken."""
        if used.isdisjoint(self.private):
            return self
        step = len(self.private)
        for first in range(_PLANE_16.start, _PLANE_16.stop - step, step):
            if used.isdisjoint(range(first, first + step)):
                return MarkerAlphabet(self.markers, first)
        return None


@dataclass(frozen=True)
class RenderedPrompt:
    """A rendered chat. ``text`` is what a reader sees, ``hidden`` the same with all caller characters hidden
    by ``alphabet``; ``warnings``: one sentence each for what was accepted but is unusual."""

    text: str
    hidden: str
    alphabet: MarkerAlphabet
    warnings: tuple[str, ...] = ()


class UserText(str):
    """String of caller characters, possibly joined with template characters (see the module).

    The string value is the hidden form; ``_shown`` is what a reader would see, of the same length.
    """

    __slots__ = ("_alphabet", "_shown")

    _shown: str
    _alphabet: MarkerAlphabet

    @classmethod
    def make(cls, hidden: str, shown: str, alphabet: MarkerAlphabet) -> UserText:
        text = cls(hidden)
        text._shown = shown
        text._alphabet = alphabet
        return text

    @classmethod
    def from_user(cls, text: str, alphabet: MarkerAlphabet) -> UserText:
        return cls.make(alphabet.hide(text), text, alphabet)

    def _part(self, start: int, stop: int) -> UserText:
        return self.make(str.__getitem__(self, slice(start, stop)), self._shown[start:stop], self._alphabet)

    def _parts(self, pieces: Iterable[str], gap: int | None) -> list[UserText]:
        """The shown ``pieces`` as parts of this text, ``gap`` characters apart; None: wherever found next."""
        parts: list[UserText] = []
        position = 0
        for piece in pieces:
            if gap is None:
                position = self._shown.index(piece, position)
            parts.append(self._part(position, position + len(piece)))
            position += len(piece) + (gap or 0)
        return parts

    def __str__(self) -> str:
        return self

    def __hash__(self) -> int:
        return hash(self._shown)

    def __eq__(self, other: object) -> bool:
        return bool(self._shown == shown(other))

    def __ne__(self, other: object) -> bool:
        return bool(self._shown != shown(other))

    def __contains__(self, key: object) -> bool:
        return str(shown(key)) in self._shown

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        return self.make(str.__getitem__(self, key), self._shown[key], self._alphabet)

    def __iter__(self) -> Iterator[str]:
        return (self[position] for position in range(len(self)))

    def __add__(self, other: str) -> str:
        return concat((self, other))

    def __radd__(self, other: str) -> str:
        return concat((other, self))

    def strip(self, chars: str | None = None, /) -> str:
        return UserText.lstrip(self.rstrip(chars), chars)

    def lstrip(self, chars: str | None = None, /) -> UserText:
        return self._part(len(self) - len(self._shown.lstrip(shown(chars))), len(self))

    def rstrip(self, chars: str | None = None, /) -> UserText:
        return self._part(0, len(self._shown.rstrip(shown(chars))))

    def removeprefix(self, prefix: str, /) -> str:
        return self._part(len(self) - len(self._shown.removeprefix(shown(prefix))), len(self))

    def removesuffix(self, suffix: str, /) -> str:
        return self._part(0, len(self._shown.removesuffix(shown(suffix))))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Any]:
        return self._parts(self._shown.split(shown(sep), maxsplit), None if sep is None else len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Any]:
        return self._parts(self._shown.rsplit(shown(sep), maxsplit), None if sep is None else len(sep))

    def splitlines(self, keepends: bool = False) -> list[Any]:
        return self._parts(self._shown.splitlines(keepends), None)

    def partition(self, sep: str, /) -> tuple[Any, Any, Any]:
        first, middle, last = self._parts(self._shown.partition(shown(sep)), 0)
        return first, middle, last

    def rpartition(self, sep: str, /) -> tuple[Any, Any, Any]:
        first, middle, last = self._parts(self._shown.rpartition(shown(sep)), 0)
        return first, middle, last

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return super().replace(old, new, count)
        return join(self.split(old, count), new)

    def join(self, parts: Iterable[str], /) -> str:
        return join(parts, self)


def _by_shown_text(name: str) -> Callable[..., Any]:
    plain = getattr(str, name)

    def method(self: UserText, *args: Any) -> Any:
        return plain(self._shown, *map(shown, args))

    return method


def _changing_case(name: str) -> Callable[[UserText], UserText]:
    plain = getattr(str, name)

    def method(self: UserText) -> UserText:
        return UserText.from_user(plain(self._shown), self._alphabet)

    return method


for _name in ("startswith", "endswith", "find", "index", "rfind", "rindex", "count", "isspace", "isdigit"):
    setattr(UserText, _name, _by_shown_text(_name))
for _name in ("isalpha", "isalnum", "isupper", "islower", "isnumeric", "isdecimal", "isascii"):
    setattr(UserText, _name, _by_shown_text(_name))
for _name in ("__lt__", "__le__", "__gt__", "__ge__"):
    setattr(UserText, _name, _by_shown_text(_name))
for _name in ("lower", "upper", "title", "capitalize", "casefold", "swapcase"):
    setattr(UserText, _name, _changing_case(_name))


def shown(value: Any) -> Any:
    """What the caller wrote, for a `UserText` or a tuple with such; any other value as it is."""
    if isinstance(value, UserText):
        return value._shown
    if isinstance(value, tuple):
        return tuple(map(shown, value))
    return value


def check_unicode(text: str) -> None:
    """``ValueError`` if ``text`` holds half of a surrogate pair, which JSON can spell but UTF-8 can not."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ValueError(f"text: must be valid Unicode, got the lone surrogate U+{code:04X}") from None


def concat(parts: Iterable[object]) -> str:
    """``"".join`` that keeps the origin of each part."""
    texts = [part if isinstance(part, str) else str(part) for part in parts]
    hidden = "".join(texts)
    for text in texts:
        if isinstance(text, UserText):
            return UserText.make(hidden, "".join(map(shown, texts)), text._alphabet)
    return hidden


def join(parts: Iterable[object], separator: str = "") -> str:
    """``separator.join(parts)`` that keeps the origin of each part."""
    joined: list[object] = []
    for part in parts:
        joined += (separator, part) if joined else (part,)
    return concat(joined)


def wrap(value: Any, alphabet: MarkerAlphabet) -> Any:
    """A JSON-like value with all its strings, keys included, as `UserText`; containers are copied."""
    if isinstance(value, str):
        return UserText.from_user(value, alphabet)
    if isinstance(value, Mapping):
        return {wrap(key, alphabet): wrap(member, alphabet) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [wrap(item, alphabet) for item in value]
    return value


def unwrap(value: Any) -> Any:
    """Inverse of `wrap`."""
    if isinstance(value, Mapping):
        return {unwrap(key): unwrap(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [unwrap(item) for item in value]
    return shown(value)
