"""The live view: replicas, nodes and the flow of commands, twice a second; without a terminal a line now and then."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deploy.demo_ha.witness import Load, Standing
from fleet.v1 import admin_pb2

_BARS = " ▁▂▃▄▅▆▇█"
_REDRAWN_EVERY_S = 0.4
_LINE_EVERY_S = 2.0
_EVENTS = 8
_PLAIN_WIDTH = 120
_COLOURS = ("cyan", "magenta", "yellow", "blue")
_STATES = {"READY": "green", "DRAINING": "yellow", "STARTING": "yellow", "STOPPED": "dim", "LOST": "red"}


class View:
    """Shows the cluster while something is done to it.

    Args:
        replicas: ids, in the order shown.
        nodes: names, in the order shown.
    """

    def __init__(self, load: Load, replicas: tuple[str, ...], nodes: tuple[str, ...]) -> None:
        probe = Console()
        self._console = probe if probe.is_terminal else Console(width=_PLAIN_WIDTH, no_color=True, highlight=False)
        unicode = (self._console.encoding or "").lower().startswith("utf")
        self._bars = _BARS if unicode else " .:-=+*#@"
        self._load = load
        self.standing: Standing | None = None
        """How replicas and nodes stand; before it is set nothing is shown of them."""
        self._replicas, self._nodes = replicas, nodes
        self._events: deque[tuple[float, str]] = deque(maxlen=_EVENTS)
        self._began_s = time.monotonic()
        self._balanced: Mapping[str, str] = {}
        self._lock = threading.Lock()
        self._live = False

    def tell(self, text: str) -> None:
        """Something happened. Any thread."""
        with self._lock:
            self._events.append((time.monotonic() - self._began_s, text))
            if not self._live:
                self._console.print(Text(f"  {time.monotonic() - self._began_s:6.1f} s  {text}"), soft_wrap=True)

    def balanced(self, statuses: Mapping[str, str]) -> None:
        """What the balancer thinks of each replica."""
        self._balanced = statuses

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Live for the length of the block; what it showed last stays."""
        ending = threading.Event()
        if self._console.is_terminal:
            with Live(self._picture(), console=self._console, refresh_per_second=4) as live:
                self._live = True
                drawing = threading.Thread(target=self._draw, args=(live, ending), daemon=True)
                drawing.start()
                try:
                    yield
                finally:
                    ending.set()
                    drawing.join(5)
                    live.update(self._picture())
                    self._live = False
            return
        writing = threading.Thread(target=self._write, args=(ending,), daemon=True)
        writing.start()
        try:
            yield
        finally:
            ending.set()
            writing.join(5)
            self._console.print(self._line(), soft_wrap=True)

    def _draw(self, live: Live, ending: threading.Event) -> None:
        while not ending.wait(_REDRAWN_EVERY_S):
            live.update(self._picture())

    def _write(self, ending: threading.Event) -> None:
        while not ending.wait(_LINE_EVERY_S):
            with self._lock:
                self._console.print(self._line(), soft_wrap=True)

    def _line(self) -> Text:
        counts, online = self._load.counts, self._online()
        replicas = "  ".join(
            f"{name} {self._state(name)} {sum(at == name for at in online.values())}" for name in self._replicas
        )
        return Text(
            f"  {time.monotonic() - self._began_s:6.1f} s  {replicas}   issued {counts.issued:,}  run {counts.run:,}"
            f"  twice {counts.twice}  longest gap {counts.longest_gap_s:.2f} s"
        )

    def _state(self, name: str) -> str:
        replica = self._replica(name)
        return replica.state if replica is not None else "-"

    def _replica(self, name: str) -> admin_pb2.ReplicaView | None:
        return None if self.standing is None else self.standing.replicas.get(name)

    def _online(self) -> dict[str, str]:
        return {} if self.standing is None else self.standing.online()

    def _picture(self) -> RenderableType:
        return Group(
            Panel(Group(self._replica_table(), Text(), self._node_line()), title="cluster", border_style="blue"),
            Panel(self._flow(), title="commands", border_style="blue"),
            Panel(self._happened(), title="what happens", border_style="blue", height=_EVENTS + 2),
        )

    def _replica_table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
        for column in ("replica", "state", "balancer", "version", "up", "streams", ""):
            table.add_column(column, justify="right" if column in ("up", "streams") else "left", no_wrap=True)
        online = self._online()
        now_ms = time.time() * 1000
        for name, colour in zip(self._replicas, _COLOURS, strict=False):
            replica = self._replica(name)
            streams = sum(at == name for at in online.values())
            state = self._state(name)
            up = "" if replica is None else f"{max(0.0, now_ms - replica.started_at_ms) / 1000:.0f} s"
            table.add_row(
                Text(name, style=colour),
                Text(state, style=_STATES.get(state, "")),
                Text(self._balanced.get(name, "-")),
                "" if replica is None else replica.version,
                up,
                str(streams),
                Text(self._bars[-1] * 2 * streams, style=colour),
            )
        return table

    def _node_line(self) -> Text:
        line = Text("nodes  ")
        online = self._online()
        colours = dict(zip(self._replicas, _COLOURS, strict=False))
        for name in self._nodes:
            line.append(f"{name} ", style=colours.get(online.get(name, ""), "dim strike"))
        return line

    def _flow(self) -> RenderableType:
        counts = self._load.counts
        seconds = list(counts.each_second)
        highest = max([*seconds, 1])
        chart = "".join(self._bars[round(count / highest * (len(self._bars) - 1))] for count in seconds)
        last = seconds[-2] if len(seconds) > 1 else 0
        numbers = Text.assemble(
            f"issued {counts.issued:,}   run {counts.run:,}   ",
            ("run twice ", ""),
            (str(counts.twice), "green" if not counts.twice else "bold red"),
            f"   calls said again {counts.again}   slowest call {counts.slowest_s:.2f} s   longest time that a node"
            f" waited {counts.longest_gap_s:.2f} s",
        )
        return Group(Text.assemble((chart, "green"), f"  {last}/s"), numbers)

    def _happened(self) -> Text:
        with self._lock:
            lines = [f"{at_s:6.1f} s  {text}" for at_s, text in self._events]
        return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
