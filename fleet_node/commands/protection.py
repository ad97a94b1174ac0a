"""Which actions are protected on this node, and whether what arrived may run them (docs/protocol.md, "Intents").

An action is protected when its driver says so, when the node's configuration names it, or when a rule of the policy
that the node holds does. The server has no say in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fleet.clock import Clock, ServerTime
from fleet.intents import SENTENCES, IntentVerdict, Order, judge_again, judge_intent
from fleet.logs import get_logger
from fleet.people import CLOCK_SLACK_MS, People
from fleet.v1 import command_pb2
from fleet_node.commands.rules import Objection
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
        refused: told the verdict of each command that may not run.
    """

    def __init__(
        self,
        verifier: Verifier,
        used: UsedIntents,
        *,
        clock: Clock,
        server_time: ServerTime,
        refused: Callable[[IntentVerdict], None],
    ) -> None:
        self._verifier = verifier
        self._used = used
        self._clock = clock
        self._server_time = server_time
        self._refused = refused
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
            self._refused(judgement.verdict)
            log.warning(
                "protected_command_refused",
                reason=judgement.verdict.value,
                detail=judgement.detail,
                action=command.action,
                seq=command.monotonic_seq,
                command_id=command.command_id.hex(),
                intent_id="" if intent is None else intent.intent_id.hex(),
            )
            return _objection(command.action, judgement.verdict, judgement.detail)
        signing = b"".join(sorted(judgement.signing))
        use = Use(intent.intent_id, command.monotonic_seq, intent.issued_at_ms, intent.not_after_ms, signing)
        return Permit(use, self._start_by_ms(use, now_ms), judgement.people)

    def resume(self, action: Action, seq: int) -> int | Objection:
        """Until when a journaled command may start in this process, in server time, or why it may not: the intent that
        let it in must have been used by it, and must not have ended, and those who signed it must still have their
        roles."""
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

    def start(self, action: Action, seq: int) -> Objection | None:
        """Why a command whose turn has come may not start: people may have signed something else while it waited."""
        if not self.protects(action):
            return None
        answer = self.resume(action, seq)
        if not isinstance(answer, Objection):
            return None
        self._refused(IntentVerdict(answer.reason))
        log.warning("waiting_command_refused", reason=answer.reason, detail=answer.detail, seq=seq)
        return answer

    def latest_floor_ms(self) -> int:
        """The latest moment up to which a floor may end intents, Unix milliseconds: as far ahead as a person's clock
        may be. Server time says nothing here, or one lie of a server would end all protected actions for ever."""
        return self._own_now_ms() + CLOCK_SLACK_MS

    def _start_by_ms(self, use: Use, now_ms: int) -> int:
        # The server may be behind, or hold the node drained for as long as it likes: the intent goes on ending.
        return self._server_time.now_ms() + use.not_after_ms - now_ms

    def _now_ms(self) -> int:
        return max(self._server_time.now_ms(), self._own_now_ms())

    def _own_now_ms(self) -> int:
        return max(self._clock.now_ms(), self._verifier.people.latest_signed_ms, self._used.latest_signed_ms)


def _objection(action: str, verdict: IntentVerdict, detail: str) -> Objection:
    return Objection(verdict.value, f"{action} is protected: {detail}")
