"""Selectors: which nodes an operator means (fleet.v1.Selector). Pure.

A selector is a list of patterns; a node matches if any pattern does. A pattern is one term, or several with commas
between, which all
have to hold. A term is `key=value` over the labels that an operator set (`site=` reads the approved site), an exact
name or id, or a
glob over names. What a node reports of itself never selects it (docs/protocol.md, "Frames"), so reported labels are
not even looked at.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

from fleet.errors import Reason, Refusal

MAX_PATTERNS = 1000
MAX_PATTERN_CHARS = 512
MAX_TERMS = 16
SITE_KEY = "site"
_GLOB_CHARS = frozenset("*?[")
_GLOB_PARTS = re.compile(r"\[.*\]|[*?[]")
_MAX_HINTED = 20
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class Hint(NamedTuple):
    """What a column of `nodes` has to be like, in the sense of SQL's LIKE with ``!`` before what stands for itself."""

    column: str
    pattern: str


class Selectable(Protocol):
    """What selectors look at."""

    @property
    def node_id(self) -> str:
        """Id."""
        ...

    @property
    def name(self) -> str:
        """Name."""
        ...

    @property
    def site(self) -> str:
        """Approved site."""
        ...

    @property
    def labels(self) -> Mapping[str, str]:
        """Labels that operators set."""
        ...


@dataclass(frozen=True, slots=True)
class _Exact:
    text: str

    def holds(self, node: Selectable) -> bool:
        return self.text in (node.name, node.node_id)

    def hint(self) -> Hint | None:
        return None


@dataclass(frozen=True, slots=True)
class _Glob:
    text: str
    names: re.Pattern[str]

    def holds(self, node: Selectable) -> bool:
        return self.names.match(node.name) is not None

    def hint(self) -> Hint | None:
        return _like("name", "%".join(map(_literally, _GLOB_PARTS.split(self.text))))


@dataclass(frozen=True, slots=True)
class _Label:
    key: str
    value: str

    def holds(self, node: Selectable) -> bool:
        if self.key == SITE_KEY:
            return node.site == self.value
        return node.labels.get(self.key) == self.value

    def hint(self) -> Hint | None:
        if self.key == SITE_KEY:
            return _like("site", _literally(self.value))
        key, value = (json.dumps(text, ensure_ascii=False) for text in (self.key, self.value))
        return _like("labels", f"%{_literally(key)}:{_literally(value)}%")


_Term = _Exact | _Glob | _Label


@dataclass(frozen=True, slots=True)
class Selector:
    """Parsed patterns, ready to be asked about each node."""

    everything: bool
    exact: frozenset[str]
    composite: tuple[tuple[_Term, ...], ...]

    @property
    def names_only(self) -> bool:
        """Whether only exact names and ids were given, so that a database can look them up."""
        return not self.everything and not self.composite

    def matches(self, node: Selectable) -> bool:
        """Whether the selector means this node."""
        if self.everything or node.name in self.exact or node.node_id in self.exact:
            return True
        return any(all(term.holds(node) for term in terms) for terms in self.composite)

    def hints(self) -> list[list[Hint]]:
        """What a database can be asked for instead of every node: of one that matches, all hints of one of these lists
        hold. Of others they may hold, too. Empty when there is nothing to ask for but every node."""
        if self.everything or self.exact or len(self.composite) > _MAX_HINTED:
            return []
        found = [[hint for hint in (term.hint() for term in terms) if hint is not None] for terms in self.composite]
        return found if all(found) else []

    def missing(self, found: Sequence[Selectable]) -> list[str]:
        """Exact names and ids that none of `found` has, in order: a typing error must not shrink a target list in
        silence.
        """
        known = {node.name for node in found} | {node.node_id for node in found}
        return sorted(self.exact - known)


def parse(patterns: Sequence[str]) -> Selector:
    """Read patterns; none at all means no node.

    Raises:
        Refusal: INVALID_ARGUMENT with the pattern that is wrong.
    """
    if len(patterns) > MAX_PATTERNS:
        raise _wrong(f"{len(patterns)} target patterns; at most {MAX_PATTERNS} are taken: use a label or a glob")
    everything = False
    exact: set[str] = set()
    composite: list[tuple[_Term, ...]] = []
    for pattern in patterns:
        terms = _parse_pattern(pattern)
        if len(terms) == 1 and isinstance(terms[0], _Exact):
            exact.add(terms[0].text)
        elif pattern.strip() == "*":
            everything = True
        else:
            composite.append(terms)
    return Selector(everything, frozenset(exact), tuple(composite))


@lru_cache(maxsize=1024)
def _parse_pattern(pattern: str) -> tuple[_Term, ...]:
    if len(pattern) > MAX_PATTERN_CHARS:
        raise _wrong(f"a target pattern has {len(pattern)} characters; at most {MAX_PATTERN_CHARS} are taken")
    parts = [part.strip() for part in pattern.split(",")]
    if not all(parts):
        raise _wrong(f"target pattern {pattern!r} has an empty part: write a name, a glob, key=value or *")
    if len(parts) > MAX_TERMS:
        raise _wrong(f"target pattern {pattern!r} has {len(parts)} parts; at most {MAX_TERMS} are taken")
    return tuple(_parse_term(part) for part in parts)


def _parse_term(text: str) -> _Term:
    key, equals, value = text.partition("=")
    if equals:
        if not key:
            raise _wrong(f"target {text!r} has no label key: write key=value")
        return _Label(key, value)
    if _GLOB_CHARS & set(text):
        return _Glob(text, re.compile(fnmatch.translate(text)))
    if not _PLAIN.fullmatch(text):
        raise _wrong(f"{text!r} is no node name, id, glob or key=value")
    return _Exact(text)


def _like(column: str, pattern: str) -> Hint | None:
    return None if "\x00" in pattern else Hint(column, pattern)  # PostgreSQL takes no such text


def _literally(text: str) -> str:
    return re.sub(r"[!%_]", r"!\g<0>", text)


def _wrong(detail: str) -> Refusal:
    return Refusal(Reason.INVALID_ARGUMENT, detail)
