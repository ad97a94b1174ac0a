"""`python -m tests.chaos`: break a whole installation at random for a while, then prove that nothing came of it.

Ends with 0 when every rule holds, with 1 when one does not, with 2 when the run could not be carried out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is imported: cut connections are no news here
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # as `tests.conftest` says

from tests.chaos.programs import ROOT
from tests.chaos.run import Options, Report, Run
from tests.chaos.world import Size

FOLDER = ROOT / ".chaos"
_LONGEST_S = 330
_SHOWN = 40


def main(argv: list[str] | None = None) -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000, help="of the schedule (default: new)")
    parser.add_argument("--seconds", type=float, default=300.0, help=f"of faults, at most {_LONGEST_S} (default: 300)")
    parser.add_argument("--nodes", type=int, default=200, help="about so many (default: 200)")
    parser.add_argument("--gap", type=float, default=1.5, help="mean seconds between two faults (default: 1.5)")
    parser.add_argument("--keep", action="store_true", help="keep the files of a run that passed, too")
    parser.add_argument("--quiet", action="store_true", help="show the end only")
    given = parser.parse_args(argv)
    if not 5 <= given.seconds <= _LONGEST_S:
        parser.error(f"--seconds is between 5 and {_LONGEST_S}: the whole run is bounded to ten minutes")
    folder = FOLDER / str(given.seed)
    FOLDER.mkdir(exist_ok=True)
    with contextlib.ExitStack() as held:
        lock = held.enter_context((FOLDER / f"{given.seed}.lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            parser.error(f"seed {given.seed} is being run: wait for it, or take another one")
        return _run(given, folder)


def _run(given: argparse.Namespace, folder: Path) -> int:
    """One run, in a folder that nobody else writes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    options = Options(given.seed, given.seconds, Size.of(given.nodes), given.gap, folder)
    show = (lambda _text: None) if given.quiet else (lambda text: print(text, flush=True))
    try:
        report = asyncio.run(_interruptible(Run(options, show)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _remove(folder)
        print("interrupted; everything that was started has ended", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        print(f"chaos: seed {given.seed} could not be carried out; see {folder}", file=sys.stderr)
        return 2
    print(told(report, given.seed))
    if report.violations:
        print(f"kept: {folder} (evidence.json, logs, journals)\nrepeat: make chaos CHAOS_ARGS='{_again(given)}'")
        return 1
    if not given.keep:
        _remove(folder)
    return 0


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)
    (FOLDER / f"{folder.name}.lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another run's files are there
        FOLDER.rmdir()


def told(report: Report, seed: int) -> str:
    """The report as a person reads it."""
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(_kinds(report).items()))
    states = ", ".join(f"{count} {state}" for state, count in report.states.most_common())
    refusals = ", ".join(f"{count} {reason}" for reason, count in report.refusals.most_common()) or "none"
    lines = [
        f"chaos: seed {seed}, {report.took_s:.0f} s",
        f"  faults      {faults}",
        f"  issues      {report.issues}, {report.unknown_answers} attempts without an answer",
        f"  commands    {sum(report.states.values())}: {states}",
        f"  drivers     {report.lines} lines",
        f"  no answers  {refusals}",
        f"  violations  {len(report.violations)}",
        *(f"    {each.rule}: {each.what}" for each in report.violations[:_SHOWN]),
    ]
    if len(report.violations) > _SHOWN:
        lines.append(f"    and {len(report.violations) - _SHOWN} more")
    return "\n".join(lines)


def _kinds(report: Report) -> dict[str, int]:
    counted: dict[str, int] = {}
    for each in report.done:
        counted[each.event.kind.value] = counted.get(each.event.kind.value, 0) + 1
    return counted


def _again(given: argparse.Namespace) -> str:
    return f"--seed {given.seed} --seconds {given.seconds:g} --nodes {given.nodes} --gap {given.gap:g}"


async def _interruptible(run: Run) -> Report:
    """SIGTERM ends it as Ctrl-C does: nothing that was started is left behind."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run.run()


if __name__ == "__main__":
    sys.exit(main())
