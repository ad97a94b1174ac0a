"""A real gRPC server on loopback, with TLS, that answers the Admin service as a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from fleet import status
from fleet.errors import Refusal
from fleet.v1 import admin_pb2, admin_pb2_grpc

Answer = Message | Refusal | grpc.StatusCode | Sequence[Any] | Callable[[Any], Any]


@dataclass(frozen=True)
class Call:
    """One call as it arrived."""

    method: str
    request: Any
    metadata: dict[str, str]


class FakeAdmin:
    """Answers of the Admin service, by method name.

    An answer is a message, a refusal, a bare status code, a list of these for a stream, or a function of the request
    that gives one. A list for a unary method is used up from the front, one answer a call. `HOLD` in a stream keeps it
    open until the caller leaves.
    """

    HOLD = object()

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget answers and calls."""
        self.answers: dict[str, Any] = {}
        self.calls: list[Call] = []
        self.held = threading.Event()
        self.left = threading.Event()

    def requests(self, method: str) -> list[Any]:
        return [call.request for call in self.calls if call.method == method]

    def unary(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        answer = self._next(method, request, context)
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        return self._give(answer, context)

    def stream(self, method: str, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        answer = self._next(method, request, context)
        for item in answer if isinstance(answer, list) else [answer]:
            if item is self.HOLD:
                if not context.add_callback(self.left.set):
                    self.left.set()  # the caller has left before
                self.held.set()
                self.left.wait(30)
                return
            yield self._give(item, context)

    def _next(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        self.calls.append(Call(method, request, metadata))
        answer = self.answers.get(method)
        if answer is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"the test gives no answer to {method}")
        return answer(request) if callable(answer) else answer

    def _give(self, answer: Any, context: grpc.ServicerContext) -> Any:
        if isinstance(answer, Refusal):
            code, detail, trailing = status.encode(answer)
            context.set_trailing_metadata(trailing)
            context.abort(code, detail)
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "as the test says")
        return answer


class _Servicer(admin_pb2_grpc.AdminServicer):
    def __init__(self, fake: FakeAdmin) -> None:
        for method in admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods:
            handler = fake.stream if method.server_streaming else fake.unary
            setattr(self, method.name, self._bound(handler, method.name))

    @staticmethod
    def _bound(handler: Callable[..., Any], method: str) -> Callable[..., Any]:
        return lambda request, context: handler(method, request, context)


def serve(fake: FakeAdmin, credentials: grpc.ServerCredentials) -> tuple[grpc.Server, int]:
    """Start it on a free port of 127.0.0.1."""
    server = grpc.server(futures.ThreadPoolExecutor(8), options=(("grpc.so_reuseport", 0),))
    admin_pb2_grpc.add_AdminServicer_to_server(_Servicer(fake), server)  # type: ignore[no-untyped-call]
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return server, port
