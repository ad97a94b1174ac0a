"""Keep shared/fleet/v1 equal to what proto/fleet/v1 generates, and hold the .proto files to the house rules.

    check_proto.py            fails when the generated code is stale or a rule is broken
    check_proto.py --write    writes the generated code first

Rules: one package `fleet.v1`; a comment before every message, enum, service and rpc; field and oneof names in
snake_case; enum values carry the enum's name in UPPER_SNAKE, and zero is `<NAME>_UNSPECIFIED`.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc_tools
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"
PACKAGE = Path("fleet", "v1")
GENERATED = ROOT / "shared" / PACKAGE
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"

INIT = '"""Generated from proto/fleet/v1. Never edited: `make proto` writes it."""\n'

# Field numbers in descriptor.proto: a source location names its element by a path of these and indexes.
FILE_MESSAGE, FILE_ENUM, FILE_SERVICE = 4, 5, 6
MESSAGE_NESTED, MESSAGE_ENUM, SERVICE_METHOD = 3, 4, 2

SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")

Spot = tuple[int, ...]


def sources() -> list[Path]:
    """The .proto files, sorted, relative to proto/."""
    return sorted(path.relative_to(PROTO) for path in (PROTO / PACKAGE).glob("*.proto"))


def run_protoc(*options: str) -> None:
    """Run protoc over all sources; exits with its code when it fails (it has printed why)."""
    plugins = [
        f"--plugin=protoc-gen-{name}={Path(sys.executable).parent / f'protoc-gen-{name}'}"
        for name in ("mypy", "mypy_grpc")
    ]
    files = [path.as_posix() for path in sources()]
    code = protoc.main(["protoc", f"-I{PROTO}", f"-I{WELL_KNOWN}", *plugins, *options, *files])
    if code:
        sys.exit(code)


def generate(target: Path) -> dict[str, str]:
    """Generate into `target` and return file name -> text of the package, without empty service modules."""
    run_protoc(
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
    )
    files = {path.name: path.read_text() for path in sorted((target / PACKAGE).iterdir())}
    serving = {path.stem for path in sources() if re.search(r"^service ", (PROTO / path).read_text(), re.MULTILINE)}
    wanted = {
        name: text
        for name, text in files.items()
        if "_pb2_grpc.py" not in name or name.partition("_pb2_grpc")[0] in serving
    }
    return {"__init__.py": INIT, **wanted}


def committed() -> dict[str, str]:
    """File name -> text of what stands in shared/fleet/v1."""
    if not GENERATED.is_dir():
        return {}
    return {path.name: path.read_text() for path in sorted(GENERATED.iterdir()) if path.is_file()}


def write(files: dict[str, str]) -> None:
    """Make shared/fleet/v1 hold exactly `files`."""
    GENERATED.mkdir(parents=True, exist_ok=True)
    for name in committed().keys() - files.keys():
        (GENERATED / name).unlink()
    for name, text in files.items():
        (GENERATED / name).write_text(text)


def stale(files: dict[str, str]) -> Iterator[str]:
    """One line for every file that differs from what the sources generate."""
    present = committed()
    for name in sorted(files.keys() | present.keys()):
        where = (GENERATED / name).relative_to(ROOT)
        if name not in present:
            yield f"{where}: missing"
        elif name not in files:
            yield f"{where}: no .proto generates it"
        elif files[name] != present[name]:
            yield f"{where}: stale"


def descriptors(target: Path) -> list[descriptor_pb2.FileDescriptorProto]:
    """The sources as descriptors, with their comments."""
    path = target / "descriptors.bin"
    run_protoc("--include_source_info", f"--descriptor_set_out={path}")
    return list(descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file)


class Lint:
    """The findings of one file."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self._file = file
        self._locations = {tuple(at.path): at for at in file.source_code_info.location}
        self.findings: list[str] = []

    def run(self) -> list[str]:
        """Check the whole file and return one line a finding."""
        if self._file.package != "fleet.v1":
            self._say((2,), f"package is {self._file.package!r}, expected 'fleet.v1'")
        for index, message in enumerate(self._file.message_type):
            self._message(message, (FILE_MESSAGE, index))
        for index, enum in enumerate(self._file.enum_type):
            self._enum(enum, (FILE_ENUM, index))
        for index, service in enumerate(self._file.service):
            path = (FILE_SERVICE, index)
            self._commented("service", service.name, path)
            for at, method in enumerate(service.method):
                self._commented("rpc", f"{service.name}.{method.name}", (*path, SERVICE_METHOD, at))
        return self.findings

    def _message(self, message: descriptor_pb2.DescriptorProto, path: Spot) -> None:
        if message.options.map_entry:
            return
        self._commented("message", message.name, path)
        for name in self._names([*message.field, *message.oneof_decl]):
            if not SNAKE.fullmatch(name):
                self._say(path, f"{message.name}.{name} is not snake_case")
        for index, nested in enumerate(message.nested_type):
            self._message(nested, (*path, MESSAGE_NESTED, index))
        for index, enum in enumerate(message.enum_type):
            self._enum(enum, (*path, MESSAGE_ENUM, index))

    def _enum(self, enum: descriptor_pb2.EnumDescriptorProto, path: Spot) -> None:
        self._commented("enum", enum.name, path)
        prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", enum.name).upper() + "_"
        for value in enum.value:
            if not value.name.startswith(prefix):
                self._say(path, f"{enum.name}: value {value.name} does not start with {prefix}")
            if (value.number == 0) != (value.name == f"{prefix}UNSPECIFIED"):
                self._say(path, f"{enum.name}: zero, and only zero, is {prefix}UNSPECIFIED")

    @staticmethod
    def _names(
        items: Iterable[descriptor_pb2.FieldDescriptorProto | descriptor_pb2.OneofDescriptorProto],
    ) -> Iterator[str]:
        # A proto3 `optional` field brings a oneof of its own, named with a leading underscore.
        return (item.name for item in items if not item.name.startswith("_"))

    def _commented(self, kind: str, name: str, path: Spot) -> None:
        at = self._locations.get(path)
        if at is None or not at.leading_comments.strip():
            self._say(path, f"{kind} {name} has no comment before it")

    def _say(self, path: Spot, text: str) -> None:
        at = self._locations.get(path)
        line = at.span[0] + 1 if at else 1
        self.findings.append(f"proto/{self._file.name}:{line}: {text}")


def main() -> int:
    """Check, or write with --write. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write shared/fleet/v1 instead of comparing it")
    arguments = parser.parse_args()
    if not sources():
        print(f"no .proto files under {PROTO / PACKAGE}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        files = generate(target)
        findings = [line for file in descriptors(target) for line in Lint(file).run()]
    if arguments.write:
        write(files)
    outdated = list(stale(files))
    for line in [*findings, *outdated]:
        print(line, file=sys.stderr)
    if outdated:
        print("generated code is stale: run `make proto` and commit shared/fleet/v1", file=sys.stderr)
    if findings or outdated:
        return 1
    state = "written" if arguments.write else "up to date"
    print(f"proto: {len(sources())} files, {len(files)} generated ones {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
