"""Sentences for a terminal: wrapped between words, and never within a command that a person copies."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

_WORD = re.compile(r"[^\s`]*`[^`]*`\S*|\S+")
_SHA256 = re.compile(r"(?:[0-9A-F]{2}:?)+")


def cells(text: str) -> int:
    """Columns of the terminal that a text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def write_example(formatter: click.HelpFormatter, lines: str) -> None:
    """The example of a help, each line as it is: one that was broken could not be pasted."""
    with formatter.section("Example"):
        for line in lines.splitlines():
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def wrapped(text: str, width: int | None, *, indent: int = 0) -> str:
    """One paragraph in lines of at most `width` columns, the first of which begins at column `indent` already.

    What stands in backquotes stays on one line, however long. A SHA-256 in pairs breaks between its bytes.

    Args:
        text: the paragraph.
        width: columns of the terminal; None leaves it on one line.
        indent: spaces before every further line.
    """
    if width is None or indent + cells(text) <= width:
        return text
    room = max(width - indent, 1)
    lines = [""]
    for word in _WORD.findall(text):
        between = " " if lines[-1] else ""
        if lines[-1] and cells(lines[-1] + between + word) > room:
            lines.append("")
            between = ""
        lines[-1] += between + word
        while _SHA256.fullmatch(lines[-1]) and cells(lines[-1]) > room:
            at = max(room // 3 * 3, 3)
            lines[-1:] = [lines[-1][:at], lines[-1][at:]]
    return ("\n" + " " * indent).join(lines)
