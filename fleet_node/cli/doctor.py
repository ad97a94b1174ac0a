"""`fleet-node doctor`: why this node does not connect."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet_node.cli.grammar import ExitCode, Failure, Verb, folded, json_option, node_options, settings_from

if TYPE_CHECKING:
    from fleet_node.doctor.finding import Finding
    from fleet_node.doctor.service import Doctor

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "skip": None}


@click.command(
    cls=Verb, example="fleet-node doctor\nfleet-node doctor --json | jq '.findings[] | select(.level != \"ok\")'"
)
@json_option
@node_options
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, config: Path | None, state_dir: Path | None) -> None:
    """Look at every step of the way to the gateway: configuration, state folder, keys, disk, journal, name, connection,
    TLS and pin, HTTP/2, credentials, handshake, clock, stream. Each line says ok, or what to do.

    It disturbs nothing: it may run beside the daemon, and takes nobody's stream. Ends with 0 when nothing fails, with 1
    otherwise.
    """
    try:
        loaded = settings_from(config, state_dir)
    except Failure as failure:
        _show_config_failure(failure, as_json=as_json)
        ctx.exit(ExitCode.FAILED)
    from fleet.clock import SystemClock
    from fleet_node.doctor.finding import has_failed
    from fleet_node.doctor.service import Doctor, Patient

    logging.disable()  # what the rooms log on the way is told by the findings
    patient = Patient(
        settings=loaded.settings,
        config=str(loaded.path) if loaded.path else "no config file: environment and defaults",
        place_of=loaded.place_of,
        clock=SystemClock(),
    )
    findings = asyncio.run(_examine(Doctor(patient), as_json=as_json))
    if as_json:
        click.echo(json.dumps({"ok": not has_failed(findings), "findings": [asdict(f) for f in findings]}, indent=2))
    ctx.exit(ExitCode.FAILED if has_failed(findings) else ExitCode.DONE)


async def _examine(doctor: Doctor, *, as_json: bool) -> list[Finding]:
    findings = []
    async for finding in doctor.examine():
        findings.append(finding)
        if not as_json:
            _show(finding)
    return findings


def _show(finding: Finding) -> None:
    level = click.style(f"{finding.level:<4}", fg=_COLOURS[finding.level])
    about = f"{finding.check} {finding.endpoint}" if finding.endpoint else finding.check
    click.echo(f"{level}  {folded(f'{about}: {finding.detail}', 6, sys.stdout)}")
    if finding.next_step:
        click.echo(f"      -> {folded(finding.next_step, 9, sys.stdout)}")


def _show_config_failure(failure: Failure, *, as_json: bool) -> None:
    from fleet_node.doctor.finding import fail

    remedy = "correct it: docs/fleet-node.md lists every setting"
    findings = [fail("config", problem, remedy) for problem in failure.message.splitlines()]
    if as_json:
        click.echo(json.dumps({"ok": False, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return
    for finding in findings:
        _show(finding)
