import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_node.drivers.json_text import (
    MAX_ARGUMENTS_DEPTH,
    ArgumentsError,
    encode_output,
    line_within,
    parse_arguments,
    text_within,
)

REFUSED = {
    "not JSON": b"{",
    "trailing text": b"{} {}",
    "not an object": b"[]",
    "a bare string": b'"x"',
    "null": b"null",
    "the same key twice": b'{"a":1,"a":2}',
    "the same key twice, deep inside": b'{"a":[{"b":1,"b":1}]}',
    "the same key twice, one escaped": b'{"a":1,"\\u0061":2}',
    "NaN": b'{"a":NaN}',
    "minus infinity": b'{"a":-Infinity}',
    "a number beyond a double": b'{"a":1e999}',
    "an integer of ten thousand digits": b'{"a":' + b"9" * 10_000 + b"}",
    "bytes that are not UTF-8": b'{"a":"\xff"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"a":1}',
    "half of a surrogate pair": b'{"a":"\\ud800"}',
    "half of a surrogate pair in a key": b'{"\\udfff":1}',
    "one level too deep": b'{"a":' + b"[" * MAX_ARGUMENTS_DEPTH + b"]" * MAX_ARGUMENTS_DEPTH + b"}",
    "thirty thousand levels": b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_refuses(data: bytes) -> None:
    with pytest.raises(ArgumentsError) as refused:
        parse_arguments(data)
    assert refused.value.reason == "ARGUMENTS_MALFORMED"


def test_refuses_more_than_64_kib_before_reading_it() -> None:
    with pytest.raises(ArgumentsError) as refused:
        parse_arguments(b"{" + b" " * 64 * 1024 + b"}")
    assert refused.value.reason == "ARGUMENTS_TOO_LARGE"


def test_takes_an_object_up_to_the_limits() -> None:
    deep: object = 1
    for _ in range(MAX_ARGUMENTS_DEPTH - 1):
        deep = [deep]
    document = {"deep": deep, "text": "ü€😀", "big": 2**63}
    assert parse_arguments(json.dumps(document).encode()) == document
    assert parse_arguments(json.dumps(document, ensure_ascii=False).encode()) == document


def test_no_bytes_are_no_arguments() -> None:
    assert parse_arguments(b"") == {}


def test_a_refusal_repeats_no_value() -> None:
    with pytest.raises(ArgumentsError) as refused:
        parse_arguments(b'{"password":"hunter2","password":"hunter2"}')
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        assert isinstance(parse_arguments(data), dict)
    except ArgumentsError as refused:
        assert refused.detail


@given(st.binary(max_size=600), st.integers(min_value=2, max_value=500))
def test_text_fits_its_limit_inside_the_output(data: bytes, max_bytes: int) -> None:
    text, cut = text_within(data, max_bytes)
    assert len(json.dumps(text, ensure_ascii=False).encode()) <= max_bytes
    whole = data.decode("utf-8", errors="replace")
    if not cut:
        assert text == whole


def test_text_within_keeps_the_beginning_and_says_that_it_cut() -> None:
    assert text_within(b"hello world", 7) == ("hello", True)
    assert text_within(b"hello", 7) == ("hello", False)
    assert text_within(b"\x00" * 10, 14) == ("\x00\x00", True)
    assert text_within(b"a\xffb", 100) == ("a\N{REPLACEMENT CHARACTER}b", False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x", "\ud800", object()])
def test_output_that_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        encode_output({"a": value})


def test_a_line_is_printable_and_bounded() -> None:
    assert line_within("eth0", 10) == "eth0"
    assert line_within("a\nb\x1b[2J", 10) == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}[2J"
    assert len(line_within("x" * 1000, 10)) == 10
