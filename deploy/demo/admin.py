"""The operators' service as a program calls it: for waiting, and for issuing faster than a person types."""

from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import grpc

from fleet.v1 import admin_pb2, admin_route_pb2, command_pb2
from fleet.v1.admin_pb2_grpc import AdminStub

CALL_TIMEOUT_S = 15.0
_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
)


class Reachable(Protocol):
    """Where the service listens, and what one needs to call it."""

    @property
    def admin(self) -> str:
        """host:port."""
        ...

    @property
    def ca_file(self) -> Path:
        """The server's TLS CA."""
        ...

    @property
    def owner_token_file(self) -> Path:
        """The first owner's token."""
        ...


class AdminClient:
    """One connection with the owner's token; it comes back by itself when the server restarts."""

    def __init__(self, installation: Reachable) -> None:
        credentials = grpc.ssl_channel_credentials(installation.ca_file.read_bytes())
        self._channel = grpc.secure_channel(installation.admin, credentials, options=_OPTIONS)
        token = installation.owner_token_file.read_text().strip()
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._stub = AdminStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def issue(
        self, target: str, *specs: admin_pb2.CommandSpec, idempotency_key: str = "", ttl_s: int = 300
    ) -> admin_pb2.IssueCommandsResponse:
        """Issue commands.

        Raises:
            grpc.RpcError: refused, or the server does not answer.
        """
        request = admin_pb2.IssueCommandsRequest(
            selector=admin_pb2.Selector(patterns=[target]),
            commands=specs,
            ttl_s=ttl_s,
            idempotency_key=idempotency_key,
        )
        answer: admin_pb2.IssueCommandsResponse = self._call(self._stub.IssueCommands, request)
        return answer

    def command(self, command_id: bytes) -> admin_pb2.CommandView:
        """How a command stands."""
        answer: admin_pb2.GetCommandResponse = self._call(
            self._stub.GetCommand, admin_pb2.GetCommandRequest(command_id=command_id)
        )
        return answer.command

    def state(self, command_id: bytes) -> str:
        """The state of a command, such as "SUCCEEDED"."""
        return state_word(self.command(command_id))

    def open_commands(self) -> int:
        """Commands that are not final, of all nodes."""
        return sum(node.open_commands for node in self.nodes().values())

    def nodes(self) -> dict[str, admin_pb2.NodeView]:
        """All nodes by name."""
        answer: admin_pb2.ListNodesResponse = self._call(self._stub.ListNodes, admin_pb2.ListNodesRequest())
        return {node.name: node for node in answer.nodes}

    def replicas(self) -> dict[str, admin_pb2.ReplicaView]:
        """All server replicas by id."""
        answer: admin_pb2.ListReplicasResponse = self._call(self._stub.ListReplicas, admin_pb2.ListReplicasRequest())
        return {replica.replica_id: replica for replica in answer.replicas}

    def cluster_id(self) -> str:
        """Of the installation."""
        answer: admin_pb2.WhoAmIResponse = self._call(self._stub.WhoAmI, admin_pb2.WhoAmIRequest())
        return answer.cluster_id

    def audit_writers(self) -> set[str]:
        """Who wrote the rows of the audit: one name for each chain."""
        pages = self._call(self._stub.ExportAudit, admin_pb2.ExportAuditRequest())
        return {row.writer for page in pages for row in page.entries}

    def explain(self, route: str) -> admin_route_pb2.ExplainRouteResponse:
        """Which way a route takes, and why."""
        answer: admin_route_pb2.ExplainRouteResponse = self._call(
            self._stub.ExplainRoute, admin_route_pb2.ExplainRouteRequest(route=route)
        )
        return answer

    def online(self) -> set[str]:
        """Names of nodes with a live stream; none while the server does not answer."""
        try:
            return {name for name, node in self.nodes().items() if node.online}
        except grpc.RpcError:
            return set()

    def _call(self, method: Any, request: Any) -> Any:
        return method(request, timeout=CALL_TIMEOUT_S, metadata=self._metadata)


def state_word(view: admin_pb2.CommandView) -> str:
    """A command's state without the enum's prefix."""
    return command_pb2.CommandState.Name(view.state).removeprefix("COMMAND_STATE_")
