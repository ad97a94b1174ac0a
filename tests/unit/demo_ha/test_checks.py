"""The checks of `make demo-ha`: each holds when all is well, and only it breaks when its violation is planted."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from deploy.demo_ha import checks
from deploy.demo_ha.checks import Check
from deploy.demo_ha.witness import Load

CUT = '{"event": "stream_lost", "reason": "UNAVAILABLE"}'
MOVED = '{"event": "stream_taken_over"}'
UPGRADE: dict[str, Any] = {
    "exit_codes": [0, 0],
    "replaced": True,
    "log_lines": [MOVED] * 8,
    "online": 8,
    "nodes": 8,
    "failure": "",
}
KILL: dict[str, Any] = {
    "victim": "fleet-0",
    "held": 2,
    "log_lines": [MOVED, CUT, CUT],
    "online": 8,
    "nodes": 8,
    "failure": "",
}
COUNT: dict[str, Any] = {"issued": 2, "command_ids": ["aa", "bb"], "starts": {"aa": 1, "bb": 1}}


@pytest.mark.parametrize(
    ("check", "well"), [(checks.of_upgrade, UPGRADE), (checks.of_kill, KILL), (checks.of_count, COUNT)]
)
def test_what_is_well_holds(check: Callable[..., Sequence[Check]], well: dict[str, Any]) -> None:
    assert all(held for held, _ in check(**well))


@pytest.mark.parametrize(
    ("check", "well", "planted", "broken"),
    [
        (checks.of_upgrade, UPGRADE, {"exit_codes": [0, -9]}, "ended with 0"),
        (checks.of_upgrade, UPGRADE, {"exit_codes": [0, None]}, "ended with 0"),
        (checks.of_upgrade, UPGRADE, {"exit_codes": []}, "ended with 0"),
        (checks.of_upgrade, UPGRADE, {"replaced": False}, "replaced by a new process"),
        (checks.of_upgrade, UPGRADE, {"log_lines": [MOVED, CUT]}, "no stream was cut"),
        (checks.of_upgrade, UPGRADE, {"failure": "UNAVAILABLE: away"}, "UNAVAILABLE: away"),
        (checks.of_upgrade, UPGRADE, {"online": 7}, "every node is online"),
        (checks.of_kill, KILL, {"log_lines": [CUT, MOVED]}, "2 nodes lost their streams"),
        (checks.of_kill, KILL, {"held": 0}, "0 nodes lost their streams"),
        (checks.of_kill, KILL, {"online": 7}, "fleet-0 is back"),
        (checks.of_kill, KILL, {"failure": "INTERNAL: no"}, "INTERNAL: no"),
        (checks.of_count, COUNT, {"issued": 3}, "3 commands issued, each once"),
        (checks.of_count, COUNT, {"command_ids": ["aa", "bb", "bb"]}, "each once"),
        (checks.of_count, COUNT, {"issued": 0, "command_ids": [], "starts": {}}, "0 commands issued"),
        (checks.of_count, COUNT, {"starts": {"aa": 1}}, "lost: 1"),
        (checks.of_count, COUNT, {"starts": {"aa": 1, "bb": 2}}, "run twice: 1"),
        (checks.of_count, COUNT, {"starts": {"aa": 1, "bb": 1, "cc": 1}}, "run without being issued: 1"),
    ],
)
def test_a_planted_violation_breaks_its_check_and_no_other(
    check: Callable[..., Sequence[Check]], well: dict[str, Any], planted: dict[str, Any], broken: str
) -> None:
    (found,) = [text for held, text in check(**{**well, **planted}) if not held]
    assert broken in found


def test_the_witness_counts_what_nodes_wrote_and_each_once(tmp_path: Path) -> None:
    logs = [tmp_path / "pump-1", tmp_path / "pump-2"]
    load = Load(MagicMock(), logs, "test")
    assert load.read(logs[0]) == 0, "it has run nothing"

    def line(event: str, command_id: str) -> str:
        return json.dumps({"event": event, "command_id": command_id}) + "\n"

    half = line("start", "bb")
    logs[0].write_text(line("start", "aa") + line("end", "aa") + half[:-5])
    assert load.read(logs[0]) == 1
    with logs[0].open("a") as file:
        file.write(half[-5:])
    logs[1].write_text(line("start", "aa"))
    assert [load.read(path) for path in (*logs, *logs)] == [1, 1, 0, 0]
    assert load.starts == {"aa": 2, "bb": 1}
    assert (load.counts.run, load.counts.twice) == (2, 1)
