"""Regular expressions for numbers within limits, written without exponents."""

from __future__ import annotations

import math
from decimal import Decimal

_DIGITS = 15  # before and after the point: what a double surely keeps
_EXACT_DIGITS = 6  # after the point where rounding to a double must not reach a limit that is excluded
_ANY = "/-?(0|[1-9][0-9]{0,14})(\\.[0-9]{1,15})?([eE][+-]?[0-9]{1,2})?/"


def number(
    *,
    integer: bool,
    minimum: Decimal | None,
    maximum: Decimal | None,
    above: Decimal | None,
    below: Decimal | None,
) -> str:
    """Terminal of the numbers with ``minimum <= x <= maximum`` and ``above < x < below``."""
    if integer:
        # Why: values taken out of a terminal can leave beginnings that lead nowhere: the matcher fails there
        if above is not None:
            next_one = Decimal(math.floor(above) + 1)
            minimum, above = next_one if minimum is None else max(minimum, next_one), None
        if below is not None:
            last = Decimal(math.ceil(below) - 1)
            maximum, below = last if maximum is None else min(maximum, last), None
    limits = [limit for limit in (minimum, maximum, above, below) if limit is not None]
    if not integer and not limits:
        return _ANY
    longest = max([_DIGITS, *(len(_parts(abs(limit))[0]) + 1 for limit in limits)])
    after = _EXACT_DIGITS if above is not None or below is not None else _DIGITS
    forms = _Forms(longest, "" if integer else f"(\\.[0-9]{{1,{after}}})?")
    terms = [f"-?{forms.at_least(Decimal(0))}"]
    for low in (minimum, above):
        if low is not None:
            terms.append(f"({forms.unsigned}|-{forms.at_most(-low)})" if low <= 0 else forms.at_least(low))
    for high in (maximum, below):
        if high is not None:
            terms.append(
                f"(-{forms.unsigned}|{forms.at_most(high)})" if high >= 0 else f"-{forms.at_least(-high)}"
            )
    excluded = [f"~/{_equal(limit)}/" for limit in (above, below) if limit is not None]
    return " & ".join([f"/{term}/" for term in terms] + excluded)


def _parts(value: Decimal) -> tuple[str, str]:
    """Digits before and after the point of a value that is not negative."""
    before, _, after = format(value, "f").partition(".")
    return before.lstrip("0") or "0", after.rstrip("0")


def _equal(value: Decimal) -> str:
    before, after = _parts(abs(value))
    sign = "-?" if value == 0 else "-" if value < 0 else ""
    return f"{sign}{before}" + (f"\\.{after}0*" if after else "(\\.0+)?")


class _Forms:
    """Unsigned numbers of at most ``longest`` digits before the point, with ``fraction`` behind them."""

    def __init__(self, longest: int, fraction: str) -> None:
        self._longest = longest
        self._fraction = fraction
        self.unsigned = f"(0|[1-9][0-9]{{0,{longest - 1}}}){fraction}"

    def at_least(self, limit: Decimal) -> str:
        """Numbers ``>= limit``."""
        before, after = _parts(limit)
        if not after:
            return f"({self._integer_from(before)}){self._fraction}"
        forms = [f"({self._integer_from(str(int(before) + 1))}){self._fraction}"]
        if self._fraction:
            digits = [f"{after[:i]}[{int(d) + 1}-9][0-9]*" for i, d in enumerate(after) if d != "9"]
            forms.append(f"{before}\\.({'|'.join([*digits, after + '[0-9]*'])})")
        return f"({'|'.join(forms)})"

    def at_most(self, limit: Decimal) -> str:
        """Numbers ``<= limit``, which is not negative."""
        before, after = _parts(limit)
        forms = [f"({self._integer_to(str(int(before) - 1))}){self._fraction}"] if before != "0" else []
        tails = ["0+"]
        if after:
            tails = [f"{after[:i]}[0-{int(d) - 1}][0-9]*" for i, d in enumerate(after) if d != "0"]
            tails += [after[:i] for i in range(1, len(after))] + [after + "0*"]
        forms.append(f"{before}(\\.({'|'.join(tails)}))?" if self._fraction else before)
        return f"({'|'.join(forms)})"

    def _integer_from(self, digits: str) -> str:
        if digits == "0":
            return f"0|[1-9][0-9]{{0,{self._longest - 1}}}"
        same = [
            f"{digits[:i]}[{int(d) + 1}-9][0-9]{{{len(digits) - i - 1}}}"
            for i, d in enumerate(digits)
            if d != "9"
        ]
        return "|".join([*same, digits, f"[1-9][0-9]{{{len(digits)},{self._longest - 1}}}"])

    def _integer_to(self, digits: str) -> str:
        if digits == "0":
            return "0"
        same = [
            f"{digits[:i]}[{int(i == 0)}-{int(d) - 1}][0-9]{{{len(digits) - i - 1}}}"
            for i, d in enumerate(digits)
            if int(d) > int(i == 0)
        ]
        shorter = [f"[1-9][0-9]{{0,{len(digits) - 2}}}"] if len(digits) > 1 else []
        return "|".join(["0", *shorter, *same, digits])
