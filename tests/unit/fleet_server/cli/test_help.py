"""Help, completion and the reference: fast to show, complete, and the same for every verb."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fleet_server.cli import reference
from fleet_server.cli.grammar import Verb
from tests.unit.fleet_server.cli.conftest import Fleetctl

HEAVY = (
    "grpc",
    "drawsvg",
    "google",
    "rich",
    "cryptography",
    "plotext",
    "fleet.v1",
    "asyncio",
    "sqlalchemy",
    "pydantic",
)
VERBS = [pytest.param(words, verb, id=words.replace(" ", "-")) for words, verb, _ in reference.verbs()]
ROOT = Path(__file__).parents[4]
OPERATIONS = ROOT / "docs" / "operations"


def modules_after(*args: str) -> set[str]:
    """Modules that a fresh interpreter holds once fleetctl has answered."""
    program = (
        "import contextlib, io, json, sys\n"
        "from fleet_server.cli.root import fleetctl\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    fleetctl({list(args)!r}, prog_name='fleetctl')\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "args",
    [
        ("--help",),
        ("nodes", "--help"),
        ("run", "--help"),
        ("audit", "verify", "--help"),
        ("routes", "graph", "--help"),
        ("nods",),
    ],
)
def test_help_imports_nothing_heavy(args: tuple[str, ...]) -> None:
    loaded = modules_after(*args)
    assert {name for name in loaded if name.split(".")[0] in HEAVY or name in HEAVY} == set()


def test_the_root_help_loads_no_noun() -> None:
    bare = modules_after("--help")
    ours = {name for name in bare if name.startswith(("fleet_server.", "fleet."))}
    assert ours == {
        "fleet.prose",
        "fleet_server.cli",
        "fleet_server.cli.failures",
        "fleet_server.cli.grammar",
        "fleet_server.cli.invocation",
        "fleet_server.cli.root",
        "fleet_server.cli.tables",
        "fleet_server.cli.terminal",
    }


def test_a_verb_loads_neither_charts_nor_progress(ctl: Fleetctl) -> None:
    loaded = modules_after("whoami")
    assert not {"plotext", "rich", "sqlalchemy"} & loaded
    assert not {name for name in loaded if name.startswith("fleet_server.") and ".cli" not in name}


@pytest.mark.parametrize(("words", "verb"), VERBS)
def test_every_verb_has_an_example_and_exit_codes(ctl: Fleetctl, words: str, verb: Verb) -> None:
    result = ctl.run(*words.split(), "--help")
    assert result.exit_code == 0
    for section in ("Example:", "Exit codes:", "Options of every verb:", "--output", "--context"):
        assert section in result.stdout
    assert verb.example.splitlines()[0].split()[:2] == ["fleetctl", words.split(maxsplit=1)[0]]
    assert (verb.help or "").strip()


def parse(line: str) -> click.Command:
    """Read a command line as far as its options and arguments go; nothing is run."""
    import shlex

    from fleet_server.cli.root import fleetctl

    args = shlex.split(line.split(" > ", maxsplit=1)[0], comments=True)
    context, command = click.Context(fleetctl, info_name=args.pop(0)), fleetctl
    while isinstance(command, click.Group):
        found = command.get_command(context, args.pop(0))
        assert found is not None, line
        command = found
    command.make_context(line, args, parent=context)
    return command


@pytest.mark.parametrize(("words", "verb"), VERBS)
def test_every_example_parses(words: str, verb: Verb) -> None:
    for line in verb.example.splitlines():
        assert line.startswith(f"fleetctl {words}")
        assert parse(line) is verb


@pytest.mark.parametrize("page", sorted(path.name for path in OPERATIONS.glob("*.md")))
def test_every_command_of_the_how_to_pages_parses(page: str) -> None:
    text = (OPERATIONS / page).read_text().replace("\\\n", " ")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("fleetctl ")]
    for line in lines:
        try:
            parse(line)
        except click.BadParameter as error:  # a page may write `...` for a value, and may leave none out
            assert not isinstance(error, click.MissingParameter), line


def test_output_may_stand_anywhere(ctl: Fleetctl) -> None:
    for args in (("-o", "json", "whoami"), ("whoami", "-o", "json"), ("contexts", "--output=json", "list")):
        result = ctl.run(*args)
        assert result.exit_code == 0
        json.loads(result.stdout)
    assert ctl.run("whoami", "--output", "yaml").exit_code == 2


def test_a_slip_of_the_finger_is_helped(ctl: Fleetctl) -> None:
    for args, meant in ((("nods", "list"), "nodes"), (("nodes", "lst"), "list")):
        result = ctl.run(*args)
        assert result.exit_code == 2
        assert f"Did you mean '{meant}'?" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(ctl: Fleetctl, shell: str) -> None:
    result = ctl.run("completion", shell)
    assert result.exit_code == 0
    assert "_FLEETCTL_COMPLETE" in result.stdout


def test_completion_completes(ctl: Fleetctl) -> None:
    env = {"_FLEETCTL_COMPLETE": "bash_complete", "COMP_WORDS": "fleetctl nodes wa", "COMP_CWORD": "2"}
    assert ctl.run(env=env).stdout == "plain,watch\n"


def test_version(ctl: Fleetctl) -> None:
    assert set(ctl.json("version")) == {"fleetctl"}
    assert ctl.fake.calls == []
    assert ctl.json("version", "--server")["server"] == "0.1.0"


def test_the_reference_is_current() -> None:
    assert reference.is_current(ROOT / reference.DEFAULT_PATH), "run `python -m fleet_server.cli.reference`"


def test_the_reference_knows_what_every_verb_writes() -> None:
    assert set(reference.JSON_OF_VERB) == {words for words, _, _ in reference.verbs()}


def test_a_stale_reference_is_noticed(tmp_path: Path) -> None:
    from click.testing import CliRunner

    page = tmp_path / "fleetctl.md"
    assert CliRunner().invoke(reference.main, ["--check", str(page)]).exit_code == 1
    assert CliRunner().invoke(reference.main, [str(page)]).exit_code == 0
    assert CliRunner().invoke(reference.main, ["--check", str(page)]).exit_code == 0
    page.write_text(page.read_text() + "x")
    assert CliRunner().invoke(reference.main, ["--check", str(page)]).exit_code == 1
