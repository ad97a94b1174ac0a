"""The golden vectors hold twice: the product makes exactly them, and a second implementation, written here from
docs/protocol.md with bytes put together by hand, comes to the same ones."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fleet import audit_chain, envelope, identity, jointoken, people, sealing, trust
from fleet.channel import FrameKeys, node_end, server_end
from fleet.envelope import Domain
from fleet.intents import Order, judge_intent
from fleet.sequence import StreamContext, check_cancel, check_statement, command_digest
from fleet.v1 import command_pb2, gateway_pb2, trust_pb2
from tests.vectors import generate, hpke
from tests.vectors.cast import CLUSTER, NAME, NODE

FOLDER = Path(__file__).parent


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


KEYS = {key["name"]: key for key in load("keys.json")["ed25519"]}
EXCHANGE_KEYS = {key["name"]: key for key in load("keys.json")["x25519"]}
STATEMENTS = {statement["name"]: statement for statement in load("signed.json")["statements"]}
CHANNEL = load("channel.json")
TEXTS = load("texts.json")


# --- protobuf by hand ------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def by_hand(fields: list[dict[str, Any]]) -> bytes:
    out = b""
    for field in fields:
        number, kind, value = field["number"], field["type"], field["value"]
        if kind == "message":
            out += delimited(number, by_hand(value))
        elif kind == "string":
            out += delimited(number, value.encode())
        elif kind == "bytes":
            out += delimited(number, bytes.fromhex(value))
        else:
            out += varint(number << 3) + varint(int(value))
    return out


# --- the product still makes them ------------------------------------------------------------------------------------


def test_the_product_makes_exactly_these_files() -> None:
    assert generate.stale() == []


def test_check_names_a_file_that_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    changed = tmp_path / "audit.json"
    changed.write_text(changed.read_text().replace("node.approved", "node.rejected"))
    assert generate.main(["--check"]) == 1
    assert "audit.json" in capsys.readouterr().out


def test_every_domain_has_a_vector() -> None:
    assert {statement["domain"] for statement in STATEMENTS.values()} == {domain.value for domain in Domain}


# --- signed statements -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_ed25519_keys(key: dict[str, str]) -> None:
    public = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key["seed"])).public_key().public_bytes_raw()
    assert public.hex() == key["public"]
    assert hashlib.sha256(public).digest()[:16].hex() == key["key_id"]


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_statements_by_hand(statement: dict[str, Any]) -> None:
    raw = by_hand(statement["fields"])
    assert raw.hex() == statement["statement"]
    assert hashlib.sha256(raw).hexdigest() == statement["statement_sha256"]
    signed_bytes = b"fleet.v1/" + statement["domain"].encode("ascii") + b"\x00" + raw
    assert hashlib.sha256(signed_bytes).hexdigest() == statement["signing_input_sha256"]
    envelope_bytes = delimited(1, raw)
    for signature in statement["signatures"]:
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(KEYS[signature["signer"]]["seed"]))
        value = private.sign(signed_bytes)
        assert value.hex() == signature["value"]
        assert signature["key_id"] == KEYS[signature["signer"]]["key_id"]
        envelope_bytes += delimited(2, delimited(1, bytes.fromhex(signature["key_id"])) + delimited(2, value))
    assert envelope_bytes.hex() == statement["signed"]


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_the_product_verifies_statements(statement: dict[str, Any]) -> None:
    signed = trust_pb2.Signed.FromString(bytes.fromhex(statement["signed"]))
    keys = {
        bytes.fromhex(KEYS[one["signer"]]["key_id"]): bytes.fromhex(KEYS[one["signer"]]["public"])
        for one in statement["signatures"]
    }
    signers = envelope.verified_signers(signed, domain=Domain(statement["domain"]), keys=keys)
    assert signers == keys.keys()
    assert signed.statement.hex() == statement["statement"]


def field(fields: list[dict[str, Any]], name: str) -> Any:
    return next(one["value"] for one in fields if one["name"] == name)


def raw(name: str) -> bytes:
    return bytes.fromhex(STATEMENTS[name]["statement"])


def test_hashes_chain_the_statements() -> None:
    proof = raw("handshake") + bytes.fromhex(STATEMENTS["handshake"]["signatures"][0]["value"])
    answer = STATEMENTS["handshake-server"]["fields"]
    assert field(answer, "node_proof_sha256") == hashlib.sha256(proof).hexdigest()
    token = bytes.fromhex(TEXTS["session_token"]["bytes"])
    assert field(answer, "session_token_sha256") == hashlib.sha256(token).hexdigest()
    assert field(STATEMENTS["stream"]["fields"], "session_token_sha256") == hashlib.sha256(token).hexdigest()
    binding = hashlib.sha256(raw("stream")).hexdigest()
    assert field(STATEMENTS["command"]["fields"], "stream_binding") == binding
    assert field(STATEMENTS["cancel"]["fields"], "stream_binding") == binding


def test_the_bundles_advance() -> None:
    first = trust_pb2.Signed.FromString(bytes.fromhex(STATEMENTS["trust-bundle"]["signed"]))
    second = trust_pb2.Signed.FromString(bytes.fromhex(STATEMENTS["trust-bundle-next-generation"]["signed"]))
    cluster = field(STATEMENTS["trust-bundle"]["fields"], "cluster_id")
    held = trust.first(first, cluster_id=cluster, authority_key=bytes.fromhex(KEYS["authority-1"]["public"]))
    assert held.version == (1, 3)
    assert trust.advance(held, second).version == (2, 1)


def test_a_node_takes_the_command_and_the_cancel() -> None:
    fields = STATEMENTS["command"]["fields"]
    context = StreamContext(
        field(fields, "cluster_id"), field(fields, "node_id"), bytes.fromhex(field(fields, "stream_binding"))
    )
    check_statement(command_pb2.CommandStatement.FromString(raw("command")), context, last_accepted_seq=40)
    check_cancel(command_pb2.CancelStatement.FromString(raw("cancel")), context)


# --- digests, channel, sealing, texts, audit -------------------------------------------------------------------------


def prefixed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


@pytest.mark.parametrize("vector", load("digests.json")["commands"], ids=["plain", "with-intent"])
def test_command_digests(vector: dict[str, Any]) -> None:
    values = {one["name"]: one["value"] for one in vector["fields"]}
    intent = bytes.fromhex(field(values["intent"], "statement")) if "intent" in values else b""
    body = prefixed(
        bytes.fromhex(values["command_id"]),
        values["monotonic_seq"].to_bytes(8, "big"),
        values["actor"].encode(),
        values["issued_at_ms"].to_bytes(8, "big"),
        values["not_after_ms"].to_bytes(8, "big"),
        values["action"].encode(),
        bytes.fromhex(values["arguments"]),
        intent,
    )
    assert hashlib.sha256(b"fleet.v1/command-digest\x00" + body).hexdigest() == vector["digest"]
    assert command_digest(command_pb2.Command.FromString(by_hand(vector["fields"]))).hex() == vector["digest"]


def hkdf_sha256(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 by hand."""
    prk = hmac.digest(salt, secret, hashlib.sha256)
    okm, block = b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(prk, block + info + bytes([number]), hashlib.sha256)
        okm += block
    return okm[:length]


