"""Tables that fit, words that cannot harm, and JSON by rule."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.prose import cells, wrapped
from fleet.v1 import admin_pb2, command_pb2
from fleet_server.cli import chart
from fleet_server.cli.tables import Column, RunningTable, table
from fleet_server.cli.terminal import Styled, age, duration, excerpt, fields, printable, wants_colour
from fleet_server.cli.views import enum_word, moment, output_text, to_json

COLUMNS = [Column("NAME"), Column("N", right=True), Column("NOTE", flexible=True)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_lines_up() -> None:
    text = table(COLUMNS, [("a", "1", "x"), ("long-name", "22", "")], colour=False, width=None)
    assert text.splitlines() == ["NAME        N  NOTE", "a           1  x", "long-name  22"]


def test_wide_characters_keep_the_columns() -> None:
    lines = table(COLUMNS, [("漢字", "1", "x"), ("ab", "1", "x")], colour=False, width=None).splitlines()
    assert lines[1] == "漢字  1  x"
    assert lines[2] == "ab    1  x"


def test_a_narrow_terminal_cuts_the_flexible_column_alone() -> None:
    lines = table(COLUMNS, [("name", "1", "word " * 40)], colour=False, width=40).splitlines()
    assert len(lines[1]) == 40
    assert lines[1].startswith("name  1  word word")
    assert lines[1].endswith("…")


SPARE = [Column("NAME"), Column("SITE", spare=2), Column("BY", spare=1), Column("NOTE", flexible=True, least=6)]


def test_what_matters_least_is_left_out_before_anything_breaks() -> None:
    rows = [("press-1", "berlin", "ada", "something long")]
    assert table(SPARE, rows, colour=False, width=None).splitlines()[0] == "NAME     SITE    BY   NOTE"
    assert table(SPARE, rows, colour=False, width=25).splitlines() == [
        "NAME     SITE    NOTE",
        "press-1  berlin  somethi…",
    ]
    assert table(SPARE, rows, colour=False, width=15).splitlines() == ["NAME     NOTE", "press-1  somet…"]


def test_a_column_that_says_nothing_is_left_out_first() -> None:
    lines = table(SPARE, [("press-1", "-", "ada", "something long")], colour=False, width=24).splitlines()
    assert lines == ["NAME     BY   NOTE", "press-1  ada  something…"]


def test_a_table_whose_rows_come_over_time_stays_within_its_width() -> None:
    growing = RunningTable(SPARE, colour=False, width=30)
    shown = growing.add([("a", "b", "c", "d")]) + "\n" + growing.add([("press-1", "berlin", "grace", "something long")])
    assert shown.splitlines() == ["NAME  SITE  BY  NOTE", "a     b     c   d", "press-1  berlin  grace  somet…"]


@given(st.lists(st.tuples(*[st.text(max_size=30)] * 4), max_size=5), st.integers(60, 200))
def test_no_table_is_wider_than_its_terminal(rows: list[tuple[str, str, str, str]], width: int) -> None:
    shown = table(
        [Column(c.title, flexible=True, least=c.least, spare=c.spare) for c in SPARE], rows, colour=False, width=width
    )
    assert all(cells(line) <= width for line in shown.split("\n"))


def test_prose_wraps_between_words_and_never_within_a_command() -> None:
    text = "start it, then log in: `fleetctl login 127.0.0.1:7444 --ca-file ca.pem` (as ada)"
    assert wrapped(text, None) == text
    assert wrapped(text, 30, indent=2).split("\n") == [
        "start it, then log in:",
        "  `fleetctl login 127.0.0.1:7444 --ca-file ca.pem`",
        "  (as ada)",
    ]


def test_a_hash_breaks_between_its_bytes() -> None:
    shown = fields([("authority", "SHA-256 " + ":".join(["AB"] * 32))], colour=False, width=50).splitlines()
    assert shown[0] == "authority  SHA-256"
    assert [len(line) for line in shown[1:]] == [50, 50, 28]
    assert "".join(line.strip() for line in shown[1:]) == ":".join(["AB"] * 32)


@given(st.text(), st.integers(1, 100), st.integers(0, 10))
def test_wrapping_loses_no_word(text: str, width: int, indent: int) -> None:
    assert "".join(wrapped(text, width, indent=indent).split()) == "".join(text.split())


def test_colour_wraps_the_text_and_not_the_padding() -> None:
    text = table([Column("S"), Column("T")], [(Styled("ok", "green"), "x")], colour=True, width=None)
    assert text.splitlines()[1] == "\x1b[32mok\x1b[0m  x"


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), max_size=5), st.integers(10, 200))
def test_no_row_ever_leaves_its_line(rows: list[tuple[str, str, str]], width: int) -> None:
    text = table(COLUMNS, rows, colour=False, width=width)
    lines = text.split("\n")
    assert len(lines) == len(rows) + 1
    assert text.replace("\n", "").isascii() or "\x1b" not in text


@given(st.text())
def test_what_is_printable_holds_no_control(text: str) -> None:
    clean = printable(text)
    assert not [char for char in clean if ord(char) < 32 or 0x7F <= ord(char) < 0xA0 or char in "\u202e\u2066\u2028"]


def test_colours_need_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert wants_colour(Terminal())
    assert not wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_colour(Terminal())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0014, "1.4ms"),
        (0.25, "250ms"),
        (3.44, "3.4s"),
        (59, "59s"),
        (192, "3m12s"),
        (18_240, "5h04m"),
        (9 * 86_400 + 7300, "9d02h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ages() -> None:
    assert age(0, 5) == "-"
    assert age(5000, 1000) == "0.0ms", "a clock that is behind shows no negative age"


def test_excerpts_are_one_line() -> None:
    assert excerpt("a\n  b\tc", 20) == "a b c"
    assert excerpt("abcdef", 4) == "abc…"


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (b"", ""),
        (b'{"exit_code":0,"stdout":"up","stderr":""}', "exit_code=0 stdout=up"),
        (b'{"a":[1,2]}', "a=[1,2]"),
        (b"[1, 2]", "[1,2]"),
        (b'"text"', "text"),
        (b"\xff not json", "\ufffd not json"),
        (b"[" * 100_000, "[" * 100_000),
    ],
)
def test_outputs_on_one_line(output: bytes, text: str) -> None:
    assert output_text(output) == text


def test_what_an_output_only_repeats_is_left_out_and_rows_are_counted() -> None:
    arguments = b'{"program":"date","count":2}'
    assert output_text(b'{"program":"date","exit_code":0,"count":3}', arguments=arguments) == "exit_code=0 count=3"
    assert (
        output_text(b'{"rows":[{"a":1},{"a":2}],"one":[{"a":1}]}', arguments=b"not json") == "rows=[2 rows] one=[1 row]"
    )


def test_moments() -> None:
    assert moment(0) is None
    assert moment(1_790_000_000_123) == "2026-09-21T14:13:20.123Z"
    assert moment(2**62) is None, "a number that is no date is no date"


def test_enum_words() -> None:
    states = command_pb2.CommandState.DESCRIPTOR
    assert enum_word(states, command_pb2.COMMAND_STATE_SENT) == "SENT"
    assert enum_word(states, 99) == "99", "a newer server may know more words"


def test_json_follows_its_rules() -> None:
    view = to_json(
        admin_pb2.CommandView(
            command_id=b"\x01\x02",
            arguments=b'{"b":1}',
            output=b"not json",
            issued_at_ms=1,
            state=command_pb2.COMMAND_STATE_FAILED,
        )
    )
    assert view["command_id"] == "0102"
    assert view["arguments"] == {"b": 1}
    assert view["output"] == "not json"
    assert view["issued_at"] == "1970-01-01T00:00:00.001Z"
    assert view["finished_at"] is None
    assert view["state"] == "FAILED"
    assert "issued_at_ms" not in view


def test_json_keeps_offsets_as_numbers_and_sorts_labels() -> None:
    view = to_json(admin_pb2.NodeView(clock_offset_ms=-5, labels={"b": "2", "a": "1"}, last_seq=2**63))
    assert (view["clock_offset_ms"], view["last_seq"]) == (-5, 2**63)
    assert json.dumps(view["labels"]) == '{"a": "1", "b": "2"}'


@given(st.binary(max_size=64))
def test_hostile_bytes_always_become_json(raw: bytes) -> None:
    json.dumps(to_json(admin_pb2.CommandView(arguments=raw, output=raw, command_id=raw)))


def test_a_chart_leaves_the_terminal_its_own_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chart, "wants_colour", lambda _stream: True)
    drawn = chart.draw(admin_pb2.SeriesHistory(name="host.load", at_ms=[1_000, 2_000, 3_000], values=[1, 5, 2]))
    assert "\x1b[38;" in drawn
    assert "\x1b[48;" not in drawn, "a white field in a dark terminal"
    assert "\x1b[38;5;0m" not in drawn, "black on black"
