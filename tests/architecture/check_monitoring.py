"""Hold what deploy/ brings for Prometheus and Grafana to the metrics that there are.

    python tests/architecture/check_monitoring.py    # exits with 1 and says what is wrong

Each expression is parsed, and each metric and label in it has to be one that a server or a node declares.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from check_metrics_docs import shared_specs, side_specs

from fleet_server.observability.metrics import ExportMetrics, ServerMetrics

DEPLOY = Path(__file__).parents[2] / "deploy"
OF_PROMETHEUS = {"job", "instance"}
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*"}
ALERT = {"alert", "expr", "for", "labels", "annotations"}
WIDTH = 24


def known_metrics() -> dict[str, set[str]]:
    """Name of each series, and its labels."""
    known = {"up": set(OF_PROMETHEUS)}
    for spec in [*side_specs(ServerMetrics), *side_specs(ExportMetrics), *shared_specs()]:
        labels = {*spec.labels, *OF_PROMETHEUS}
        if spec.kind == "histogram":
            known |= {f"{spec.name}_sum": labels, f"{spec.name}_count": labels}
            known[f"{spec.name}_bucket"] = labels | {"le"}
        else:
            known[spec.name] = labels
    return known


@cache
def born_late() -> set[str]:
    """Counters with series that are not there before the first time: from nothing to 1 `increase` sees no growth."""
    specs = [*side_specs(ServerMetrics), *side_specs(ExportMetrics), *shared_specs()]
    return {spec.name for spec in specs if spec.kind == "counter" and spec.labels and not spec.values}


def check_expression(where: str, text: str, known: Mapping[str, set[str]]) -> Iterator[str]:
    """What is wrong with one expression."""
    for variable, value in VARIABLES.items():
        text = text.replace(variable, value)
    try:
        tree = promql_parser.parse(text)
    except ValueError as error:
        yield f"{where}: {error}: {text}"
        return
    bare = re.sub(r"\{[^}]*\}", "", text)
    for name in re.findall(r"\bincrease\((\w+)", bare):
        if name in born_late() and f"{name} unless {name} offset" not in bare:
            yield f"{where}: does not see the first {name}, with which its series begins"
    used: set[str] = set()
    for selector in selectors(tree):
        name = selector.name or ""
        if name not in known:
            yield f"{where}: there is no metric {name!r}"
            continue
        used |= known[name]
        for matcher in selector.matchers.matchers:
            if matcher.name not in known[name]:
                yield f"{where}: {name} has no label {matcher.name!r}"
    for labels in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", text):
        for label in filter(None, (label.strip() for label in labels.split(","))):
            if label not in used:
                yield f"{where}: nothing in it has a label {label!r}"


def selectors(tree: Any) -> Iterator[Any]:
    """Every selector in an expression."""
    if isinstance(tree, promql_parser.VectorSelector):
        yield tree
    elif isinstance(tree, promql_parser.MatrixSelector):
        yield tree.vector_selector
    for part in ("expr", "lhs", "rhs", "param"):
        if (inner := getattr(tree, part, None)) is not None:
            yield from selectors(inner)
    for argument in getattr(tree, "args", None) or ():
        yield from selectors(argument)


def rules(known: Mapping[str, set[str]]) -> Iterator[str]:
    """Alerts: known metrics, and each says what to do."""
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in scraped["scrape_configs"]}
    names: set[str] = set()
    for file in scraped["rule_files"]:
        for group in yaml.safe_load((DEPLOY / "prometheus" / file).read_text())["groups"]:
            for rule in group["rules"]:
                name = rule["alert"]
                where = f"{file}: {name}"
                if unknown := set(rule) - ALERT:
                    yield f"{where}: a rule has no {sorted(unknown)}"
                if name in names:
                    yield f"{where}: is there twice"
                names.add(name)
                if not {"summary", "next"} <= set(rule["annotations"]):
                    yield f"{where}: says not what it is, or not what to do next"
                for page in re.findall(r"docs/\S+\.md", rule["annotations"]["next"]):
                    if not (DEPLOY.parent / page).exists():
                        yield f"{where}: there is no {page}"
                for job in re.findall(r'job="([^"]*)"', rule["expr"]):
                    if job not in jobs:
                        yield f"{where}: nothing is scraped as {job!r}"
                yield from check_expression(where, rule["expr"], known)


def dashboards(known: Mapping[str, set[str]]) -> Iterator[str]:
    """Dashboards: known metrics, a provisioned data source, panels beside each other."""
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    sources = {source["uid"] for source in provisioned["datasources"]}
    for file in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        board = json.loads(file.read_text())
        variables = [variable["query"]["query"] for variable in board["templating"]["list"]]
        for metric in (re.fullmatch(r"label_values\((\w+), \w+\)", query) for query in variables):
            if metric is None or metric[1] not in known:
                yield f"{file.name}: a variable asks for what there is not"
        ids, taken = set(), set()
        for panel in board["panels"]:
            where = f"{file.name}: {panel['title']}"
            if panel["id"] in ids:
                yield f"{where}: another panel has its id"
            ids.add(panel["id"])
            at = panel["gridPos"]
            if at["x"] + at["w"] > WIDTH:
                yield f"{where}: is wider than the page"
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            if taken & cells:
                yield f"{where}: lies over another panel"
            taken |= cells
            for target in panel.get("targets", ()):
                if target["datasource"]["uid"] not in sources:
                    yield f"{where}: no such data source is provisioned"
                yield from check_expression(where, target["expr"], known)


def main() -> int:
    """Every problem, on standard error."""
    known = known_metrics()
    problems = [*rules(known), *dashboards(known)]
    for problem in problems:
        print(f"deploy: {problem}", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
