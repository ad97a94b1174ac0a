"""Selectors pick exactly what their grammar says, and never by what a node says of itself."""

import sqlite3
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import Reason, Refusal
from fleet_server.nodes import selectors
from fleet_server.nodes.store import encode_labels

DATABASE = sqlite3.connect(":memory:")
DATABASE.execute("PRAGMA case_sensitive_like = on")  # as PostgreSQL's is

names = st.text("abc-1", min_size=1, max_size=6)
labels = st.dictionaries(st.sampled_from(["role", "tier", "zone"]), st.sampled_from(["a", "b", ""]), max_size=3)


@dataclass(frozen=True)
class Subject:
    node_id: str
    name: str
    site: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    reported_labels: dict[str, str] = field(default_factory=dict)


subjects = st.builds(Subject, node_id=names.map("nd_{}".format), name=names, site=names, labels=labels)


@given(subjects)
def test_everything_means_everybody_and_nothing_means_nobody(node: Subject) -> None:
    assert selectors.parse(["*"]).matches(node)
    assert not selectors.parse([]).matches(node)


@given(subjects, names)
def test_names_and_ids_are_exact(node: Subject, name: str) -> None:
    assert selectors.parse([node.name]).matches(node)
    assert selectors.parse([node.node_id]).matches(node)
    assert selectors.parse([name]).matches(node) == (name == node.name)


@given(subjects, st.integers(0, 6))
def test_globs_match_prefixes_of_names_only(node: Subject, length: int) -> None:
    assert selectors.parse([node.name[:length] + "*"]).matches(node)
    assert not selectors.parse(["nd_?*"]).matches(node)


@given(subjects, labels)
def test_labels_of_one_pattern_all_hold(node: Subject, wanted: dict[str, str]) -> None:
    if wanted:
        pattern = ",".join(f"{key}={value}" for key, value in wanted.items())
        assert selectors.parse([pattern]).matches(node) == (wanted.items() <= node.labels.items())


@given(subjects, st.lists(st.sampled_from(["*", "a*", "role=a", "tier=b,role=a", "abc", "site=a"]), max_size=5))
def test_patterns_are_alternatives(node: Subject, patterns: list[str]) -> None:
    alone = [selectors.parse([pattern]).matches(node) for pattern in patterns]
    assert selectors.parse(patterns).matches(node) == any(alone)


@given(subjects, labels)
def test_what_a_node_reports_selects_nothing(node: Subject, reported: dict[str, str]) -> None:
    boasting = Subject(node.node_id, node.name, node.site, node.labels, reported)
    for key, value in reported.items():
        for pattern in (f"{key}={value}", f"reported.{key}={value}"):
            selector = selectors.parse([pattern])
            assert selector.matches(boasting) == selector.matches(node)


@given(st.lists(st.text(max_size=80), max_size=5))
def test_any_text_is_parsed_or_refused(patterns: list[str]) -> None:
    try:
        selectors.parse(patterns)
    except Refusal as refusal:
        assert refusal.reason is Reason.INVALID_ARGUMENT


odd = st.text('aAb?[]!_%\\"ö-', max_size=6)
odd_subjects = st.builds(
    Subject, node_id=names, name=odd, site=odd, labels=st.dictionaries(st.sampled_from(["role", "a_%!"]), odd)
)


@st.composite
def meaning(draw: st.DrawFn, node: Subject) -> str:
    """A pattern that mostly means the node."""
    glob = "".join(draw(st.sampled_from([char, char, "?", "*", f"[{char}x]", "[!x]"])) for char in node.name)
    labels = [f"{key}={value}" for key, value in [*node.labels.items(), ("site", node.site)]]
    return ",".join(draw(st.lists(st.sampled_from([glob, glob + "*", *labels]), min_size=1, max_size=3)))


@given(odd_subjects, st.data())
def test_no_node_that_is_meant_is_left_out_by_what_the_database_is_asked_for(
    node: Subject, data: st.DataObject
) -> None:
    try:
        selector = selectors.parse([data.draw(meaning(node)), "nobody*"])
    except Refusal:
        return
    columns = {"name": node.name, "site": node.site, "labels": encode_labels(node.labels)}

    def holds(hint: selectors.Hint) -> bool:
        text = "SELECT ? LIKE ? ESCAPE '!'"
        return bool(DATABASE.execute(text, (columns[hint.column], hint.pattern)).fetchone()[0])

    asked = selector.hints()
    assert not selector.matches(node) or not asked or any(all(map(holds, hints)) for hints in asked)


@given(st.lists(subjects, max_size=5), st.lists(names, max_size=5))
def test_exact_names_that_nobody_has_are_told(nodes: list[Subject], wanted: list[str]) -> None:
    missing = selectors.parse(wanted).missing(nodes)
    assert set(missing) == set(wanted) - {node.name for node in nodes}


@pytest.mark.parametrize(
    "patterns", [[""], [","], ["a,"], ["=x"], ["a b"], ["x" * 600], ["a"] * 1001, [",".join("a" * 17)], ["ö"]]
)
def test_patterns_that_are_none(patterns: list[str]) -> None:
    with pytest.raises(Refusal):
        selectors.parse(patterns)


def test_a_glob_of_many_stars_ends_soon() -> None:
    assert not selectors.parse(["*a" * 200 + "b"]).matches(Subject("nd_1", "a" * 63))
