"""Which actions are protected on this node, and whether what arrived may run them (docs/protocol.md, "Intents").

An action is protected when its driver says so, when the node's configuration names it, or when a rule of the policy
that the node holds does. The server has no say in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from fleet.clock import Clock, ServerTime
from fleet.envelope import MAX_SIGNATURES
from fleet.intents import SENTENCES, IntentVerdict, Judgement, Order, judge_again, judge_intent, read_intent
from fleet.logs import get_logger
from fleet.people import CLOCK_SLACK_MS, People
from fleet.redaction import printable
from fleet.v1 import command_pb2, trust_pb2
from fleet_node.commands.entry import Entry
from fleet_node.commands.refusals import Refusals
from fleet_node.commands.rules import MAX_ACTOR_CHARS, Objection
from fleet_node.commands.used_intents import Use, UsedIntents
from fleet_node.drivers.api import Action
from fleet_node.drivers.protected import protected_by
from fleet_node.link.ports import PeoplePort

log = get_logger(__name__)

_NO_END_MS = 2**63 - 1


class NoPeople:
    """A node that pinned nobody: every protected action is refused. Implements `PeoplePort`."""

    people = People("", b"")
    latest_signed_ms = 0


@dataclass(frozen=True, slots=True)
class Verifier:
    """Who judges intents here.

    Args:
        node_id: this node.
        name: what it was called at its enrollment.
        fingerprint: 20 bytes, over this node's keys as they are now: they may be replaced while it runs.
        people: what it verified of owner, policy and grants.
        protected: globs over action names from the node's configuration.
    """

    node_id: str = ""
    name: str = ""
    fingerprint: Callable[[], bytes] = bytes
    people: PeoplePort = field(default_factory=NoPeople)
    protected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Permit:
    """An intent that lets one command run.

    Args:
        use: what is to be remembered of it.
        start_by_ms: when it ends, in the server time by which commands expire.
        people: names of those who signed and count.
    """

    use: Use
    start_by_ms: int
    people: frozenset[str]


class Protection:
    """Judges orders of protected actions.

    Args:
        verifier: see there.
        used: the node's memory of intents; what becomes durable is added to it by the ledger.
        refusals: told of each command that may not run.
    """

    def __init__(
        self,
        verifier: Verifier,
        used: UsedIntents,
        *,
        clock: Clock,
        server_time: ServerTime,
        refusals: Refusals,
    ) -> None:
        self._verifier = verifier
        self._used = used
        self._clock = clock
        self._server_time = server_time
        self._refusals = refusals
        self._people = verifier.people.people
        self._protected: dict[str, bool] = {}

    def protects(self, action: Action) -> bool:
        """Whether an order of `action` needs an intent. Asked of every command: an answer is kept until people sign
        something else."""
        people = self._verifier.people.people
        if people is not self._people:
            self._people, self._protected = people, {}
        answer = self._protected.get(action.name)
        if answer is None:
            here = protected_by(action, self._verifier.protected)
            answer = self._protected[action.name] = here or people.protects(action.name)
        return answer

    def judge(self, command: command_pb2.Command, permits: Mapping[bytes, Permit]) -> Permit | Objection:
        """Whether a command of a protected action may run.

        Args:
            command: of a good statement.
            permits: by intent id, given to earlier commands of the same statement.
        """
        now_ms = self._now_ms()
        this = self._verifier
        order = Order(this.node_id, this.name, this.fingerprint(), command.action, command.arguments)
        used = self._used if not permits else {*permits, *(use.intent_id for use in self._used)}
        signed = command.intent if command.HasField("intent") else None
        judgement = judge_intent(
            self._verifier.people.people,
            signed,
            order,
            now_ms=now_ms,
            consumed=used,
            issued_after_ms=self._used.issued_after_ms,
        )
        intent = judgement.intent
        if not judgement.passes or intent is None:
            self._refuse(command, judgement)
            return _objection(command.action, judgement.verdict, judgement.detail)
        signing = b"".join(sorted(judgement.signing))
        use = Use(intent.intent_id, command.monotonic_seq, intent.issued_at_ms, intent.not_after_ms, signing)
        return Permit(use, self._start_by_ms(use, now_ms), judgement.people)

    def permits(self, action: Action, entry: Entry) -> bool:
        """Whether a journaled command may still start, as far as people are concerned."""
        return not isinstance(self._resumed(action, entry.seq), Objection)

    def resume(self, action: Action, entry: Entry) -> int | Objection:
        """Until when a journaled command may start in this process, in server time, or why it may not: the intent that
        let it in must have been used by it, and must not have ended, and those who signed it must still have their
        roles."""
        answer = self._resumed(action, entry.seq)
        if isinstance(answer, Objection):
            self._refuse_waiting(entry, answer)
        return answer

    def _resumed(self, action: Action, seq: int) -> int | Objection:
        if not self.protects(action):
            return _NO_END_MS
        use, now_ms = self._used.of(seq), self._now_ms()
        if use is None or now_ms >= use.not_after_ms:
            verdict = IntentVerdict.INTENT_MISSING if use is None else IntentVerdict.INTENT_EXPIRED
            return _objection(action.name, verdict, SENTENCES[verdict])
        judgement = judge_again(self._verifier.people.people, use.key_ids, action.name, now_ms=now_ms)
        if not judgement.passes:
            return _objection(action.name, judgement.verdict, judgement.detail)
        return self._start_by_ms(use, now_ms)

    def start(self, action: Action, entry: Entry) -> Objection | None:
        """Why a command whose turn has come may not start: people may have signed something else while it waited."""
        if not self.protects(action):
            return None
        answer = self.resume(action, entry)
        return answer if isinstance(answer, Objection) else None

    def latest_floor_ms(self) -> int:
        """The latest moment up to which a floor may end intents, Unix milliseconds: as far ahead as a person's clock
        may be. Server time says nothing here, or one lie of a server would end all protected actions for ever."""
        return self._own_now_ms() + CLOCK_SLACK_MS

    def _refuse(self, command: command_pb2.Command, judgement: Judgement) -> None:
        people = self._verifier.people.people
        signers = [signature.key_id for signature in command.intent.signatures[:MAX_SIGNATURES]]
        verified = judgement.intent is not None  # before that, anybody may have written these key ids
        intent_id = _claimed_id(command.intent)
        log.warning(
            "protected_command_refused",
            reason=judgement.verdict.value,
            detail=judgement.detail,
            action=command.action,
            seq=command.monotonic_seq,
            command_id=command.command_id.hex(),
            intent_id=intent_id.hex(),
        )
        self._refusals.protected(
            judgement.verdict,
            seq=command.monotonic_seq,
            command_id=command.command_id,
            action=command.action,
            actor=printable(command.actor)[:MAX_ACTOR_CHARS],
            intent_id=intent_id,
            signers=signers,
            people=_names(people, signers if verified else ()),
        )

    def _refuse_waiting(self, entry: Entry, objection: Objection) -> None:
        use, people = self._used.of(entry.seq), self._verifier.people.people
        signers = sorted(use.key_ids) if use is not None else []
        log.warning("waiting_command_refused", reason=objection.reason, detail=objection.detail, seq=entry.seq)
        self._refusals.protected(
            IntentVerdict(objection.reason),
            seq=entry.seq,
            command_id=entry.command_id,
            action=entry.action,
            actor=entry.actor,
            intent_id=b"" if use is None else use.intent_id,
            signers=signers,
            people=_names(people, signers),
        )

    def _start_by_ms(self, use: Use, now_ms: int) -> int:
        # The server may be behind, or hold the node drained for as long as it likes: the intent goes on ending.
        return self._server_time.now_ms() + use.not_after_ms - now_ms

    def _now_ms(self) -> int:
        return max(self._server_time.now_ms(), self._own_now_ms())

    def _own_now_ms(self) -> int:
        return max(self._clock.now_ms(), self._verifier.people.latest_signed_ms, self._used.latest_signed_ms)


def _names(people: People, signers: Iterable[bytes]) -> set[str]:
    known = people.keys_by_id
    return {people.name_of(known[one]) for one in signers if one in known} - {""}


def _claimed_id(signed: trust_pb2.Signed) -> bytes:
    """The id that an intent names, whoever signed it; empty when there is none."""
    try:
        return read_intent(signed).intent_id
    except ValueError:
        return b""


def _objection(action: str, verdict: IntentVerdict, detail: str) -> Objection:
    return Objection(verdict.value, f"{action} is protected: {detail}")
