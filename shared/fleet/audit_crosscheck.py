"""Hold what nodes say in their own chains against what the server says of them.

The server's chain names each command that it issued, by the digest that its node must have, and each state that the
node reported. The node's chain names each command that it accepted, by its digest, and how each ended. Both stand under
the same checkpoints, and neither side writes the other's.

    server: command.issued     digest      <->  digest      command.accepted :node
    server: command.reported   state       <->  state       command.ended    :node
    server: command.cancelled  CANCELLED   <->  CANCELLED   command.ended    :node
    server: command.cancelled  TOMBSTONED  <->  TOMBSTONED  command.cancel   :node

What ends by its node's answer to a cancel is reported too, and is no news by then: the answer stands for its report.
One that a cancel overtook (TOMBSTONED) is never accepted; if it arrives after all, it ends CANCELLED there. One that
was cancelled or ran out of time before it was sent is unknown to its node, and nothing of it is awaited.

A node may be behind: it sends its rows after its reports, and an offline one sends none. What it has not said yet is
counted as awaited; it is a finding once the node has said something later. A node whose disk was full says in a gap
how many rows it left out; so many may be missing, and are counted.

A machine that was let in again, because its disk went back or its node was cloned, goes on in another chain of the
node. It may never have known what its node did since, or tell again what the older chain has: what the server was told
before it let the machine in may be missing from all of the node's chains, and is counted as lost with the older one.

Pure: verified rows come in as arguments, findings are raised.
"""

from __future__ import annotations

from dataclasses import dataclass

from fleet.audit_chain import ChainRow
from fleet.audit_findings import AuditFinding
from fleet.command_rows import (
    NOT_SAID,
    accepted_commands,
    answered_cancel,
    buried_command,
    ended_commands,
    issued_commands,
    left_out_items,
    opened_chain,
    reported_commands,
)
from fleet.node_audit import Begun, NodeAuditKind, chain_of, node_of
from fleet.told_commands import FINAL_STATES, ToldCommand, ToldNode, is_final, passed_over, told_before

MAX_UNISSUED = 16_384
"""So many commands a node may name before the server's row about them is read: rows are read in the order of storage,
and the server's is stored first. More is a finding, and the node's chain is not looked at any further."""

_CANCELLED = "CANCELLED"
_ENDING_OUTCOMES = frozenset({"TOMBSTONED", "CANCELLED"})  # by any other, the report says what came of it
_TOO_FAR = "SEQ_TOO_FAR"  # journaled as refused, and never accepted


class NeverIssued(AuditFinding):
    """A node ran a command that the server never issued, or the server's audit lost that it did."""

    code = "NEVER_ISSUED"


class DigestDiffers(AuditFinding):
    """A node accepted another command than the server issued at that seq."""

    code = "DIGEST_DIFFERS"


class OutcomeDiffers(AuditFinding):
    """Node and server tell a different end of a command."""

    code = "OUTCOME_DIFFERS"


class MissingOnNode(AuditFinding):
    """The server says that a node accepted or ended a command, and the node's chain passes over it."""

    code = "MISSING_ON_NODE"


class ChainNotOpened(AuditFinding):
    """A node has a chain that the server never opened, or one that does not begin where the one before was."""

    code = "CHAIN_NOT_OPENED"


class NodeRowMalformed(AuditFinding):
    """A row of a node's chain says nothing that a node says."""

    code = "NODE_ROW_MALFORMED"


class ServerRowMalformed(AuditFinding):
    """A row of the server's says nothing that a server says."""

    code = "SERVER_ROW_MALFORMED"


@dataclass(frozen=True, slots=True)
class LaterChain:
    """A chain that a node began after a person had said that the machine which came is the node.

    Args:
        node_id: the node.
        chain: its number.
        reason: ADOPTED or RESTORED, by the word of the node.
        continues: chain that it names as the one before.
        number: newest row of that chain that this machine and the server both held; 0 if none.
        beyond: rows of that chain behind it: they are kept, and another machine, or a later disk, wrote them.
    """

    node_id: str
    chain: int
    reason: str
    continues: int
    number: int
    beyond: int


@dataclass(frozen=True, slots=True)
class CrossCheckSummary:
    """What agreed.

    Args:
        nodes: nodes that commands were issued to, or that have a chain.
        commands: of which both sides say the same, from issue to end.
        awaited: that one side has told the end of, and the other not yet.
        left_out: that stand in a gap which the node declared.
        broken: nodes whose rows the server refused at some time, because they did not continue their chain.
        lost: that the server was told of before it let a machine in again, and that no chain of the node tells; and
            those that only a node tells, because the server's database was restored.
        chains: that nodes began behind their first.
    """

    nodes: int
    commands: int
    awaited: int
    left_out: int
    broken: tuple[str, ...]
    lost: int = 0
    chains: tuple[LaterChain, ...] = ()


