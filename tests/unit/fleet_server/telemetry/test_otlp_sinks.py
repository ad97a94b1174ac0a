"""Receivers as they answer: each answer is understood, none raises, and no secret shows."""

import os
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from fleet.v1 import telemetry_pb2
from fleet_server.telemetry import otlp_sinks
from fleet_server.telemetry.export_rules import Standing
from fleet_server.telemetry.otlp import Origin, RequestBuilder
from fleet_server.telemetry.otlp_sinks import HttpSink, SinkError, open_sink, read_headers
from fleet_server.telemetry.rules import Series
from tests.fakes.otlp_receiver import GrpcReceiver, HttpReceiver, Reply
from tests.fakes.tls import FakeAuthority
from tests.integration.installation import free_ports

REQUEST = ExportMetricsServiceRequest()
REQUEST.resource_metrics.add().scope_metrics.add().metrics.add(name="cpu").gauge.data_points.add(as_double=1.5)
PARTIAL = ExportMetricsServiceResponse(
    partial_success=ExportMetricsPartialSuccess(rejected_data_points=3, error_message="too old\n")
)


def test_http_takes_it_under_the_usual_path_over_one_connection() -> None:
    with HttpReceiver() as receiver:
        sink = open_sink(receiver.url, headers={"Authorization": "Bearer t"}, ca_file=None)
        assert [sink.send(REQUEST).standing for _ in range(3)] == [Standing.TAKEN] * 3
        sink.close()
        assert receiver.requests == [REQUEST] * 3
        path, headers = receiver.seen[0]
        assert path == "/v1/metrics"
        assert headers["Content-Type"] == "application/x-protobuf"
        assert headers["Authorization"] == "Bearer t"
        assert receiver.connections == 1


def test_http_keeps_a_path_that_is_given() -> None:
    with HttpReceiver() as receiver:
        open_sink(f"{receiver.url}/api/v1/otlp/v1/metrics", headers={}, ca_file=None).send(REQUEST)
        assert receiver.seen[0][0] == "/api/v1/otlp/v1/metrics"


def test_http_answers_say_what_to_do() -> None:
    with HttpReceiver() as receiver:
        sink = HttpSink(receiver.url, headers={}, ca_file=None)
        receiver.replies = [
            Reply(429, b"slow down", {"Retry-After": "12"}),
            Reply(400, b"bad \x1b[31m" + b"x" * 100_000),
            Reply(302, b"", {"Location": "http://127.0.0.1:1/"}),
            Reply(200, PARTIAL.SerializeToString()),
            Reply(200, b"thanks"),
        ]
        later, refused, moved, partial, odd = (sink.send(REQUEST) for _ in range(5))
        assert (later.standing, later.retry_after_s) == (Standing.LATER, 12.0)
        assert later.detail == "HTTP 429 slow down"
        assert refused.standing is Standing.REFUSED
        assert len(refused.detail) < 400
        assert refused.detail.isprintable()
        assert moved.standing is Standing.SETUP
        assert (partial.standing, partial.rejected, partial.detail) == (Standing.TAKEN, 3, "too old")
        assert (odd.standing, odd.rejected) == (Standing.TAKEN, 0)


def test_http_where_nobody_listens_is_later() -> None:
    (port,) = free_ports(1)
    answer = HttpSink(f"http://127.0.0.1:{port}", headers={"X-Key": "hush"}, ca_file=None).send(REQUEST)
    assert answer.standing is Standing.LATER
    assert "hush" not in answer.detail


def test_https_needs_a_certificate_that_the_cas_vouch_for(tmp_path: Path) -> None:
    authority, stranger = FakeAuthority(), FakeAuthority("stranger")
    ca_file, wrong_file = tmp_path / "ca.pem", tmp_path / "wrong.pem"
    ca_file.write_bytes(authority.cert_pem)
    wrong_file.write_bytes(stranger.cert_pem)
    with HttpReceiver(authority.issue().write(tmp_path)) as receiver:
        assert open_sink(receiver.url, headers={}, ca_file=ca_file).send(REQUEST).standing is Standing.TAKEN
        refused = open_sink(receiver.url, headers={}, ca_file=wrong_file).send(REQUEST)
        missing = open_sink(receiver.url, headers={}, ca_file=tmp_path / "none.pem").send(REQUEST)
        assert (refused.standing, missing.standing) == (Standing.SETUP, Standing.SETUP)
        assert len(receiver.requests) == 1


