"""What README.md and the pages under docs/ name is there: links, headings, files, make targets, and commands with
their options."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fleet_node.cli.root import fleet_node
from fleet_server.__main__ import main as fleet_server
from fleet_server.cli.root import fleetctl

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS: dict[str, click.Command] = {
    "fleetctl": fleetctl,
    "fleet-node": fleet_node,
    "fleet-server": fleet_server,
}
FENCE = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]\n]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
MAKE = re.compile(r"\bmake ([a-z][a-z-]*)")
OUR_FILE = re.compile(r"(?:fleet_server|fleet_node|shared|proto|docs|tests|deploy)/[\w./-]*\w\.\w+")
# At the start of a line or after what starts a command in a shell; up to what ends one.
CALL = re.compile(rf"(?:^|[|;&(])[ ]*((?:{'|'.join(PROGRAMS)})(?: [^|;&()<>\n]*)?)(?=$|[|;&()<>\n])", re.MULTILINE)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fences(page: Path, *kinds: str) -> Iterator[str]:
    """The bodies of fenced blocks of these kinds."""
    for found in FENCE.finditer(page.read_text(encoding="utf-8")):
        if found["kind"] in kinds:
            yield found["body"]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower())
    return kept.replace(" ", "-")


def parse(call: str) -> None:
    """Parse a whole call as its program would; nothing runs.

    Raises:
        click.UsageError: the program would refuse it.
    """
    name, *words = shlex.split(call, comments=True)
    command = PROGRAMS[name]
    context = command.make_context(name, list(words))
    while isinstance(command, click.Group):
        verb, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command = found
        try:
            context = command.make_context(verb, rest, parent=context)
        except click.BadParameter as error:
            # The page's files are the reader's: they need not be here.
            if not (error.param and isinstance(error.param.type, click.File | click.Path)):
                raise
            return


def check_words(call: str) -> None:
    """Check the verbs and the names of the options of a call that prose may have left incomplete."""
    name, *words = call.split()
    command = PROGRAMS[name]
    context = click.Context(command, info_name=name)
    options: set[str] = set()
    while True:
        for param in command.get_params(context):
            options.update([*param.opts, *param.secondary_opts])
        if not isinstance(command, click.Group) or not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]):
            break
        found = command.get_command(context, words[0])
        assert found is not None, f"{call}: there is no verb {words[0]!r}"
        command, context, words = found, click.Context(found, info_name=words[0], parent=context), words[1:]
    for word in words:
        option = word.partition("=")[0]
        assert not option.startswith("--") or option in options, f"{call}: there is no option {option}"


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for found in LINK.finditer(prose(page)):
        target, _, anchor = found["target"].partition("#")
        if "://" in target:
            continue
        path = (page.parent / target) if target else page
        assert path.exists(), f"{found[0]} leads nowhere"
        if anchor:
            headings = {slug(heading) for heading in HEADING.findall(prose(path))}
            assert anchor in headings, f"{found[0]}: {path.name} has no such heading"


@every_page
def test_named_files_exist(page: Path) -> None:
    for code in INLINE.findall(prose(page)):
        if OUR_FILE.fullmatch(code):
            assert (ROOT / code).exists(), f"`{code}` is not there"


@every_page
def test_make_targets_exist(page: Path) -> None:
    rules = re.findall(r"^([a-z][a-z-]*(?: [a-z-]+)*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    for code in [*INLINE.findall(prose(page)), *fences(page, "sh")]:
        for target in MAKE.findall(code):
            assert target in targets, f"make {target}: there is no such target"


@every_page
def test_commands_in_blocks_parse(page: Path) -> None:
    for block in fences(page, "sh"):
        for call in CALL.findall(block.replace("\\\n", " ")):
            try:
                parse(call)
            except click.exceptions.Exit:
                pass  # --help and --version end a program
            except click.UsageError as error:
                pytest.fail(f"{call}: {error.format_message()}")


@every_page
def test_commands_in_prose_have_their_verbs_and_options(page: Path) -> None:
    for code in INLINE.findall(prose(page)):
        if code.split()[0] in PROGRAMS:
            check_words(code)


def test_a_wrong_command_is_found() -> None:
    with pytest.raises(click.UsageError):
        parse("fleetctl nodes lst")
    with pytest.raises(click.UsageError):
        parse("fleet-server run --prot 7")
    with pytest.raises(AssertionError):
        check_words("fleetctl nodes lst NODE")
    with pytest.raises(AssertionError):
        check_words("fleet-node enroll --tokenfile FILE")
