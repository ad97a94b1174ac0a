"""What a command gave, whole: fields, tables and the text that a program printed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from fleet_server.cli.tables import Column, table
from fleet_server.cli.terminal import Styled, fields, printable, styled

_INDENT = "  "


def lay_out(output: bytes, *, colour: bool, width: int | None) -> str:
    """A driver's output for people. JSON that fits no form stays JSON, and what is no JSON stays text.

    Args:
        output: as the node sent it: it may be anything.
        colour: whether to write escape sequences.
        width: columns of the terminal; None for pipes.
    """
    try:
        value = json.loads(output)
    except (ValueError, RecursionError):
        return _lines(output.decode("utf-8", "replace"))
    if not isinstance(value, dict):
        return _lines(value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False))
    plain: list[tuple[str, str]] = []
    blocks: list[str] = []
    for key, item in _flat(value):
        title = styled(Styled(key, dim=True), colour=colour)
        if isinstance(item, str) and "\n" in item:
            blocks.append(f"{title}\n{_lines(item.rstrip(), _INDENT)}")
        elif _is_rows(item):
            inner = None if width is None else width - len(_INDENT)
            shown = _INDENT + _table(item, colour=colour, width=inner).replace("\n", "\n" + _INDENT)
            blocks.append(f"{title}\n{shown}")
        else:
            plain.append((key, _text(item)))
    return "\n".join(([fields(plain, colour=colour, width=width)] if plain else []) + blocks)


def _flat(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict) and item and not path:
            yield from _flat(item, f"{key}.")
        elif item not in ("", None):
            yield path + key, item


def _is_rows(item: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(item, list) and bool(item) and all(isinstance(row, dict) for row in item)


def _table(rows: Sequence[Mapping[str, Any]], *, colour: bool, width: int | None) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    figures = {
        name for name in names if all(isinstance(row.get(name), int | float) and row[name] is not True for row in rows)
    }
    columns = [Column(name.upper(), right=name in figures, flexible=name not in figures) for name in names]
    cells = [[_text(row.get(name)) or "-" for name in names] for row in rows]
    return table(columns, cells, colour=colour, width=width)


def _text(item: object) -> str:
    if item is None:
        return ""
    if isinstance(item, str):
        return item
    if isinstance(item, list) and not any(isinstance(each, dict | list) for each in item):
        return ", ".join(_text(each) for each in item)
    if isinstance(item, float) and item.is_integer() and abs(item) < 1e15:
        return str(int(item))
    return json.dumps(item, ensure_ascii=False)


def _lines(text: str, indent: str = "") -> str:
    return "\n".join(indent + printable(line) for line in text.splitlines())
