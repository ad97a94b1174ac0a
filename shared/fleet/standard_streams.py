"""Standard output and error of a program that people pipe, redirect and close.

`carry_output` stands around a program's whole run, so that a terminal that knows ASCII only, a full disk and a reader
that leaves early (`| head`) are told in a sentence and an exit code. The three programs share it, since a person meets
them in the same shell.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator

READER_LEFT = 141
"""Exit code when the reader of the output went away: 128 + SIGPIPE, as a shell shows it of any program."""

CANNOT_WRITE = 1
"""Exit code when the output could not be written."""

_STAND_INS = "fleet-stand-ins"
_PLAIN = str.maketrans(
    {
        "●": "*",
        "○": "o",
        "…": "~",
        "·": ".",
        "✓": "+",
        "✗": "x",
        "│": "|",
        "┤": "|",
        "├": "|",
        "─": "-",
        "━": "-",
        "┌": "+",
        "┐": "+",
        "└": "+",
        "┘": "+",
        "┬": "+",
        "┴": "+",
        **dict(zip("▁▂▃▄▅▆▇█", "_.,-=+*#", strict=True)),
    }
)


@contextlib.contextmanager
def carry_output() -> Iterator[None]:
    """Run a program whose output may have nowhere to go.

    Characters that the locale cannot write are replaced by ones that it can. A failed write of standard output ends
    the process: silently with `READER_LEFT` when nobody reads any more, else with `CANNOT_WRITE` and a sentence.

    Raises:
        SystemExit: as above, also when standard output was closed before the program started.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  it lives as long as the process
    stdout = sys.stdout
    if stdout is None:
        _say("standard output is closed", "give it a file or a pipe; /dev/null throws it away")
        sys.exit(CANNOT_WRITE)
    if not isinstance(stdout, io.TextIOWrapper):
        yield
        return
    codecs.register_error(_STAND_INS, _stand_in)
    for stream in (stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors=_STAND_INS)
    sys.stdout = watched = _Watched(stdout)
    try:
        yield
        watched.flush()
    except (OSError, SystemExit) as ending:  # click turns a broken pipe into an exit code of its own
        failure = watched.failure
        if failure is None:
            raise
        _give_up(stdout)
        if failure.errno == errno.EPIPE:
            raise SystemExit(READER_LEFT) from ending
        _say(f"cannot write the output: {failure.strerror}", "make room where it goes, or send it elsewhere")
        raise SystemExit(CANNOT_WRITE) from ending
    finally:
        watched.detach()
        sys.stdout = stdout


class _Watched(io.TextIOWrapper):
    """A stream that remembers why it could not be written."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        stream.flush()
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self.failure: OSError | None = None

    def write(self, text: str, /) -> int:
        """As ever."""
        try:
            return super().write(text)
        except OSError as failure:
            self.failure = failure
            raise

    def flush(self) -> None:
        """As ever."""
        try:
            super().flush()
        except OSError as failure:
            self.failure = failure
            raise


def _give_up(stream: io.TextIOWrapper) -> None:
    # The interpreter writes what is left once more at its end, and would complain then.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return "".join(char if char.isascii() else "?" for char in text), error.end


def _say(message: str, hint: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"error: {message}\n next: {hint}\n")
        sys.stderr.flush()