def test_grpc_answers_say_what_to_do() -> None:
    with GrpcReceiver() as receiver:
        sink = open_sink(f"grpc://{receiver.address}", headers={"Authorization": "Bearer t"}, ca_file=None)
        receiver.refusals = [
            (grpc.StatusCode.UNAVAILABLE, "soon"),
            (grpc.StatusCode.INVALID_ARGUMENT, "no"),
            (grpc.StatusCode.UNAUTHENTICATED, "who"),
        ]
        receiver.answer = PARTIAL
        answers = [sink.send(REQUEST) for _ in range(4)]
        sink.close()
        assert [answer.standing for answer in answers] == [
            Standing.LATER,
            Standing.REFUSED,
            Standing.SETUP,
            Standing.TAKEN,
        ]
        assert answers[0].detail == "UNAVAILABLE: soon"
        assert answers[3].rejected == 3
        assert receiver.requests == [REQUEST]
        assert receiver.metadata[0]["authorization"] == "Bearer t"


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:4318", "ftp://host/x", "http://", "grpc://host", "http://u:p@host/x", "http://[::1", "http://h:x"],
)
def test_a_url_of_no_use_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SinkError) as caught:
        open_sink(url, headers={}, ca_file=None)
    assert "u:p" not in str(caught.value)


def test_headers_come_from_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("# the tenant\nX-Scope-OrgID: fleet\n\nAuthorization: Bearer abc:def\n")
    os.chmod(file, 0o600)
    assert read_headers(file) == {"X-Scope-OrgID": "fleet", "Authorization": "Bearer abc:def"}
    os.chmod(file, 0o644)
    with pytest.raises(SinkError, match="headers"):
        read_headers(file)


@pytest.mark.parametrize("line", ["no colon", "bad name!: x", "X: \x01"])
def test_a_line_that_is_no_header_is_named_by_its_number_alone(tmp_path: Path, line: str) -> None:
    file = tmp_path / "headers"
    file.write_text(f"A: b\n{line}\n")
    os.chmod(file, 0o600)
    with pytest.raises(SinkError, match="line 2") as caught:
        read_headers(file)
    assert line not in str(caught.value)


def test_requests_are_cut_and_counters_are_sums() -> None:
    builder = RequestBuilder("main", max_points=2)
    gauge = Series("cpu", (("core", "0"),), telemetry_pb2.SERIES_KIND_GAUGE, "percent")
    counter = Series("ticks", (), telemetry_pb2.SERIES_KIND_COUNTER, "")
    batch = telemetry_pb2.TelemetryBatch(
        base_time_ms=1000,
        series=[0, 1, 2, 0, 1, 9],
        time_offset_ms=[0, 1, 2, 5000, 4, 5],
        values=[1.0, 2.0, 3.0, 4.0, float("nan"), 6.0],
    )
    requests = list(builder.add(Origin("id-1", "n1"), {0: gauge, 1: counter}, [0, 1, -1], [batch], 2000))
    requests += builder.rest()
    assert [len(list(points(request))) for request in requests] == [2, 1]
    metrics = {each.name: each for each in requests[0].resource_metrics[0].scope_metrics[0].metrics}
    assert metrics["ticks"].sum.is_monotonic
    assert metrics["ticks"].sum.data_points[0].time_unix_nano == 1_001_000_000
    assert [point.time_unix_nano for point in points(requests[1])] == [2_000_000_000]


def points(request: ExportMetricsServiceRequest) -> list[otlp_sinks.ExportMetricsServiceRequest]:
    return [
        point
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in (*metric.gauge.data_points, *metric.sum.data_points)
    ]
