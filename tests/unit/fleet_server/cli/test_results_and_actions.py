"""Whole results and the arguments of actions, as a person reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.v1 import gateway_pb2
from fleet_server.cli.actions import arguments, describe
from fleet_server.cli.results import lay_out


def laid_out(value: Any, width: int | None = None) -> list[str]:
    return lay_out(json.dumps(value).encode(), colour=False, width=width).splitlines()


def test_fields_tables_and_texts() -> None:
    result = {
        "os": "linux",
        "load": [1.5, 2],
        "disk": {"total": 3.0, "free": 1},
        "empty": "",
        "none": None,
        "ok": False,
        "processes": [{"pid": 1, "name": "init"}, {"pid": 204, "name": "sh", "user": "ada"}],
        "stdout": "one\n  two\n",
    }
    assert laid_out(result) == [
        "os          linux",
        "load        1.5, 2",
        "disk.total  3",
        "disk.free   1",
        "ok          false",
        "processes",
        "  PID  NAME  USER",
        "    1  init  -",
        "  204  sh    ada",
        "stdout",
        "  one",
        "    two",
    ]


def test_a_table_in_a_result_fits_the_terminal() -> None:
    lines = laid_out({"rows": [{"a": "x" * 50, "b": "y" * 50}]}, width=40)
    assert all(len(line) <= 40 for line in lines)


@pytest.mark.parametrize(
    ("output", "lines"),
    [
        (b"", []),
        (b"not json", ["not json"]),
        (b'"text\\nmore"', ["text", "more"]),
        (b"[1]", ["[", "  1", "]"]),
        (b"{}", []),
    ],
)
def test_results_of_other_forms(output: bytes, lines: list[str]) -> None:
    assert lay_out(output, colour=False, width=None).splitlines() == lines


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.floats(), st.lists).map(json.dumps).map(str.encode)
)
def test_whatever_a_node_sends_is_laid_out_and_plays_with_no_terminal(output: bytes) -> None:
    assert "\x1b" not in lay_out(output, colour=False, width=40)


SCHEMA = {
    "properties": {
        "timeout_s": {"type": "number", "minimum": 0.5, "maximum": 3600},
        "program": {"enum": ["date", "sleep"]},
        "count": {"type": "integer"},
        "device": {"type": "string"},
        "deep": {"type": "boolean"},
        "tags": {"type": "array"},
        "level": {"enum": [1, 2]},
        "odd": True,
    },
    "required": ["program"],
}


def test_arguments_as_run_takes_them_required_ones_first() -> None:
    assert list(arguments(json.dumps(SCHEMA).encode())) == [
        "program=date|sleep",
        "[timeout_s:=0.5..3600]",
        "[count:=WHOLE]",
        "[device=TEXT]",
        "[deep:=true|false]",
        "[tags:=[…]]",
        "[level:=1|2]",
        "[odd:=JSON]",
    ]


@given(
    st.binary(max_size=100)
    | st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: (
            st.dictionaries(
                st.sampled_from(["properties", "required", "enum", "type", "minimum", "maximum", "x"]), inner
            )
            | st.lists(inner)
        ),
    )
    .map(json.dumps)
    .map(str.encode)
)
def test_no_schema_breaks_the_view(schema: bytes) -> None:
    list(arguments(schema))


def test_an_action_says_what_it_does_and_takes() -> None:
    action = gateway_pb2.ActionDescriptor(
        action="exec.run", description="Runs a program.", idempotent=True, arguments_schema=json.dumps(SCHEMA).encode()
    )
    driver = gateway_pb2.DriverDescriptor(name="exec", version="1.0", actions=[action])
    lines = describe([driver], colour=False, width=40).splitlines()
    assert lines[:3] == ["exec.run  exec 1.0, idempotent", "  Runs a program.", "  program=date|sleep"]
    assert all(len(line) <= 40 for line in lines)
