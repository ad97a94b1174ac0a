"""What a stream has to send, by priority: control before results, results before findings about routes, those before
telemetry. So control never waits behind bulk, and no room's bulk behind another's.

Rooms keep what they have until it is their turn: only control is queued here.
"""

from __future__ import annotations

from collections import deque

from fleet.v1 import gateway_pb2
from fleet_node.link.frames import encode_reports
from fleet_node.link.ports import CommandStream, RouteStream, TelemetryStream

MAX_CONTROL = 1024


class Lanes:
    """Of one stream. Give it the rooms' streams once that is welcomed."""

    def __init__(self) -> None:
        self.commands: CommandStream | None = None
        self.routes: RouteStream | None = None
        self.telemetry: TelemetryStream | None = None
        self._control: deque[gateway_pb2.NodeControl] = deque()
        self._said_goodbye = False

    @property
    def full(self) -> bool:
        """Whether as much control waits as may: the server has stopped reading."""
        return len(self._control) >= MAX_CONTROL

    @property
    def said_goodbye(self) -> bool:
        """Whether a goodbye was queued."""
        return self._said_goodbye

    @property
    def done(self) -> bool:
        """Whether everything has gone out, the goodbye last."""
        return self._said_goodbye and not self._control

    def put_control(self, control: gateway_pb2.NodeControl) -> None:
        """Queue a control frame."""
        self._control.append(control)

    def put_goodbye(self, reason: str) -> None:
        """Queue the last control frame; results and findings that are ready go out before it."""
        self._said_goodbye = True
        self.put_control(gateway_pb2.NodeControl(goodbye=gateway_pb2.Goodbye(reason=reason)))

    def next_control(self) -> bytes | None:
        """The next serialised `NodeControl`, each once; None when there is none now."""
        if self._control:
            last = self._said_goodbye and len(self._control) == 1
            ready = self._next_of_rooms() if last else None
            return ready if ready is not None else self._control.popleft().SerializeToString()
        return self._next_of_rooms()

    def next_telemetry(self) -> bytes | None:
        """The next serialised `TelemetryBatch`. Ask once there is no control."""
        return self.telemetry.next_batch() if self.telemetry is not None else None

    def close(self) -> None:
        """The stream has ended: tell the rooms."""
        for room in (self.commands, self.routes, self.telemetry):
            if room is not None:
                room.close()

    def _next_of_rooms(self) -> bytes | None:
        if self.commands is not None and (reports := self.commands.next_reports()):
            return encode_reports(reports)
        if self.commands is not None and (rows := self.commands.next_audit()) is not None:
            return rows
        return self.routes.next_health() if self.routes is not None else None
