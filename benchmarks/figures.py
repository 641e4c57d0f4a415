"""Puts measured figures into the documents, so that no number is typed: ``python -m benchmarks.figures NAME=FILE ...``.

A block of a document is filled from a file of results:

    <!-- figures: headline -->
    <!-- end -->

``python -m benchmarks.figures headline=runs/demo/results.json`` writes the table of that file between the two lines, in
every document that has a block of that name. A file is what serving.demo, agents.evaluate or a benchmark wrote: JSON, or
output whose lines that begin with ``{`` are JSON. A picture (.png, .svg) is copied into docs/pictures and shown.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from agents.evaluation import metric
from traces.errors import InputError
from traces.files import atomic_write_text

ROOT = Path(__file__).resolve().parent.parent
PICTURES = "docs/pictures"
BLOCK = "<!-- figures: {name} -->\n"
END = "<!-- end -->"
Record = dict[str, Any]


@dataclass
class FiguresConfig:
    """What to fill.

    Attributes:
        blocks: NAME=FILE for each block.
        loads: loads of an evaluation to show; all by default.
        policies: policies of an evaluation to show, in this order; all by default.
        into: documents; by default README.md and all of docs.
    """

    blocks: list[str]
    loads: list[float] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    into: list[str] = field(default_factory=list)


def read_results(path: Path) -> list[Record]:
    """The JSON objects of a file: the whole file, or its lines that begin with "{".

    Raises:
        InputError: no such file, or no object in it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of results")
    text = path.read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
        found = whole if isinstance(whole, list) else [whole]
    except ValueError:
        found = []
        for number, line in enumerate(text.splitlines(), start=1):
            if line.startswith("{"):
                try:
                    found.append(json.loads(line))
                except ValueError as error:
                    raise InputError(f"{path}:{number}: not JSON ({error})") from None
    if not found or not all(isinstance(record, dict) for record in found):
        raise InputError(f"{path}: holds no JSON object; what a benchmark printed is wanted")
    return found


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table; the first ``left`` columns are aligned left, the others right."""
    rule = ["---" if i < left else "---:" for i in range(len(heads))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rule, *rows))


def live_table(record: Record) -> str:
    """Of serving.demo: one row a policy."""
    heads = (
        "policy",
        "high, violated",
        "low, violated",
        "p50",
        "p99",
        "in time",
        "decision p50",
        "offered",
        "ended as",
    )
    rows = []
    for r in record["results"]:
        ended = ", ".join(f"{count} {name}" for name, count in r["outcomes"].items() if count)
        rows.append(
            (
                r["policy"], f"{100 * r[metric.VIOLATION_HIGH]:.2f} %", f"{100 * r[metric.VIOLATION_LOW]:.2f} %",
                f"{r[metric.LATENCY_P50_MS] or 0:.1f} ms", f"{r[metric.LATENCY_P99_MS] or 0:.1f} ms",
                f"{r[metric.GOODPUT_RPS]:.1f}/s", f"{r.get(metric.DECISION_P50_US) or 0:.0f} us", str(r["offered"]), ended,
            )
        )  # fmt: skip
    where = (
        f"\n\nLive, on {record['device']}: {record['trace']} at {record['load']:g} of the measured capacity "
        f"({record['capacity_rps']:.0f} requests/s); {record['seconds']:.0f} s in all."
    )
    return markdown(heads, rows) + where


def evaluation_table(record: Record, loads: Sequence[float], policies: Sequence[str]) -> str:
    """Of agents.evaluate: one row a policy, one column a load.

    Raises:
        InputError: it has no such load or policy.
    """
    found = record["policies"]
    shown = [f"{load:g}" for load in loads or record["loads"]]
    names = list(policies) or sorted(found, key=lambda name: found[name][shown[-1]]["weighted"] if shown else 0.0)
    rows = []
    for name in names:
        if name not in found or any(load not in found[name] for load in shown):
            raise InputError(f"policy {name!r} or one of the loads {', '.join(shown)} is not among the results")
        cells = [found[name][load] for load in shown]
        rows.append([name] + [f"{c['high']:.2f} / {c['low']:.2f}{_against(c)}" for c in cells])
    return markdown(["policy", *(f"load {load}" for load in shown)], rows) + (
        f"\n\nSimulated, suite {record['suite']}: high / low priority violations in %, then the weighted violations minus "
        "Strait's in points, paired, with a bootstrap 95 % interval."
    )


def ablation_table(record: Record) -> str:
    """Of agents.evaluate, where it ran ablations: one row for each part switched off."""
    rows = [
        (name, f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}")
        for name, (low, mean, high) in sorted(record["ablations"].items(), key=lambda item: -item[1][1])
    ]
    return markdown(("switched off", "weighted violations lost, points", "95 % interval"), rows)


def optimum_table(record: Record) -> str:
    """Of agents.evaluate on small instances: one row a policy."""
    found = record["policies"]
    rows = []
    for name in sorted(found, key=lambda name: found[name]["weighted"]):
        low, mean, high = found[name]["distance"]
        rows.append(
            (
                name,
                f"{found[name]['weighted']:.2f}",
                f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]",
                f"{found[name]['at_optimum_pct']:.0f} %",
            )
        )
    optimum = next(iter(found.values()))["optimum"]
    return markdown(
        ("policy", "weighted violations, %", "above the optimum, points", "instances at the optimum"), rows
    ) + (
        f"\n\nThe optimum is {optimum:.2f} %, mean over {record['instances'] - record['unproven']} instances; not proven for "
        f"{record['unproven']}."
    )


def repeated_table(record: Record) -> str:
    """Of benchmarks.live.__main__: one row a policy, with intervals over repetitions, and what they make clear."""
    rows = []
    for r in record["policies"]:
        rates = [
            f"{mean:.2f} % [{low:.2f}, {high:.2f}]" for low, mean, high in (r[k] for k in ("high", "low", "weighted"))
        ]
        rows.append((r["policy"], *rates, f"{r['p99_high_ms']:.0f} ms", f"{r['goodput']:.0f}/s", str(r["runs"])))
    heads = ("policy", "high, violated", "low, violated", "weighted", "p99 high", "in time", "runs")
    said = [
        (
            claim,
            *(
                f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
                for low, mean, high in (c["points"], c["at_common_speed"]["points"])
            ),
        )
        for claim, c in record["claims"].items()
    ]
    return "\n".join(
        (
            markdown(heads, rows),
            "",
            f"Live, on {record['device']}: {', '.join(record['traces'])} at {', '.join(f'{x:g}' for x in record['loads'])} of "
            f"the measured capacity ({record['capacity_rps']:.0f} requests/s), means with bootstrap 95 % intervals over runs; "
            "high priority counts five times in the weighted rate. Paired differences in points, as they were, and at a common "
            "speed (less what the simulator says that the machine's changes of speed made of them):",
            "",
            markdown(("difference", "live", "at a common speed"), said),
        )
    )


def both_table(record: Record) -> str:
    """Of benchmarks.sim_to_live: one row a load and policy, live and simulated, and what explains how much."""
    rows = []
    for c in record["cells"]:
        row = [f"{c['load']:g}", c["policy"]]
        row += [f"{c[f'live_{k}']:.2f} / {c[f'sim_{k}']:.2f} %" for k in ("high", "low")]
        rows.append(
            [*row, f"{c['live_p99_ms']:.1f} / {c['sim_p99_ms']:.1f} ms", f"{c['live_busy']:.0%} / {c['sim_busy']:.0%}"]
        )
    heads = ("load", "policy", "high, live / simulated", "low, live / simulated", "p99", "streams busy")
    known = [
        (
            name,
            f"{v['max_violation_difference_points']:.2f}",
            f"{v['mean_violation_difference_points']:.2f}",
            f"{v['max_p99_difference_pct']:.1f} %",
            "yes" if v["same_order"] else "no",
        )
        for name, v in record["explained"].items()
    ]
    more = ("what the simulator knows", "violations: largest difference, points", "mean", "p99: largest", "same order")
    config = record["config"]
    return "\n".join(
        (
            markdown(more, known),
            "",
            markdown(heads, rows, 2),
            "",
            f"On {record['machine']}: {config['repetitions']} repetitions of {config['duration']:g} s, arrivals "
            f"{config['trace']}.",
        )
    )


def _against(cell: Mapping[str, Any]) -> str:
    interval = cell.get("weighted_minus_strait")
    return f"; {interval[1]:+.2f} [{interval[0]:+.2f}, {interval[2]:+.2f}]" if interval and any(interval) else ""


def plain_table(records: Sequence[Record]) -> str:
    """Of any benchmark: one row a figure; with several records, one column each."""
    flat = [dict(_flat(record)) for record in records]
    machines = sorted({str(r.pop(key)) for r in flat for key in ("machine", "device") if key in r})
    keys = list(dict.fromkeys(key for record in flat for key in record))
    rows = [[f"`{key}`", *(_value(record.get(key)) for record in flat)] for key in keys]
    heads = ["figure", *(("value",) if len(flat) == 1 else (f"run {i + 1}" for i in range(len(flat))))]
    return markdown(heads, rows) + (f"\n\nMeasured on {'; '.join(machines)}." if machines else "")


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out = []
    for key, value in record.items():
        out += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return out


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float | list):
        return str(value)
    if isinstance(value, list):
        return ", ".join(_value(v) for v in value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def content(name: str, path: Path, config: FiguresConfig, document: Path) -> str:
    """What goes into a block of a document."""
    if path.suffix in (".png", ".svg"):
        picture = ROOT / PICTURES / f"{name}{path.suffix}"
        if path.resolve() != picture:
            shutil.copyfile(path, picture)
        return f"![{name.replace('-', ' ')}]({Path(os.path.relpath(picture, document.parent)).as_posix()})"
    records = read_results(path)
    only = records[-1]
    if "claims" in only:
        return repeated_table(only)
    if "explained" in only:
        return both_table(only)
    if "results" in only:
        return live_table(only)
    if "ablations" in only:
        return ablation_table(only)
    if "policies" in only and "instances" in only:
        return optimum_table(only)
    if "policies" in only and "loads" in only:
        return evaluation_table(only, config.loads, config.policies)
    return plain_table(records)


def fill(text: str, name: str, new: str) -> str:
    """The text with the block ``name`` replaced; the same text where it has none.

    Raises:
        InputError: the block is not closed.
    """
    head = BLOCK.format(name=name)
    before, found, rest = text.partition(head)
    if not found:
        return text
    old, closed, after = rest.partition(END)
    if not closed or "<!-- figures:" in old:
        raise InputError(f"block {name!r} is not closed by {END}")
    return f"{before}{head}\n{new}\n\n{closed}{after}"


def blocks_of(text: str) -> list[str]:
    """Names of the blocks of a document."""
    return re.findall(r"<!-- figures: ([\w-]+) -->", text)


def run(config: FiguresConfig) -> dict[str, list[str]]:
    """Fill the blocks; returns the documents that each was found in.

    Raises:
        InputError: no such file or block, or results of an unknown kind.
    """
    documents = [Path(p).resolve() for p in config.into] or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = {path: path.read_text(encoding="utf-8") for path in documents}
    filled: dict[str, list[str]] = {}
    for block in config.blocks:
        name, equals, file = block.partition("=")
        if not equals:
            raise InputError(f"{block!r}; NAME=FILE is wanted")
        at = [path for path in documents if name in blocks_of(texts[path])]
        if not at:
            known = sorted({name for text in texts.values() for name in blocks_of(text)})
            raise InputError(f"no document has a block {name!r}; there are {', '.join(known) or 'none'}")
        for path in at:
            try:
                texts[path] = fill(texts[path], name, content(name, Path(file), config, path))
            except (KeyError, TypeError) as error:
                raise InputError(f"{file}: not results of a known kind ({type(error).__name__}: {error})") from None
        filled[name] = [path.name for path in at]
    for path, text in texts.items():
        if text != path.read_text(encoding="utf-8"):
            atomic_write_text(path, text)
    return filled


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    parser = ArgumentParser(
        prog="python -m benchmarks.figures", description=__doc__.split("\n\n")[0], exit_on_error=False
    )
    parser.add_argument("blocks", nargs="+", help="NAME=FILE for each block")
    parser.add_class_arguments(FiguresConfig, as_group=False, skip={"blocks"})
    try:
        filled = run(FiguresConfig(**parser.parse_args(argv).as_dict()))
    except (InputError, ArgumentError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for name, documents in filled.items():
        print(f"{name}: {', '.join(documents)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
