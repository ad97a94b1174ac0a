"""docs/fleet-node.md, written from the commands and settings themselves:
`python -m fleet_node.cli.reference [--check] [FILE]`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from fleet_node.cli.grammar import EXIT_CODE_MEANING, Verb
from fleet_node.cli.root import VERBS, fleet_node
from fleet_node.config import ENVIRONMENT_PREFIX, declared
from fleet_node.enrollment.folder import PRIVATE_FILES

DEFAULT_PATH = Path("docs/fleet-node.md")

_HEAD = """# fleet-node

The on-premises daemon and its verbs. This page is written by `python -m fleet_node.cli.reference`; change the commands
and settings, not the page.

```sh
fleetctl join-token create --output-file join-token.txt    # an operator, once a node
fleet-node enroll --token-file join-token.txt              # prints the fingerprint, waits for approval
fleet-node run                                             # holds the stream; end it with SIGTERM
fleet-node status                                          # what it does
fleet-node doctor                                          # why it does not connect
```

A join token on the command line (`--token`) can be read by every user of the machine while `enroll` runs. Give it in a
file that only its owner can read, or on standard input.
"""
_FILES = "\n".join(f"| `{name}` | {holds} |" for name, holds in PRIVATE_FILES.items())
_FOLDER = f"""## State folder

Mode 0700, files 0600; looser modes are refused with the `chmod` to run. One process uses it at a time, by a lock that
ends with the process. Never copy it to a second machine: both would be the same node, and neither would stay connected.

| file | holds |
|---|---|
{_FILES}
| `control.sock` | where the running daemon answers `status` and `doctor`, its own user and root only |
"""

_SIGNALS = """## Signals

The first SIGTERM or SIGINT ends the daemon in order, within 25 s: what runs is asked to stop, its results are journaled
and sent, the stream says goodbye. If something hangs (a disk, a driver), the process ends after 28 s all the same, with
code 1. A second signal ends it at once. SIGKILL loses nothing either: what was running then is run again if its action
is idempotent, and reported as INTERRUPTED otherwise.
"""

_SETTINGS = f"""## Settings

From, in order of precedence: an option, the environment, the config file, the default. The file is TOML: the one named
by `--config`, else by `{ENVIRONMENT_PREFIX}CONFIG`, else `/etc/fleet-node/config.toml` if it is there. It must not be
writable by others. In the environment, lists are separated by commas and labels written `key=value,key=value`.
Everything is checked at the start; a setting that does not exist is an error. Drivers have tables of their own,
`[drivers.NAME]` (docs/drivers.md).
"""

_EXAMPLE = """```toml
# /etc/fleet-node/config.toml
state_dir = "/var/lib/fleet-node"
fingerprint = "CYXB-OMLK-DPAP-6USK-DWMZ-SUZC-E5VU-VXLJ"
metrics_listen = "127.0.0.1:9465"

[labels]
rack = "b4"

[drivers]
enabled = ["host", "exec"]

[drivers.exec.programs.uptime]
path = "/usr/bin/uptime"
```
"""


def render() -> str:
    """The whole page."""
    parts = [_HEAD, _exit_codes(), "## Verbs", *_verbs(), _SIGNALS, _SETTINGS, _settings(), _EXAMPLE, _FOLDER]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def is_current(path: Path = DEFAULT_PATH) -> bool:
    """Whether the page on disk is what `render` gives."""
    return path.is_file() and path.read_text(encoding="utf-8") == render()


def _exit_codes() -> str:
    rows = [f"| {int(code)} | {meaning} |" for code, meaning in EXIT_CODE_MEANING.items()]
    return "\n".join(["## Exit codes", "", "| code | meaning |", "|---|---|", *rows])


def _verbs() -> Iterator[str]:
    root = click.Context(fleet_node, info_name="fleet-node", **fleet_node.context_settings)
    for name in VERBS:
        verb = fleet_node.get_command(root, name)
        if not isinstance(verb, Verb):
            raise TypeError(f"{name} is no Verb")
        context = click.Context(verb, parent=root, info_name=name)
        usage = f"{context.command_path} {' '.join(verb.collect_usage_pieces(context))}"
        lines = [f"### fleet-node {name}", "", *_paragraphs(verb.help or ""), "```", usage, "```", ""]
        options = [record for param in verb.params if (record := param.get_help_record(context)) is not None]
        if options:
            lines += ["| option | meaning |", "|---|---|"]
            lines += [f"| `{_cell(names)}` | {_cell(meaning)} |" for names, meaning in options] + [""]
        yield "\n".join([*lines, "```sh", *verb.example.splitlines(), "```"])


def _settings() -> str:
    rows = ["| setting | environment | must be, such as | default | meaning |", "|---|---|---|---|---|"]
    for each in declared():
        wanted = f"{_cell(each.kind.wanted)}: `{each.kind.spelled}`"
        cells = (f"`{each.name}`", f"`{each.environment}`", wanted, _cell(each.default), _cell(each.help))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _paragraphs(text: str) -> list[str]:
    paragraphs = [[line.strip() for line in paragraph.splitlines()] for paragraph in text.strip().split("\n\n")]
    return [line for paragraph in paragraphs for line in (*paragraph, "")]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; end with 1 when the page is stale.")
@click.argument("path", type=click.Path(path_type=Path), default=DEFAULT_PATH)
def main(check: bool, path: Path) -> None:
    """Write the reference of fleet-node, or check that it is current."""
    if not check:
        path.write_text(render(), encoding="utf-8")
    elif not is_current(path):
        raise click.ClickException(f"{path} is stale: run `python -m fleet_node.cli.reference`")


if __name__ == "__main__":
    main()
