"""Frames written around serialised reports: what protobuf itself would write."""

import pytest

from fleet.v1 import command_pb2, gateway_pb2
from fleet_node.link.frames import encode_reports


@pytest.mark.parametrize("sizes", [[0], [3, 0, 200], [127, 128, 16_383, 16_384], [300_000], [60] * 256])
def test_reports_are_framed_as_protobuf_frames_them(sizes: list[int]) -> None:
    reports = [command_pb2.Report(report_no=number, output=b"x" * size) for number, size in enumerate(sizes)]

    framed = encode_reports(report.SerializeToString() for report in reports)

    assert framed == gateway_pb2.NodeControl(reports=command_pb2.ReportList(reports=reports)).SerializeToString()
