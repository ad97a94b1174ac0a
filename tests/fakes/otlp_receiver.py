"""Receivers of OTLP metrics on loopback: over HTTP and over gRPC, answering as a test tells them."""

import gzip
import ssl
import threading
from collections.abc import Mapping
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)


@dataclass
class Reply:
    """What an HTTP receiver says."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class HttpReceiver:
    """Takes requests over HTTP; `replies` are said in turn, then 200.

    Args:
        tls: certificate and key files; plain HTTP without.
    """

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        self.replies: list[Reply] = []
        self.requests: list[ExportMetricsServiceRequest] = []
        self.seen: list[tuple[str, Mapping[str, str]]] = []
        self.connections = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                receiver.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.seen.append((self.path, dict(self.headers)))
                reply = receiver.replies.pop(0) if receiver.replies else Reply()
                if reply.status == 200:
                    receiver.requests.append(ExportMetricsServiceRequest.FromString(gzip.decompress(body)))
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """Without a path."""
        return f"{self.scheme}://{self.address}"

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class GrpcReceiver(MetricsServiceServicer):
    """Takes requests over gRPC; `refusals` (code, detail) are said in turn, then OK with `answer`."""

    def __init__(self) -> None:
        self.refusals: list[tuple[grpc.StatusCode, str]] = []
        self.answer = ExportMetricsServiceResponse()
        self.requests: list[ExportMetricsServiceRequest] = []
        self.metadata: list[Mapping[str, str]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(1))
        add_MetricsServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(
        self, request: ExportMetricsServiceRequest, context: grpc.ServicerContext
    ) -> ExportMetricsServiceResponse:
        """Take one."""
        self.metadata.append({str(key): str(value) for key, value in context.invocation_metadata()})
        if self.refusals:
            context.abort(*self.refusals.pop(0))
        self.requests.append(request)
        return self.answer

    def close(self) -> None:
        """Stop."""
        self._server.stop(0).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
