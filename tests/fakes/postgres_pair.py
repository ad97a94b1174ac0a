"""PostgreSQL servers that a test may kill: a primary with a standby that follows it, each on a port of its own.

async with PostgresPair(synchronous=True) as pair:
    pair.primary.kill()
    pair.standby.promote()
"""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.fakes.postgres import BIN, OWNER, in_new_folder, new_folder_in_memory, prepare_owner

_WAIT_S = "30"
_SETTINGS = """
listen_addresses = '127.0.0.1'
wal_level = replica
max_wal_senders = 4
hot_standby = on
wal_receiver_status_interval = 1
wal_retrieve_retry_interval = 100ms
max_connections = 40
fsync = off
shared_buffers = 32MB
"""


class PostgresMachine:
    """One server with its data folder.

    Args:
        folder: for its files; its owner has to be able to walk there.
        port: of 127.0.0.1.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.data = folder / "data"
        self.port = port
        self._folder = folder
        folder.mkdir(parents=True)
        prepare_owner()
        if OWNER:
            shutil.chown(folder, OWNER)

    def initialise(self, settings: str = "") -> None:
        """Make its files."""
        how = ("--auth=trust", "--encoding=utf8", "-U", "postgres", "--no-sync")
        in_new_folder(lambda data: self._run("initdb", *how, "-D", str(data)), lambda: self.data)
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(_SETTINGS + settings)

    def follow(self, primary: "PostgresMachine", name: str = "standby") -> None:
        """Make its files a copy of another server's, which it follows once it runs."""
        source = f"host=127.0.0.1 port={primary.port} user=postgres application_name={name}"
        how = ("-d", source, "-R", "-X", "stream", "-c", "fast", "--no-sync")
        in_new_folder(lambda data: self._run("pg_basebackup", "-D", str(data), *how), lambda: self.data)

    def start(self) -> None:
        """Run it; returns once it answers."""
        options = f"-p {self.port} -k {self._folder}"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", str(self.data), "-w", "-t", _WAIT_S, "-o", options, "-l", log, "start")

    def stop(self, mode: str = "fast") -> None:
        """`fast` ends what runs, `immediate` as a crash does."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-t", _WAIT_S, "-m", mode, "stop")

    def promote(self) -> None:
        """A standby becomes a primary."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-t", _WAIT_S, "promote")

    def kill(self) -> None:
        """SIGKILL to every process, as when its machine dies."""
        processes = self._processes()
        for number in (signal.SIGSTOP, signal.SIGKILL):  # or one of them would tell the others
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        psutil.wait_procs(processes, timeout=10)

    def kill_postmaster(self) -> None:
        """SIGKILL to the process that all others are children of; they notice, and end."""
        processes = self._processes()
        processes[0].kill()
        psutil.wait_procs(processes, timeout=10)

    def freeze(self) -> None:
        """SIGSTOP to every process: the machine acknowledges, and nothing answers."""
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        """After `freeze`."""
        for process in self._processes():
            process.resume()

    def pids(self, title: str) -> list[int]:
        """Processes whose title holds `title`."""
        return [each.pid for each in self._processes() if title in " ".join(each.cmdline())]

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as superuser, in no transaction."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", dbname=database, autocommit=True, connect_timeout=5
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _processes(self) -> list[psutil.Process]:
        try:
            postmaster = psutil.Process(int((self.data / "postmaster.pid").read_text().split("\n")[0]))
            return [postmaster, *postmaster.children(recursive=True)]
        except (FileNotFoundError, psutil.NoSuchProcess):
            return []

    def _run(self, program: str, *arguments: str) -> None:
        with (self._folder / "tools.log").open("a") as log:
            subprocess.run(
                [BIN / program, *arguments], check=True, stdout=log, stderr=log, user=OWNER, cwd="/", timeout=60
            )


class PostgresPair:
    """A primary, and a standby that follows it. A context manager that ends both and deletes their files.

    Args:
        ports: of 127.0.0.1.
        synchronous: a commit waits until the standby has it.
    """

    def __init__(self, ports: tuple[int, int], *, synchronous: bool) -> None:
        self._folder = new_folder_in_memory()
        self._folder.chmod(0o755)
        self.primary = PostgresMachine(self._folder / "a", ports[0])
        self.standby = PostgresMachine(self._folder / "b", ports[1])
        self._synchronous = synchronous

    def __enter__(self) -> "PostgresPair":
        self.primary.initialise()
        self.primary.start()
        self.primary.sql("CREATE DATABASE fleet")
        self.standby.follow(self.primary)
        self.standby.start()
        if self._synchronous:
            self.primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            self.primary.sql("SELECT pg_reload_conf()")
            # As who runs such a pair does: the one that is left does not wait for the one that is gone.
            self.standby.sql("ALTER SYSTEM SET synchronous_standby_names = ''")
        return self

    def __exit__(self, *_: object) -> None:
        for machine in (self.primary, self.standby):
            machine.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self) -> str:
        """SQLAlchemy URL that names both."""
        hosts = "&".join(f"host=127.0.0.1:{machine.port}" for machine in (self.primary, self.standby))
        return f"postgresql+psycopg://postgres@/fleet?{hosts}"

    def fall_behind(self) -> None:
        """From now on the standby is sent nothing."""
        for pid in self.primary.pids("walsender"):
            os.kill(pid, signal.SIGSTOP)