def test_frame_keys() -> None:
    assert CHANNEL["node_statement"] == STATEMENTS["handshake"]["statement"]
    assert CHANNEL["server_statement"] == STATEMENTS["handshake-server"]["statement"]
    server = X25519PrivateKey.from_private_bytes(bytes.fromhex(EXCHANGE_KEYS["server-share"]["private"]))
    node_share = bytes.fromhex(EXCHANGE_KEYS["node-share"]["public"])
    shared = server.exchange(X25519PublicKey.from_public_bytes(node_share))  # the other end than the generator's
    assert shared.hex() == CHANNEL["shared_secret"]
    salt = hashlib.sha256(raw("handshake") + raw("handshake-server")).digest()
    assert salt.hex() == CHANNEL["salt"]
    keys = hkdf_sha256(shared, salt, b"fleet.v1/frame-keys\x00", 64)
    assert (keys[:32].hex(), keys[32:].hex()) == (CHANNEL["node_to_server_key"], CHANNEL["server_to_node_key"])


@pytest.mark.parametrize("frame", CHANNEL["frames"], ids=lambda frame: f"{frame['direction']}-{frame['counter']}")
def test_frame_macs(frame: dict[str, Any]) -> None:
    name = {"n2s": "node_to_server_key", "s2n": "server_to_node_key"}[frame["direction"]]
    body = bytes.fromhex(frame["body"])
    message = frame["direction"].encode() + b"\x00" + frame["counter"].to_bytes(8, "big") + body
    mac = hmac.digest(bytes.fromhex(CHANNEL[name]), message, hashlib.sha256)
    assert mac.hex() == frame["mac"]
    whole = varint(1 << 3) + varint(frame["counter"]) + delimited(2, body) + delimited(3, mac)
    assert whole.hex() == frame["control_frame"]


