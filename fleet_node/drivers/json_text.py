"""JSON as it crosses the node's border: arguments come in strictly, outputs go out compactly, both within
their limits.

Two parsers that read one document differently are an attack (what was approved is not what runs), so
everything on which JSON parsers differ is refused: duplicate keys, NaN, numbers beyond a double, lone
surrogates, bytes that are not UTF-8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from fleet_node.drivers.api import MAX_ARGUMENTS_BYTES

MAX_ARGUMENTS_DEPTH = 32
"""Levels of objects and lists: bounds the recursion of every reader that follows."""

_CUT_SHORT = "…"


class ArgumentsError(Exception):
    """A command's arguments are refused; nothing runs.

    Args:
        reason: UNKNOWN_ACTION, ARGUMENTS_TOO_LARGE, ARGUMENTS_MALFORMED or ARGUMENTS_INVALID.
        detail: sentence for a person; names the place, never repeats a value (arguments may hold secrets).
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class _Malformed(ValueError):
    """What the decoder's hooks raise; its text holds no value from the document."""


def parse_arguments(data: bytes) -> dict[str, Any]:
    """Read the arguments of a command.

    Args:
        data: a JSON object in UTF-8, at most 64 KiB; empty bytes stand for an empty object.

    Raises:
        ArgumentsError: ARGUMENTS_TOO_LARGE or ARGUMENTS_MALFORMED.
    """
    if len(data) > MAX_ARGUMENTS_BYTES:
        raise ArgumentsError(
            "ARGUMENTS_TOO_LARGE",
            f"the arguments are {len(data)} bytes and the limit is {MAX_ARGUMENTS_BYTES}; send less",
        )
    if data in (b"", b"{}"):
        return {}
    try:
        text = data.decode("utf-8")
        parsed = _STRICT.decode(text)
        # A lone surrogate needs an escape, and a level a bracket: most documents have too few of them to be walked.
        if "\\u" in text or text.count("{") + text.count("[") > MAX_ARGUMENTS_DEPTH:
            _check_tree(parsed, MAX_ARGUMENTS_DEPTH)
    except _Malformed as malformed:
        raise ArgumentsError("ARGUMENTS_MALFORMED", str(malformed)) from None
    except json.JSONDecodeError as error:
        detail = f"not valid JSON at line {error.lineno} column {error.colno}: {error.msg}"
        raise ArgumentsError("ARGUMENTS_MALFORMED", detail) from None
    except UnicodeDecodeError as error:
        raise ArgumentsError("ARGUMENTS_MALFORMED", f"byte {error.start} is not UTF-8") from None
    except RecursionError:  # nested deeper than the decoder's stack: far beyond MAX_ARGUMENTS_DEPTH
        raise ArgumentsError("ARGUMENTS_MALFORMED", f"nested more than {MAX_ARGUMENTS_DEPTH} levels deep") from None
    except ValueError:  # an integer of more digits than the interpreter converts: quadratic work for a stranger
        raise ArgumentsError("ARGUMENTS_MALFORMED", "a number has too many digits") from None
    if not isinstance(parsed, dict):
        raise ArgumentsError("ARGUMENTS_MALFORMED", "the arguments must be a JSON object, such as {}")
    return parsed


def encode_output(output: Mapping[str, Any]) -> bytes:
    """Write an outcome's output as it is journaled and reported: compact JSON in UTF-8.

    Raises:
        ValueError: it holds something that JSON cannot carry.
    """
    if not output:
        return b"{}"
    try:
        return _COMPACT.encode(output).encode("utf-8")
    except (
        TypeError,
        ValueError,
        RecursionError,
    ) as error:  # lone surrogates raise UnicodeEncodeError, a ValueError
        raise ValueError(f"output is not JSON ({type(error).__name__})") from None


def text_within(data: bytes, max_bytes: int) -> tuple[str, bool]:
    """Decode what a program printed into a string of at most `max_bytes` inside `encode_output`, quotes
    included.

    Invalid UTF-8 is replaced (U+FFFD takes three bytes for one, and a control character six), so the size is
    measured after decoding. The beginning is kept.

    Returns:
        The text, and whether something was cut off.
    """
    text = data[:max_bytes].decode("utf-8", errors="replace")
    cut = len(data) > max_bytes
    if _encoded_size(text) <= max_bytes:
        return text, cut
    low, high = 0, len(text)  # longest prefix that fits: its size grows with its length
    while low < high:
        middle = (low + high + 1) // 2
        if _encoded_size(text[:middle]) <= max_bytes:
            low = middle
        else:
            high = middle - 1
    return text[:low], True


def line_within(text: str, max_chars: int) -> str:
    """One printable line of at most `max_chars`, for names that strangers chose and that people will read."""
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[: max_chars + 1])
    return line if len(line) <= max_chars else line[: max_chars - 1] + _CUT_SHORT


def _encoded_size(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode("utf-8"))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):  # the first and the last of two equal keys each have parsers that believe in them
        raise _Malformed("an object holds the same key twice; give each key once")
    return result


def _refuse_constant(_name: str) -> NoReturn:
    raise _Malformed("NaN and Infinity are not JSON; leave the value out or send null")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Malformed("a number is too large for a double")
    return value


# Made once: making either costs more than reading or writing a small document.
_STRICT: Final = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite)
_COMPACT: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _check_tree(root: object, max_depth: int) -> None:
    """Refuse what is nested too deep, and strings that no UTF-8 can carry on (a lone surrogate from an
    escape).
    """
    level: list[object] = [root]
    depth = 0
    while level:
        below: list[object] = []
        holds_levels = False
        for value in level:
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, dict):
                holds_levels = True
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list):
                holds_levels = True
                below.extend(value)
        depth += holds_levels
        if depth > max_depth:
            raise _Malformed(f"nested more than {max_depth} levels deep")
        level = below


def _check_text(text: str) -> None:
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise _Malformed("a string holds half of a surrogate pair")
