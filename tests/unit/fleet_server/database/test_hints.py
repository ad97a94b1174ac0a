import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_server.database import hints
from fleet_server.database.hints import EVERYTHING, Inbox, Outbox

ME, OTHER = "a" * 16, "b" * 16
WORDS = st.one_of(
    st.sampled_from(["nodes", "bundle", "node-state"]),
    st.builds("{}:{}".format, st.sampled_from(["node", "cancel", "issue"]), st.uuids().map(lambda uuid: uuid.hex)),
)


@given(st.lists(WORDS, max_size=700))
def test_whatever_is_packed_is_read_again_and_no_message_is_too_long(words: list[str]) -> None:
    messages = list(hints.pack(ME, words))
    assert all(len(message.encode()) <= hints.MAX_MESSAGE_BYTES for message in messages)
    read: list[str] = []
    for message in messages:
        heard = hints.read(message)
        assert heard is not None
        assert (heard.origin, heard.everything, heard.malformed) == (ME, False, 0)
        read += [f"{kind}:{name}" if name else kind for kind, names in heard.ids.items() for name in names]
    assert sorted(read) == sorted(set(words)) if len(messages) < 2 else set(read) == set(words)


def test_many_topics_travel_in_one_message() -> None:
    (message,) = hints.pack(ME, [f"node:{number:032x}" for number in range(200)])
    heard = hints.read(message)
    assert heard is not None
    assert heard.words() == 200


@pytest.mark.parametrize(
    "message",
    [
        "",
        "fleet1",
        "fleet2 " + ME + " nodes",
        "fleet1 somebody nodes",
        b"fleet1 \xff\xfe",
        "fleet1 " + ME + " node:" + "x" * hints.MAX_MESSAGE_BYTES,
    ],
)
def test_what_is_no_message_is_none(message: str | bytes) -> None:
    assert hints.read(message) is None


def test_words_that_are_none_are_counted_and_the_others_understood() -> None:
    heard = hints.read(f"fleet1 {OTHER} node:a NODE:b node:{'x' * 65} node:a;b everything nodes")
    assert heard == hints.Heard(OTHER, {"node": {"a"}, "nodes": {""}}, everything=True, malformed=3)


@given(st.binary(max_size=300))
def test_nothing_that_is_said_breaks_the_reader(message: bytes) -> None:
    hints.read(b"fleet1 " + OTHER.encode() + b" " + message)
    hints.read(message)


def test_words_wait_once_each_and_past_the_bound_become_everything() -> None:
    outbox = Outbox(max_waiting=3)
    assert outbox.add(["a", "b", "a"]) == 0
    assert outbox.take() == ["a", "b"]
    assert outbox.take() == []
    assert outbox.add(["a", "b", "c", "d"]) == 4
    assert outbox.add(["e"]) == 1
    assert len(outbox) == 1
    assert outbox.take() == [EVERYTHING]
    outbox.add(["f"])
    assert outbox.take() == ["f"]


def test_what_an_operator_wrote_in_place_of_an_id_is_not_said() -> None:
    outbox = Outbox()
    assert outbox.add([f"watch:{'x' * hints.MAX_MESSAGE_BYTES}", f"watch:a {EVERYTHING}", "watch:\n", "watch:a"]) == 0
    assert outbox.take() == ["watch:a"]


def test_ids_that_were_named_wait_within_a_bound_too() -> None:
    inbox = Inbox(max_heard=2)
    assert inbox.empty
    inbox.add(["a"])
    inbox.add(["a", "b"])
    assert inbox.take() == {"a", "b"}
    inbox.add(["a", "b", "c"])
    inbox.add(["d"])
    assert not inbox.empty
    assert inbox.take() is None
    assert inbox.empty