def test_the_product_opens_the_frames() -> None:
    keys = FrameKeys(
        bytes.fromhex(CHANNEL["node_to_server_key"]),
        bytes.fromhex(CHANNEL["server_to_node_key"]),
    )
    openers = {"s2n": node_end(keys)[1], "n2s": server_end(keys)[1]}
    for frame in CHANNEL["frames"]:
        received = gateway_pb2.ControlFrame.FromString(bytes.fromhex(frame["control_frame"]))
        assert openers[frame["direction"]].open(received).hex() == frame["body"]


def test_sealing() -> None:
    vector = load("sealing.json")
    ids = (vector["cluster_id"].encode(), vector["node_id"].encode(), bytes.fromhex(vector["fingerprint"]))
    info = b"fleet.v1/" + vector["purpose"].encode() + b"\x00"
    info += b"".join(len(part).to_bytes(2, "big") + part for part in ids)
    assert info.hex() == vector["info"]
    sealed = bytes.fromhex(vector["sealed"])
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(EXCHANGE_KEYS[vector["recipient"]]["private"]))
    assert sealing.unseal(sealed, private, info).decode() == vector["plaintext"]
    assert hpke.open_sealed(sealed, private, info).decode() == vector["plaintext"]
    fresh = sealing.seal(b"made by the product", private.public_key().public_bytes_raw(), info)
    assert hpke.open_sealed(fresh, private, info) == b"made by the product"


def test_fingerprint() -> None:
    vector = TEXTS["fingerprint"]
    both = bytes.fromhex(vector["identity_key"]) + bytes.fromhex(vector["sealing_key"])
    value = hashlib.sha256(b"fleet.v1/fingerprint\x00" + both).digest()[:20]
    assert value.hex() == vector["bytes"]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    bits = int.from_bytes(value, "big")
    letters = "".join(alphabet[bits >> shift & 31] for shift in range(155, -1, -5))
    assert "-".join(letters[i : i + 4] for i in range(0, 32, 4)) == vector["text"]
    assert identity.parse_fingerprint(vector["text"]) == value


def test_join_token() -> None:
    vector = TEXTS["join_token"]
    whole = (
        delimited(1, bytes.fromhex(STATEMENTS["join-token"]["signed"]))
        + delimited(2, bytes.fromhex(vector["secret"]))
        + delimited(3, bytes.fromhex(vector["owner_pin"]))
    )
    assert whole.hex() == vector["bytes"]
    assert vector["text"] == "fjt1." + base64.urlsafe_b64encode(whole).decode().rstrip("=")
    assert vector["owner_pin"] == hashlib.sha256(bytes.fromhex(KEYS["owner"]["public"])).hexdigest()
    said = trust.verify_join_token(jointoken.decode(vector["text"]))
    assert said.SerializeToString().hex() == STATEMENTS["join-token"]["statement"]


