"""An opener takes exactly what the other end sealed, in its order, once; whoever sits in between can only drop all the
rest."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fleet.channel import ChannelError, FrameKeys, derive_frame_keys, node_end, server_end
from fleet.v1 import gateway_pb2

KEYS = FrameKeys(b"\x01" * 32, b"\x02" * 32)
bodies = st.lists(st.binary(max_size=50), min_size=2, max_size=6)


@given(bodies=bodies, from_node=st.booleans())
def test_the_sealed_sequence_opens(bodies: list[bytes], from_node: bool) -> None:
    sender, receiver = (node_end, server_end) if from_node else (server_end, node_end)
    sealer, opener = sender(KEYS)[0], receiver(KEYS)[1]
    frames = [sealer.seal(body) for body in bodies]
    assert [frame.counter for frame in frames] == list(range(1, len(bodies) + 1))
    assert [opener.open(frame) for frame in frames] == bodies


@given(bodies=bodies, data=st.data())
def test_anything_but_the_next_frame_is_refused_and_the_next_one_still_opens(
    bodies: list[bytes], data: st.DataObject
) -> None:
    sealer, opener = node_end(KEYS)[0], server_end(KEYS)[1]
    frames = [sealer.seal(body) for body in bodies]
    expected = data.draw(st.integers(0, len(frames) - 1))
    for frame in frames[:expected]:
        opener.open(frame)
    for index, frame in enumerate(frames):  # dropped before it, repeated, or reordered
        if index != expected:
            with pytest.raises(ChannelError):
                opener.open(frame)
    assert opener.open(frames[expected]) == bodies[expected]


@given(body=st.binary(min_size=1, max_size=50), data=st.data())
def test_any_flipped_bit_is_refused(body: bytes, data: st.DataObject) -> None:
    sealer, opener = node_end(KEYS)[0], server_end(KEYS)[1]
    frame = sealer.seal(body)
    part = data.draw(st.sampled_from(["counter", "body", "mac"]))
    if part == "counter":
        frame.counter ^= 1 << data.draw(st.integers(0, 63))
    else:
        content = bytearray(getattr(frame, part))
        bit = data.draw(st.integers(0, len(content) * 8 - 1))
        content[bit // 8] ^= 1 << bit % 8
        setattr(frame, part, bytes(content))
    with pytest.raises(ChannelError, match="MAC"):
        opener.open(frame)


@given(body=st.binary(max_size=50), mac=st.binary(max_size=40), counter=st.integers(0, 2**64 - 1))
def test_made_up_frames_are_refused(body: bytes, mac: bytes, counter: int) -> None:
    with pytest.raises(ChannelError):
        server_end(KEYS)[1].open(gateway_pb2.ControlFrame(counter=counter, body=body, mac=mac))


@given(body=st.binary(max_size=50))
def test_a_frame_sent_back_to_its_sender_is_refused(body: bytes) -> None:
    same_key_both_ways = FrameKeys(b"\x03" * 32, b"\x03" * 32)
    sealer, opener = node_end(same_key_both_ways)
    with pytest.raises(ChannelError):
        opener.open(sealer.seal(body))
    with pytest.raises(ChannelError):
        node_end(KEYS)[1].open(node_end(KEYS)[0].seal(body))


@given(node_statement=st.binary(max_size=40), server_statement=st.binary(max_size=40), other=st.binary(max_size=40))
def test_keys_belong_to_one_handshake(node_statement: bytes, server_statement: bytes, other: bytes) -> None:
    node, server = X25519PrivateKey.from_private_bytes(b"\x11" * 32), X25519PrivateKey.from_private_bytes(b"\x12" * 32)
    node_share = node.public_key().public_bytes_raw()
    server_share = server.public_key().public_bytes_raw()
    at_node = derive_frame_keys(node, server_share, node_statement, server_statement)
    at_server = derive_frame_keys(server, node_share, node_statement, server_statement)
    assert at_node == at_server
    assert at_node.node_to_server != at_node.server_to_node
    if other != server_statement:
        assert derive_frame_keys(node, server_share, node_statement, other) != at_node


@pytest.mark.parametrize("share", [b"", b"\x01" * 31, bytes(32), b"\x01" + bytes(31)], ids=["none", "short", "0", "1"])
def test_shares_that_fix_the_secret_are_refused(share: bytes) -> None:
    with pytest.raises(ChannelError, match="not usable"):
        derive_frame_keys(X25519PrivateKey.generate(), share, b"node", b"server")


def test_packing_keys() -> None:
    assert FrameKeys.unpack(KEYS.pack()) == KEYS
    with pytest.raises(ValueError, match="64 bytes"):
        FrameKeys.unpack(KEYS.pack()[:-1])
    assert (b"\x01" * 8).hex() not in repr(KEYS)
    assert str(KEYS.node_to_server) not in repr(KEYS)
