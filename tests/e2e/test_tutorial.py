"""docs/tutorial.md as a reader walks it: its commands run as they stand, in its terminals, and show what it shows.

How the page is marked
    `<!-- terminal: NAME -->` before a block of commands says in which terminal they are typed. Options after a comma:
    `exit: N` for a block that ends with another code than 0, `answer: TEXT` for one that asks, `again` for one that a
    reader repeats until it shows what is expected, `press: ctrl-c` for a key and no block.
    A block of text is what the terminal before it shows. Each of its lines has to come, in that order, other lines
    between them; `…` stands for anything, and ids, keys, fingerprints, addresses and durations are not compared.

In the terminal `you` a block runs to its end. In the others it may stay: its lines are waited for, and before the next
block of that terminal it has to have ended well.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes.process import Processes, RunningProcess

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
MARKER = re.compile(r"<!-- terminal: (?P<terminal>\w+)(?P<options>.*) -->")
FENCE = re.compile(r"```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
PROMPT = "[y/N]:"
BLOCK_TIMEOUT_S = 30.0
MASKS = (
    (re.compile(r"\b[A-Z2-7]{4}(-[A-Z2-7]{4}){7}\b"), "FINGERPRINT"),
    (re.compile(r"127\.0\.0\.1:\d+"), "ADDRESS"),
    (re.compile(r"\b[0-9a-f]{8,}\b"), "HEX"),
    (re.compile(r"\b\d+(\.\d+)?m?s\b"), "DURATION"),
)


@dataclass
class Step:
    """One thing to do in one terminal, and what has to show."""

    terminal: str
    options: Mapping[str, str]
    script: str = ""
    shows: list[str] = field(default_factory=list)


def read_steps(page: str) -> tuple[list[Step], list[str]]:
    """The steps of a page in their order, and the blocks of commands that stand in no terminal."""
    steps: list[Step] = []
    loose: list[str] = []
    marked = False
    for found in sorted([*MARKER.finditer(page), *FENCE.finditer(page)], key=lambda match: match.start()):
        if found.re is MARKER:
            pairs = [each.partition(":") for each in found["options"].split(",") if each.strip()]
            options = {name.strip(): value.strip() for name, _, value in pairs}
            steps.append(Step(found["terminal"], options))
            marked = "press" not in options
        elif found["kind"] == "text":
            steps[-1].shows = [line for line in found["body"].splitlines() if line.strip(" …")]
        elif marked:
            steps[-1].script, marked = found["body"], False
        else:
            loose.append(found["body"].strip())
    return steps, loose


def missing(expected: Sequence[str], shown: Sequence[str]) -> list[str]:
    """The expected lines from the first on that did not come in order."""
    lines = iter([_comparable(line) for line in shown])
    for index, wanted in enumerate(expected):
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in _comparable(wanted).split("…")))
        if not any(pattern.fullmatch(line) for line in lines):
            return list(expected[index:])
    return []


def _comparable(line: str) -> str:
    for pattern, name in MASKS:
        line = pattern.sub(name, line)
    return " ".join(line.split())


class Terminals:
    """The reader's terminals: a folder, and what each has exported so far.

    Args:
        folder: where all of them stand.
        processes: ends what is left running.
    """

    def __init__(self, folder: Path, processes: Processes) -> None:
        self._folder = folder
        self._processes = processes
        self._staying: dict[str, RunningProcess] = {}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEET")}
        gateway, admin, probes = _free_ports(3)
        self._env = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
            "FLEET_GATEWAY_LISTEN": f"127.0.0.1:{gateway}",
            "FLEET_ADMIN_LISTEN": f"127.0.0.1:{admin}",
            "PROBE_LISTEN": f"127.0.0.1:{probes}",
            "NO_COLOR": "1",
        }

    def do(self, step: Step) -> None:
        """Do what a step says, and check what it shows."""
        if "press" in step.options:
            self._press_ctrl_c(step.terminal)
        elif step.terminal == "you":
            self._run(step)
        else:
            if step.script:
                self._start(step)
            process = self._staying[step.terminal]
            self._processes.wait_until(
                lambda: not missing(step.shows, process.lines), f"the {step.terminal}'s terminal shows {step.shows}"
            )

    def _run(self, step: Step) -> None:
        wanted = int(step.options.get("exit", "0"))
        shown: list[str] = []

        def holds() -> bool:
            code, output = self._answer(step) if "answer" in step.options else self._to_the_end(step)
            shown[:] = output.splitlines()
            assert code == wanted, f"exit code {code}, not {wanted}:\n{step.script}\n{output}"
            return not missing(step.shows, shown)

        if "again" in step.options:
            self._processes.wait_until(holds, f"{step.script} shows {step.shows}")
        elif not holds():
            pytest.fail(f"{step.script}\ndid not show\n{missing(step.shows, shown)}\nbut\n" + "\n".join(shown))

    def _to_the_end(self, step: Step) -> tuple[int, str]:
        ended = subprocess.run(
            self._shell(step),
            env=self._env,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            timeout=BLOCK_TIMEOUT_S,
            check=False,
        )
        return ended.returncode, ended.stdout

    def _answer(self, step: Step) -> tuple[int, str]:
        """Run at a pseudo-terminal, and type the answer when the question is there."""
        ours, theirs = os.openpty()
        try:
            asking = subprocess.Popen(
                self._shell(step), env=self._env, cwd=self._folder, stdin=theirs, stdout=theirs, stderr=theirs
            )
        finally:
            os.close(theirs)
        output, answered = "", False
        try:
            while chunk := _read_terminal(ours):
                output += chunk
                if PROMPT in output and not answered:
                    os.write(ours, f"{step.options['answer']}\n".encode())
                    answered = True
            return asking.wait(BLOCK_TIMEOUT_S), output
        finally:
            asking.kill()
            asking.wait()
            os.close(ours)

    def _start(self, step: Step) -> None:
        if before := self._staying.get(step.terminal):
            assert before.wait_exit() == 0
        self._staying[step.terminal] = self._processes.start(
            ["env", "-i", *(f"{name}={value}" for name, value in self._env.items()), *self._shell(step)],
            step.terminal,
            cwd=self._folder,
        )

    def _press_ctrl_c(self, terminal: str) -> None:
        process = self._staying[terminal]
        # A terminal sends it to the whole foreground group: here the shell, which waits, and the program.
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait_exit() == 0, process.tail()

    def _shell(self, step: Step) -> list[str]:
        exported = self._folder.parent / f"{step.terminal}.env"
        before = f". {exported}\n" if exported.exists() else ""
        return ["bash", "-c", f"set -e\n{before}{step.script}\nexport -p > {exported}"]


def _read_terminal(descriptor: int) -> str:
    try:
        return os.read(descriptor, 4096).decode("utf-8", "replace")
    except OSError:  # Linux says EIO once nobody holds the other end
        return ""


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        bound = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in bound]


def test_every_block_of_commands_stands_in_a_terminal() -> None:
    steps, loose = read_steps(PAGE.read_text(encoding="utf-8"))
    assert loose == ["make install"]
    assert {step.terminal for step in steps} == {"you", "server", "node", "second"}


def test_the_walk(processes: Processes, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    terminals = Terminals(folder, processes)
    steps, _ = read_steps(PAGE.read_text(encoding="utf-8"))
    for step in steps:
        terminals.do(step)
    assert not list(folder.iterdir()), "the last step removes everything"


def test_lines_are_compared_by_what_does_not_vary() -> None:
    expected = ["node    press-1   took 12ms  key 79bcc8b1", "ready …"]
    assert not missing(expected, ["first", "node press-1 took 1.5s key 0123abcd", "between", "ready at last"])
    assert missing(expected, ["ready at last", "node press-1 took 1.5s key 0123abcd"]) == ["ready …"]
    assert missing(expected, ["node press-2 took 1.5s key 0123abcd", "ready at last"]) == expected
