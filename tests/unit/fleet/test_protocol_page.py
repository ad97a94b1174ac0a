"""docs/protocol.md says what the code does: its tables are the code's, its example a golden vector, and every section
that the code cites is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet import envelope, errors, jointoken, sequence, status, trust
from fleet.envelope import Domain
from fleet.errors import Reason
from fleet.intents import IntentVerdict
from fleet.node_audit import NodeAuditKind
from fleet.sequence import StatementReason
from fleet.trust import TrustReason
from fleet_node.routes.snapshot_rules import SnapshotReason
from fleet_server import listeners

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
HEADINGS = {match[1].strip() for match in re.finditer(r"^#+ (.+)$", PAGE, re.MULTILINE)}
PROTOS = sorted((ROOT / "proto" / "fleet" / "v1").glob("*.proto"))

# docs/protocol.md, "One" and "Another": names may run over a line's end and a comment's beginning.
_CITATION = re.compile(r'docs/protocol\.md,?\s*((?:(?:and|,)?\s*"[^"]+"\s*)+)')


def section(heading: str) -> str:
    """Text of a section up to the next heading of its level."""
    found = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def table(name: str) -> list[list[str]]:
    """Cells of the table behind the marker `name`, without its head."""
    found = re.search(rf"<!-- table: {name} -->\n((?:\|.*\n)+)", PAGE)
    assert found is not None, name
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found[1].splitlines()[2:]]


def cited() -> Iterator[tuple[str, str]]:
    """(file, section) of every citation in the packages and protos."""
    sources = [*PROTOS]
    for package in ("fleet_server", "fleet_node", "shared/fleet"):
        sources += [path for path in (ROOT / package).rglob("*.py") if "_pb2" not in path.name]
    for path in sources:
        text = re.sub(r"\n\s*(?://|#)?\s*", " ", path.read_text(encoding="utf-8"))
        for match in _CITATION.finditer(text):
            for name in re.findall(r'"([^"]+)"', match[1]):
                yield str(path.relative_to(ROOT)), name


def test_every_cited_section_exists() -> None:
    citations = list(cited())
    assert len(citations) > 20
    missing = [f"{path} cites {name!r}" for path, name in citations if name not in HEADINGS]
    assert missing == []


def test_every_link_inside_the_page_leads_somewhere() -> None:
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADINGS}
    assert {match[1] for match in re.finditer(r"\]\(#([^)]+)\)", PAGE)} <= anchors


def test_the_refusal_table_is_the_codes() -> None:
    documented = {row[0].strip("` |"): (row[1], row[2]) for row in table("refusals")}
    actual = {reason.value: (status.code(reason).name, errors.advice(reason).value) for reason in Reason}
    assert documented == actual


def test_the_statement_refusal_table_is_the_codes() -> None:
    documented = [name for row in table("statement refusals") for name in re.findall(r"`([A-Z_]+)`", row[0])]
    assert sorted(documented) == sorted(reason.value for reason in StatementReason)
    for reason in StatementReason:
        assert reason.value in section("Commands")


def test_the_snapshot_refusal_table_is_the_nodes() -> None:
    documented = [name for row in table("snapshot refusals") for name in re.findall(r"`([A-Z_]+)`", row[0])]
    assert sorted(documented) == sorted(SnapshotReason)


def test_every_domain_is_in_the_table_with_its_statement() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| `(\w+)` \|", section("What is signed, and how"), re.MULTILINE)
    assert sorted(domain for domain, _ in rows) == sorted(Domain)
    vectors = json.loads((ROOT / "tests" / "vectors" / "signed.json").read_text(encoding="utf-8"))["statements"]
    assert {(one["domain"], one["message"].removeprefix("fleet.v1.")) for one in vectors} == set(rows)


@pytest.mark.parametrize("reason", [reason for reason in TrustReason if reason is not TrustReason.EXPIRED])
def test_reasons_of_refused_bundles_are_told(reason: TrustReason) -> None:
    assert reason.value in section("Trust")


def test_the_worked_example_is_the_golden_vector() -> None:
    found = re.search(r"<!-- vector: ([a-z-]+) -->\n```text\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    vectors = json.loads((ROOT / "tests" / "vectors" / "signed.json").read_text(encoding="utf-8"))["statements"]
    vector = next(one for one in vectors if one["name"] == found[1])
    parts: dict[str, str] = {}
    name = ""
    for line in found[2].splitlines():
        name = line[:12].strip() or name
        parts[name] = parts.get(name, "") + line[12:].split("  ")[0].split(" ‖")[0].replace(" ", "")
    assert parts["statement"] == vector["statement"]
    assert bytes.fromhex(parts["signed"]) == envelope.signing_input(Domain(found[1]), b"")
    assert parts["key_id"] == vector["signatures"][0]["key_id"]
    assert parts["value"] == vector["signatures"][0]["value"]


def test_every_message_that_nodes_meet_is_named() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in PROTOS if path.stem not in OF_OPERATORS}
    messages = {name for text in texts.values() for name in re.findall(r"^message (\w+)", text, re.MULTILINE)}
    assert {name for name in messages if not re.search(rf"\b{name}s?\b", PAGE)} <= ALIASES | FILES


OF_OPERATORS = {"admin", "admin_route", "page"}
# Named by the field that carries them.
ALIASES = {
    "Hello",
    "Welcome",
    "Ping",
    "ActionDescriptor",
    "DriverDescriptor",
    "BundleVersion",
    "NodeParameters",
}
# What a node keeps on its own disk; no peer sends it.
FILES = {"HeldTrust"}


def test_every_call_and_every_control_body_is_named() -> None:
    gateway = (ROOT / "proto" / "fleet" / "v1" / "gateway.proto").read_text(encoding="utf-8")
    for call in re.findall(r"^  rpc (\w+)\(", gateway, re.MULTILINE):
        assert f"| `{call}` |" in section("Service Gateway")
    for message in ("NodeControl", "ServerControl"):
        oneof = re.search(rf"^message {message} \{{(.*?)^\}}", gateway, re.MULTILINE | re.DOTALL)
        assert oneof is not None
        for body in re.findall(r"^    \w+ (\w+) = \d+;", oneof[1], re.MULTILINE):
            assert re.search(rf"`{body}`", section("Frames")), body


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (envelope.MAX_SIGNATURES, "| signatures of one thing | 16 |"),
        (jointoken.MAX_CHARS // 1024, "| join token text | 16 KiB |"),
        (sequence.MAX_COMMANDS_PER_STATEMENT, "| commands of a statement | 32 |"),
        (sequence.MAX_SEQ_STEP.bit_length() - 1, "| step of seq | 2^32 |"),
        (trust.MAX_NUMBER_STEP.bit_length() - 1, "| step of a bundle's number | 2^20 |"),
        (trust.MAX_COMMAND_KEYS, "| command keys of a bundle | 64 |"),
        (status.MAX_DETAIL_CHARS, "a sentence is cut at 1024 characters"),
        (round(listeners.IDLE_S), "ends a connection without a call after 30 s"),
        (status.MAX_METADATA_ENTRIES, "metadata at 16 entries of 128 characters"),
    ],
)
def test_limits_are_the_codes(value: int, text: str) -> None:
    assert text in " ".join(PAGE.split())
    assert re.search(rf"\b{value}\b", text)


def test_every_kind_of_a_nodes_audit_is_in_the_table() -> None:
    documented = [kind for row in table("node audit") for kind in re.findall(r"`([a-z_.]+)`", row[0])]
    assert sorted(documented) == sorted(NodeAuditKind)


def test_intents_are_judged_in_the_order_of_the_verdicts() -> None:
    documented = [verdict.strip("`") for _, verdict in table("intent-verdicts")]
    assert [IntentVerdict.PASS, *documented] == list(IntentVerdict)
