"""Receivers of OTLP metrics: over HTTP (protobuf, what Prometheus, Mimir, VictoriaMetrics and every collector take), or
over gRPC. Blocking: each is used by one thread.
"""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import grpc
import urllib3
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub

from fleet.identity import PrivateFileError, read_private
from fleet.redaction import printable
from fleet.version import software_version
from fleet_server.telemetry import export_rules
from fleet_server.telemetry.export_rules import Answer, Standing

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0
DEFAULT_HTTP_PATH = "/v1/metrics"
_MAX_ANSWER_BYTES = 64 * 1024
_MAX_DETAIL_CHARS = 300
_MAX_HEADERS = 32
SCHEMES = ("http", "https", "grpc", "grpcs")


class SinkError(ValueError):
    """The receiver is described in a way that is of no use; the message says how to write it, and holds no secret."""


class Sink(Protocol):
    """Takes requests, one after the other."""

    def send(self, request: ExportMetricsServiceRequest) -> Answer:
        """Send one; never raises for what the network or the receiver does."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def open_sink(url: str, *, headers: Mapping[str, str], ca_file: Path | None) -> Sink:
    """A receiver by its URL; nothing is connected yet.

    Args:
        url: ``http(s)://host:port[/path]`` or ``grpc(s)://host:port``.
        headers: sent with each request; they may hold a token.
        ca_file: PEM of the CAs that vouch for it; those of the system without one.

    Raises:
        SinkError: no such scheme, no host, or the CAs cannot be read.
    """
    parts = check_url(url)
    if parts.scheme in ("http", "https"):
        return HttpSink(url, headers=headers, ca_file=ca_file)
    roots = None
    if ca_file is not None:
        try:
            roots = ca_file.read_bytes()
        except OSError as error:
            raise SinkError(f"cannot read the CAs of the telemetry receiver, {ca_file}: {error.strerror}") from None
    return GrpcSink(parts.netloc, secure=parts.scheme == "grpcs", headers=headers, roots=roots)


def check_url(url: str) -> _Parts:
    """Parts of a receiver's URL.

    Raises:
        SinkError: as `open_sink`; credentials in it are refused as well, for every user of the machine may read flags.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in SCHEMES or not parts.hostname or (parts.scheme.startswith("grpc") and port is None):
        raise SinkError("write http://host:port/v1/metrics, https://…, grpc://host:port or grpcs://host:port")
    if parts.username is not None or parts.password is not None:
        raise SinkError("no user or password in the URL: put an Authorization header into the headers' file")
    return _Parts(parts.scheme, parts.netloc, parts.path)


class _Parts:
    __slots__ = ("netloc", "path", "scheme")

    def __init__(self, scheme: str, netloc: str, path: str) -> None:
        self.scheme, self.netloc, self.path = scheme, netloc, path


def read_headers(path: Path) -> dict[str, str]:
    """Headers from a 0600 file, one `Name: value` a line.

    Raises:
        SinkError: it cannot be read, is open to others, or a line is no header.
    """
    try:
        lines = read_private(path).decode("ascii").splitlines()
    except PrivateFileError as error:
        raise SinkError(str(error)) from None
    except UnicodeDecodeError:
        raise SinkError(f"{path} holds more than ASCII: write one `Name: value` a line") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, value = line.partition(":")
        if not separator or not name.strip().replace("-", "").isalnum() or not value.strip().isprintable():
            raise SinkError(f"{path} line {number} is no header: write one `Name: value` a line")
        found[name.strip()] = value.strip()
    if len(found) > _MAX_HEADERS:
        raise SinkError(f"{path} holds more than {_MAX_HEADERS} headers")
    return found


class HttpSink:
    """OTLP over HTTP/1.1, binary protobuf, compressed with gzip."""

    def __init__(self, url: str, *, headers: Mapping[str, str], ca_file: Path | None) -> None:
        parts = check_url(url)
        self._url = url if parts.path.strip("/") else url.rstrip("/") + DEFAULT_HTTP_PATH
        self._headers = {
            "User-Agent": f"fleet-server/{software_version()}",
            **headers,
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "gzip",
        }
        self._pool = urllib3.PoolManager(
            num_pools=1,
            maxsize=1,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=ANSWER_TIMEOUT_S),
            retries=False,
            ca_certs=None if ca_file is None else str(ca_file),
        )

    def send(self, request: ExportMetricsServiceRequest) -> Answer:
        """As `Sink`."""
        body = gzip.compress(request.SerializeToString(), compresslevel=1)
        try:
            answer = self._pool.request("POST", self._url, body=body, headers=self._headers, preload_content=False)
        except OSError as error:  # a file of CAs that cannot be read, among others
            return Answer(Standing.SETUP, _short(str(error)))
        except urllib3.exceptions.SSLError as error:
            return Answer(Standing.SETUP, f"its certificate is not trusted: {_short(str(error))}")
        except urllib3.exceptions.HTTPError as error:
            return Answer(Standing.LATER, _short(str(error)))
        with contextlib.closing(answer):
            try:
                content = answer.read(_MAX_ANSWER_BYTES, decode_content=True)
            except urllib3.exceptions.HTTPError:
                content = b""
            if len(content) < _MAX_ANSWER_BYTES:
                answer.drain_conn()  # so that the connection can be used again
            return self._judged(answer.status, content, answer.headers.get("Retry-After"))

    def _judged(self, status: int, content: bytes, retry_after: str | None) -> Answer:
        standing = export_rules.of_http_status(status)
        if standing is Standing.TAKEN:
            return _taken(content)
        words = _short(content.decode("utf-8", "replace"))
        return Answer(standing, f"HTTP {status} {words}".strip(), retry_after_s=export_rules.retry_after_s(retry_after))

    def close(self) -> None:
        """As `Sink`."""
        self._pool.clear()


class GrpcSink:
    """OTLP over gRPC."""

    def __init__(self, target: str, *, secure: bool, headers: Mapping[str, str], roots: bytes | None) -> None:
        options = (("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),)
        if secure:
            credentials = grpc.ssl_channel_credentials(root_certificates=roots)
            self._channel = grpc.secure_channel(target, credentials, options, compression=grpc.Compression.Gzip)
        else:
            self._channel = grpc.insecure_channel(target, options, compression=grpc.Compression.Gzip)
        self._stub = MetricsServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._metadata: Sequence[tuple[str, str]] = [(name.lower(), value) for name, value in headers.items()]

    def send(self, request: ExportMetricsServiceRequest) -> Answer:
        """As `Sink`."""
        try:
            answer = self._stub.Export(request, timeout=ANSWER_TIMEOUT_S, metadata=self._metadata)
        except grpc.RpcError as error:
            code = error.code()
            detail = f"{code.name}: {_short(error.details() or '')}"
            return Answer(export_rules.of_grpc_code(code.name), detail)
        return _partial(answer)

    def close(self) -> None:
        """As `Sink`."""
        self._channel.close()


def _taken(content: bytes) -> Answer:
    try:
        return _partial(ExportMetricsServiceResponse.FromString(content))
    except DecodeError:  # some receivers answer with a text
        return Answer(Standing.TAKEN)


def _partial(answer: ExportMetricsServiceResponse) -> Answer:
    partial = answer.partial_success
    return Answer(Standing.TAKEN, _short(partial.error_message), rejected=max(0, partial.rejected_data_points))


def _short(text: str) -> str:
    return printable(" ".join(text.split()))[:_MAX_DETAIL_CHARS]
