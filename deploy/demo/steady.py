"""A steady stream of commands to every node that goes on while the server restarts."""

import threading
import time
from dataclasses import dataclass, field

import grpc

from deploy.demo.admin import AdminClient
from fleet.v1 import admin_pb2

_INTERVAL_S = 0.05
_AGAIN_S = 0.1
_GIVE_UP_S = 30.0
_AWAY = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}
)


@dataclass(slots=True)
class Issued:
    """What the stream did.

    Args:
        commands: ids of what the server said it committed, in hex, by node name.
        calls: answered calls.
        said_again: calls that failed, or were cut off, and were said again under the same idempotency key.
        answered_twice: of those, the ones that the server had committed the first time.
        longest_gap_s: longest time between two answers.
        failure: why it gave up, if it did.
    """

    commands: list[str] = field(default_factory=list)
    calls: int = 0
    said_again: int = 0
    answered_twice: int = 0
    longest_gap_s: float = 0.0
    failure: str = ""


class SteadyStream:
    """Issues `simulated.noop` to all nodes until told to stop; a call that fails is repeated under its own key.

    Args:
        admin: its own connection.
        name: begins every idempotency key.
    """

    def __init__(self, admin: AdminClient, name: str) -> None:
        self.issued = Issued()
        self._admin = admin
        self._name = name
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="steady-stream", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def answered(self, calls: int) -> bool:
        """Whether so many calls were answered, or no more will be."""
        return self.issued.calls >= calls or bool(self.issued.failure)

    def stop(self) -> Issued:
        """End after the call under way; what was done."""
        self._stopping.set()
        self._thread.join(_GIVE_UP_S + 5)
        return self.issued

    def _run(self) -> None:
        number, answered_s = 0, time.monotonic()
        while not self._stopping.is_set() and not self.issued.failure:
            number += 1
            self._issue(f"{self._name}-{number}")
            now_s = time.monotonic()
            self.issued.longest_gap_s = max(self.issued.longest_gap_s, now_s - answered_s)
            answered_s = now_s
            self._stopping.wait(_INTERVAL_S)

    def _issue(self, key: str) -> None:
        answer = self._answered(key)
        if answer is None:
            return
        self.issued.calls += 1
        self.issued.answered_twice += answer.repeated_request
        self.issued.commands += [one.command_id.hex() for one in answer.issued]
        if answer.refused:
            self.issued.failure = f"{answer.refused[0].reason}: {answer.refused[0].detail}"

    def _answered(self, key: str) -> admin_pb2.IssueCommandsResponse | None:
        """Say it until it is answered; None once there is no sense in going on."""
        deadline_s = time.monotonic() + _GIVE_UP_S
        while True:
            try:
                return self._admin.issue("*", admin_pb2.CommandSpec(action="simulated.noop"), idempotency_key=key)
            except ValueError:
                return None  # the demo ended and closed the channel
            except grpc.RpcError as error:
                code = error.code()
                if code not in _AWAY or time.monotonic() > deadline_s:
                    self.issued.failure = f"{code.name}: {error.details()}"
                    return None
                self.issued.said_again += 1
                time.sleep(_AGAIN_S)
