"""A trace says everything about a run: what was recorded is decided again when it is replayed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.run import record, simulate
from tests.simulation.trace import Trace, read, write
from tests.simulation.weather import Climate, draw

pytestmark = pytest.mark.xdist_group("simulation")
GOLDEN = Path(__file__).parent / "traces" / "golden.jsonl"


def test_a_recorded_trace_comes_back_from_its_file_and_decides_the_same(tmp_path: Path) -> None:
    climate = Climate(link_failures=400, relay_failures=20)
    recorded = record(draw(11, nodes=40, relays=5, routes=25, minutes=8, climate=climate))
    write(tmp_path / "trace.jsonl", recorded)
    replayed = read(tmp_path / "trace.jsonl")
    assert replayed == recorded
    assert tuple(simulate(replayed).server.decisions) == recorded.decisions


def test_the_golden_trace_is_decided_as_it_was() -> None:
    """When rules change on purpose: `python -m tests.simulation --record`, and look at what the diff says."""
    golden = read(GOLDEN)
    assert tuple(simulate(Trace(golden.plan, golden.events)).server.decisions) == golden.decisions
    assert {decided.rule for decided in golden.decisions} >= {"FIRST", "UNHEALTHY", "FASTER"}


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text('{"trace":0}\n')
    with pytest.raises(ValueError, match="record it again"):
        read(tmp_path / "old.jsonl")