def test_session_token_metadata() -> None:
    vector = TEXTS["session_token"]
    assert len(vector["metadata"]) == 43
    assert base64.urlsafe_b64decode(vector["metadata"] + "=").hex() == vector["bytes"]


def test_audit_rows() -> None:
    previous = bytes(32)
    for row in load("audit.json")["rows"]:
        assert row["previous_hash"] == previous.hex()
        columns = prefixed(
            row["writer"].encode(),
            row["number"].to_bytes(8, "big"),
            row["at_ms"].to_bytes(8, "big"),
            row["kind"].encode(),
            row["actor"].encode(),
            row["subject"].encode(),
            row["detail"].encode(),
        )
        previous = hashlib.sha256(b"fleet.v1/audit-row\x00" + previous + columns).digest()
        assert row["hash"] == previous.hex()
    assert bytes(32) == audit_chain.FIRST_PREVIOUS_HASH


def test_rows_of_a_node() -> None:
    previous = bytes(32)
    for row in load("audit.json")["node_rows"]:
        previous = bytes(32) if row["number"] == 1 else previous
        assert row["previous_hash"] == previous.hex()
        name = f"node:{row['node_id']}/{row['chain']}" if row["chain"] else f"node:{row['node_id']}"
        assert row["writer"] == name
        columns = prefixed(
            name.encode(),
            row["number"].to_bytes(8, "big"),
            row["at_ms"].to_bytes(8, "big"),
            row["kind"].encode(),
            b"node:" + row["node_id"].encode(),
            row["node_id"].encode(),
            row["detail"].encode(),
        )
        previous = hashlib.sha256(b"fleet.v1/audit-row\x00" + previous + columns).digest()
        assert row["hash"] == previous.hex()
        sent = gateway_pb2.AuditRow.FromString(bytes.fromhex(row["audit_row"]))
        assert (sent.number, sent.at_ms, sent.kind) == (row["number"], row["at_ms"], row["kind"])
        assert (sent.detail.decode(), sent.hash) == (row["detail"], previous)


def test_signatures_verify_with_nothing_but_the_public_key() -> None:
    poll = STATEMENTS["bootstrap-poll"]
    signature = poll["signatures"][0]
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(KEYS[signature["signer"]]["public"]))
    message = b"fleet.v1/bootstrap-poll\x00" + bytes.fromhex(poll["statement"])
    public.verify(bytes.fromhex(signature["value"]), message)


# --- what people signed ----------------------------------------------------------------------------------------------


def test_the_intent_is_what_the_policy_asks_for() -> None:
    def said(name: str) -> trust_pb2.Signed:
        return trust_pb2.Signed.FromString(bytes.fromhex(STATEMENTS[name]["signed"]))

    pin = hashlib.sha256(bytes.fromhex(KEYS["owner"]["public"])).digest()
    held, refused = people.take(
        people.People(CLUSTER, pin),
        owners=[said("owner-1")],
        policy=said("policy"),
        grants=[said("role-grant"), said("role-grant-ben")],
    )
    assert not refused
    command = command_pb2.CommandStatement.FromString(bytes.fromhex(STATEMENTS["command"]["statement"])).commands[1]
    fingerprint = identity.parse_fingerprint(TEXTS["fingerprint"]["text"])
    order = Order(NODE, NAME, fingerprint, command.action, command.arguments)
    judgement = judge_intent(held, command.intent, order, now_ms=command.issued_at_ms)
    assert judgement.people == {"anna", "ben"}
    assert judgement.passes
    held, refused = people.take(held, owners=[said("owner-1"), said("owner")])
    assert not refused
    assert held.owner is not None
    assert held.owner.public_key == bytes.fromhex(KEYS["next-owner"]["public"])