class CrossCheck:
    """Take the verified rows of all chains, in any order that keeps each chain's own; then `finish`.

    Memory grows with commands that the server issued and that are not settled, not with the audit, nor with what a node
    makes up.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, ToldNode] = {}
        self._broken: dict[str, None] = {}
        self._findings: dict[str, AuditFinding] = {}
        self._restored_at_ms = 0

    def add_row(self, row: ChainRow) -> None:
        """Take the next row. What it shows to be wrong is kept for `finish`: whether the chains are whole matters more,
        and one node that lies must not keep anybody from hearing that."""
        node_id = node_of(row.writer)
        if node_id is not None:
            node = self._nodes.setdefault(node_id, ToldNode())
            if not node.given_up:
                self._add_node_row(node_id, node, row)
                self._give_up_on_flood(node_id, node)
        else:
            try:
                self._add_server_row(row)
            except NOT_SAID as error:
                self._find(row.writer, ServerRowMalformed(f"row {row.number} of {row.writer}: {error}"))

    def finish(self) -> CrossCheckSummary:
        """Say that nothing more comes.

        Raises:
            NeverIssued, DigestDiffers, OutcomeDiffers, MissingOnNode, ChainNotOpened, NodeRowMalformed,
                ServerRowMalformed: the first that was found; the message says of how many more something was.
        """
        awaited = left_out = 0
        chains: list[LaterChain] = []
        for node_id, node in self._nodes.items():
            self._check_chains(node_id, node, chains)
            if node_id in self._findings:
                continue
            missing = 0
            let_in_at_ms = max([node.opened_at_ms[chain] for chain in node.begun], default=0)
            for seq, command in sorted(node.commands.items()):
                name = f"seq {seq} of node {node_id}"
                if (command.accepted or command.ended) and not command.issued:
                    text = f"the node has {name} in its chain, and the server never issued it"
                    self._findings[node_id] = NeverIssued(text)
                    break
                if passed_over(node, seq, command):
                    if command.reported_at_ms <= let_in_at_ms:
                        node.lost += 1
                        continue
                    missing += 1
                elif command.is_buried_by_both:
                    node.agreed += bool(command.issued)
                elif bool(command.ended) != is_final(command) or (command.reported and not command.accepted):
                    awaited += 1
                if missing > node.left_out:
                    text = f"the server says {command.reported} of {name}, and the node's own chain passes over it"
                    self._findings[node_id] = MissingOnNode(text)
                    break
            left_out += missing
        self._raise_first()
        return CrossCheckSummary(
            nodes=len(self._nodes),
            commands=sum(node.agreed for node in self._nodes.values()),
            awaited=awaited,
            left_out=left_out,
            broken=tuple(self._broken),
            lost=sum(node.lost + len(node.went_back) for node in self._nodes.values()),
            chains=tuple(chains),
        )

    def _add_server_row(self, row: ChainRow) -> None:
        if row.kind == "command.issued":
            for node_id, seq, digest in issued_commands(row.detail):
                self._note(node_id, seq, "issued", digest)
        elif row.kind == "command.reported":
            for node_id, seq, state in reported_commands(row.detail):
                self._note(node_id, seq, "reported", state, row.at_ms)
        elif row.kind == "command.cancelled":
            seq, outcome, state = answered_cancel(row.detail)
            if state == _CANCELLED and outcome in _ENDING_OUTCOMES:
                node_id = node_of(row.actor) or row.actor
                self._note(node_id, seq, "answered", outcome)
                self._note(node_id, seq, "reported", state, row.at_ms)
        elif row.kind == "node.audit_chain_opened":
            node = self._nodes.setdefault(node_of(row.subject) or row.subject, ToldNode())
            node.opened_at_ms[opened_chain(row.detail)] = row.at_ms
        elif row.kind == "database.restored":
            self._restored_at_ms = max(self._restored_at_ms, row.at_ms)
        elif row.kind == "node.audit_broken":
            self._broken[node_of(row.subject) or row.subject] = None

    def _check_chains(self, node_id: str, node: ToldNode, chains: list[LaterChain]) -> None:
        for chain, begun in node.begun.items():
            if begun is None or chain not in node.opened_at_ms:
                what = "does not begin with what it continues" if begun is None else "was never opened by the server"
                self._find(node_id, ChainNotOpened(f"chain {chain} of node {node_id} {what}"))
                continue
            number, sha256 = node.heads.get(begun.chain, (0, b""))
            if begun.number > number or (begun.number == number and begun.sha256 not in (b"", sha256)):
                text = f"chain {chain} of node {node_id} continues a row {begun.number} that chain {begun.chain} lacks"
                self._find(node_id, ChainNotOpened(text))
                continue
            chains.append(LaterChain(node_id, chain, begun.reason, begun.chain, begun.number, number - begun.number))

    def _find(self, node_id: str, finding: AuditFinding) -> None:
        self._findings.setdefault(node_id, finding)

    def _raise_first(self) -> None:
        for first in self._findings.values():
            more = len(self._findings) - 1
            raise type(first)(f"{first}; and of {more} more" if more else str(first))

    def _add_node_row(self, node_id: str, node: ToldNode, row: ChainRow) -> None:
        node.last_at_ms = max(node.last_at_ms, row.at_ms)
        try:
            chain = chain_of(row.writer)
            node.heads[chain] = (row.number, row.hash)
            if chain and row.number == 1:
                node.begun[chain] = Begun.parse(row.detail) if row.kind == NodeAuditKind.CHAIN_BEGUN else None
            if row.kind == NodeAuditKind.COMMAND_ACCEPTED:
                self._add_accepted(node_id, node, chain, row)
            elif row.kind == NodeAuditKind.COMMAND_ENDED:
                self._add_ended(node_id, node, chain, row)
            elif row.kind == NodeAuditKind.COMMAND_CANCEL:
                self._add_buried(node_id, node, row)
            elif row.kind == NodeAuditKind.AUDIT_GAP:
                node.left_out += left_out_items(row.detail)
        except NOT_SAID as error:
            self._find(node_id, NodeRowMalformed(f"row {row.number} of {row.writer}: {error}"))

    def _add_accepted(self, node_id: str, node: ToldNode, chain: int, row: ChainRow) -> None:
        for seq, digest in accepted_commands(row.detail):
            node.last_accepted = max(node.last_accepted, seq)
            if not self._went_back(node, seq, row.at_ms) and not (chain and node.settled.tells(seq, digest)):
                self._note(node_id, seq, "accepted", digest)

    def _add_ended(self, node_id: str, node: ToldNode, chain: int, row: ChainRow) -> None:
        for seq, state, reason in ended_commands(row.detail):
            if chain and (node.settled.tells(seq, "") or told_before(node, seq, chain, state)):
                continue
            if self._went_back(node, seq, row.at_ms):
                continue
            if reason == _TOO_FAR:
                node.commands.setdefault(seq, ToldCommand()).too_far = True
            self._note(node_id, seq, "ended", state)

    def _add_buried(self, node_id: str, node: ToldNode, row: ChainRow) -> None:
        seq = buried_command(row.detail)
        if seq is not None and not node.settled.tells(seq, "") and not self._went_back(node, seq, row.at_ms):
            self._note(node_id, seq, "buried", "TOMBSTONED")

    def _went_back(self, node: ToldNode, seq: int, at_ms: int) -> bool:
        """Whether the server's database was restored to before it issued this: the node tells it alone."""
        known = seq in node.commands or node.settled.tells(seq, "")
        if at_ms <= self._restored_at_ms and not known and len(node.went_back) < MAX_UNISSUED:
            node.went_back.add(seq)
        return seq in node.went_back

    def _give_up_on_flood(self, node_id: str, node: ToldNode) -> None:
        if len(node.commands) - node.issued_open > MAX_UNISSUED:
            text = f"node {node_id} has more than {MAX_UNISSUED} commands in its chain that the server never issued"
            self._find(node_id, NeverIssued(text))
            node.given_up = True
            node.commands.clear()

    def _note(self, node_id: str, seq: int, said: str, what: str, at_ms: int = 0) -> None:
        node = self._nodes.setdefault(node_id, ToldNode())
        if node.given_up or (said in ("reported", "answered") and _is_old(node, seq, what)):
            return
        command = node.commands.setdefault(seq, ToldCommand())
        if said == "issued" and not command.issued:
            node.issued_open += 1
        setattr(command, said, what)
        if at_ms:
            command.reported_at_ms = at_ms
        name = f"seq {seq} of node {node_id}"
        if command.issued and command.accepted and command.issued != command.accepted:
            self._find(node_id, DigestDiffers(f"the node accepted {name} as another command than the server issued"))
        if is_final(command) and command.ended and {command.ended} != {command.reported, command.server_says}:
            text = f"the server says {command.server_says} of {name}, the node says {command.ended}"
            self._find(node_id, OutcomeDiffers(text))
        if command.issued and (command.accepted or command.too_far) and is_final(command) and command.ended:
            if command.ended == _CANCELLED:
                node.cancelled.add(seq)
            node.settled.add(seq, command.accepted)
            del node.commands[seq]
            node.issued_open -= 1
            node.agreed += 1


def _is_old(node: ToldNode, seq: int, what: str) -> bool:
    """Whether more is known than this, which the server was told: an answer to a cancel may come beside the report and
    more than once, and the row of another replica behind one that was written later."""
    if what in _ENDING_OUTCOMES:
        return seq in node.cancelled
    command = node.commands.get(seq)
    return what not in FINAL_STATES and (node.settled.tells(seq, "") if command is None else is_final(command))
