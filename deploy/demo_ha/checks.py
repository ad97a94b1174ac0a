"""What has to hold, judged by what nodes and processes left behind. Pure: each is a sentence and whether it held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Check(NamedTuple):
    """One thing that was looked at."""

    held: bool
    text: str


def streams_cut(log_lines: Iterable[str]) -> int:
    """Streams that ended otherwise than by the node's own word, in the nodes' logs."""
    return sum('"stream_lost"' in line for line in log_lines)


def of_upgrade(
    *,
    exit_codes: Sequence[int | None],
    replaced: bool,
    log_lines: Iterable[str],
    online: int,
    nodes: int,
    failure: str,
) -> list[Check]:
    """A rolling upgrade that nobody noticed.

    Args:
        exit_codes: of the replicas' processes from before it.
        replaced: each replica is another process now.
        log_lines: of the nodes, since it began.
        online: nodes that are.
        nodes: that there are.
        failure: of an operator's call, for good; empty for none.
    """
    drained = bool(exit_codes) and all(code == 0 for code in exit_codes) and replaced
    return [
        Check(drained, "each replica drained, ended with 0, and was replaced by a new process"),
        Check(
            not streams_cut(log_lines), "no stream was cut: every node had its next one before it let go of the last"
        ),
        Check(not failure, failure or "no call failed for good"),
        Check(online == nodes, "every node is online"),
    ]


def of_kill(*, victim: str, held: int, log_lines: Iterable[str], online: int, nodes: int, failure: str) -> list[Check]:
    """A replica that was killed, which nodes notice and get over.

    Args:
        victim: its id.
        held: streams that it had.
        log_lines: of the nodes, since it was killed.
        online: nodes that are.
        nodes: that there are.
        failure: of an operator's call, for good; empty for none.
    """
    cut = streams_cut(log_lines)
    return [
        Check(0 < held <= cut, f"{held} nodes lost their streams, and said so"),
        Check(online == nodes, f"{victim} is back, and every node is online"),
        Check(not failure, failure or "no call failed for good"),
    ]


def of_count(*, issued: int, command_ids: Sequence[str], starts: Mapping[str, int]) -> list[Check]:
    """What was issued against what ran.

    Args:
        issued: commands, by the answers to the calls.
        command_ids: of these answers.
        starts: how often each command began, by the nodes' own run logs.
    """
    lost = sum(not starts.get(command_id) for command_id in command_ids)
    twice = sum(count > 1 for count in starts.values())
    known = set(command_ids)
    stray = sum(command_id not in known for command_id in starts)
    return [
        Check(issued == len(known) == len(command_ids) > 0, f"{issued} commands issued, each once"),
        Check(not lost, f"lost: {lost}"),
        Check(not twice, f"run twice: {twice}"),
        Check(not stray, f"run without being issued: {stray}"),
    ]
