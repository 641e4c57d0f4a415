"""Tables and pictures of the documents, from files of results: ``python -m benchmarks.figures [NAME=FILE ...]``.

A file results/NAME.json holds the JSON object that a command printed last. Each becomes a table docs/tables/NAME.md, and the
same table fills the block of that name in README.md and docs:

    <!-- figures: headline -->
    <!-- end -->

``headline=runs/live.txt`` first stores the results of a run: a file of JSON, or a command's output, whose lines that begin with
``{`` are JSON. A picture (.png, .svg) goes to docs/pictures and into the block. Without words all tables are written anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.tables import interval, pivot_table, table
from benchmarks.live.report import headline_table, sim_to_live_table
from traces.command import run_command
from traces.errors import InputError
from traces.files import atomic_write_text

ROOT = Path(__file__).resolve().parent.parent
HEAD, END = "<!-- figures: {name} -->\n", "<!-- end -->"
Record = dict[str, Any]


@dataclass
class FiguresConfig:
    """What to write.

    Attributes:
        new: NAME=FILE for each new result; also the words in front of the first flag.
        loads: loads to keep of new results of agents.evaluate; none: all.
        policies: policies to keep of them, in this order; none: all.
        root: folder with README.md, docs and results.
    """

    new: list[str] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    root: str = str(ROOT)


def read_results(path: Path) -> list[Record]:
    """The JSON objects of a file: the whole file, or its lines that begin with "{".

    Raises:
        InputError: no such file, or no object in it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of results")
    text = path.read_text(encoding="utf-8")
    try:
        try:
            whole = json.loads(text)
            found = whole if isinstance(whole, list) else [whole]
        except ValueError:
            found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    except ValueError as error:
        raise InputError(f"{path}: a line is not JSON ({error})") from None
    if not found or not all(isinstance(record, dict) for record in found):
        raise InputError(f"{path}: holds no JSON object; expected what a benchmark printed")
    return found


def selected(record: Record, config: FiguresConfig) -> Record:
    """The loads and policies to keep of an evaluation; another record as it is.

    Raises:
        InputError: the results have no such load or policy.
    """
    if not (config.loads or config.policies) or not {"loads", "policies"} <= record.keys():
        return record
    loads, found = config.loads or record["loads"], record["policies"]
    names = config.policies or list(found)
    for name in names:
        if name not in found or any(f"{load:g}" not in found[name] for load in loads):
            raise InputError(f"policy {name!r} or one of the loads {loads} is not among the results")
    return record | {"loads": loads, "policies": {name: found[name] for name in names}}


def evaluation_table(record: Record) -> str:
    """Of agents.evaluate: one row per policy, one column per load."""
    found = record["policies"]
    loads = [f"{load:g}" for load in record["loads"]]

    def cell(c: dict[str, Any]) -> str:
        minus = c.get("weighted_minus_strait")
        return f"{c['high']:.2f} / {c['low']:.2f}" + (f"; {interval(minus)}" if minus and any(minus) else "")

    names = sorted(found, key=lambda name: found[name][loads[-1]]["weighted"])
    rows = [[name, *(cell(found[name][load]) for load in loads)] for name in names]
    return table(["policy", *(f"load {load}" for load in loads)], rows) + (
        f"\n\nSimulated, suite {record['suite']}: high / low priority violations in %, then the weighted violations minus "
        "Strait's in points, paired, with a bootstrap 95 % interval."
    )


def ablation_table(record: Record) -> str:
    """Of agents.evaluate, where it ran ablations: one row per part switched off."""
    rows = [(name, interval(lost)) for name, lost in sorted(record["ablations"].items(), key=lambda item: -item[1][1])]
    return table(("switched off", "weighted violations lost, points"), rows)


def optimum_table(record: Record) -> str:
    """Of agents.evaluate on small instances: one row per policy."""
    found = sorted(record["policies"].items(), key=lambda item: item[1]["weighted"])
    rows = [(n, f"{c['weighted']:.2f}", interval(c["distance"]), f"{c['at_optimum_pct']:.0f} %") for n, c in found]
    heads = ("policy", "weighted violations, %", "above the optimum, points", "instances at the optimum")
    proven = record["instances"] - record["unproven"]
    return table(heads, rows) + (
        f"\n\nThe optimum is {found[0][1]['optimum']:.2f} %, mean over {proven} instances; not proven for {record['unproven']}."
    )


# By the keys that a record of the kind has; the first that fits.
KINDS: tuple[tuple[set[str], Callable[[Record], str]], ...] = (
    ({"claims"}, headline_table),
    ({"explained"}, sim_to_live_table),
    ({"ablations"}, ablation_table),
    ({"instances"}, optimum_table),
    ({"policies", "loads"}, evaluation_table),
    (set(), pivot_table),
)


def table_of(records: Sequence[Record], place: str) -> str:
    """The table of results, or of several one below the other.

    Raises:
        InputError: they lack what results of their kind have.
    """
    try:
        return "\n\n".join(next(make for keys, make in KINDS if keys <= record.keys())(record) for record in records)
    except (KeyError, TypeError) as error:
        raise InputError(f"{place}: not results of a known kind ({type(error).__name__}: {error})") from None


def fill(text: str, name: str, new: str) -> str:
    """The text with the block ``name`` replaced; the same text where it has none.

    Raises:
        InputError: the block is not closed.
    """
    head = HEAD.format(name=name)
    before, found, rest = text.partition(head)
    old, closed, after = rest.partition(END)
    if found and (not closed or "<!-- figures:" in old):
        raise InputError(f"block {name!r} is not closed by {END}")
    return f"{before}{head}\n{new}\n\n{closed}{after}" if found else text


def write_all(config: FiguresConfig) -> None:
    """Store what is new, write the tables, and fill the blocks; prints what was written.

    Raises:
        InputError: no such file, or results of an unknown kind; then nothing is written.
    """
    root = Path(config.root)
    documents = {
        path: path.read_text(encoding="utf-8") for path in (root / "README.md", *(root / "docs").rglob("*.md"))
    }
    stored = {path.stem: read_results(path) for path in sorted((root / "results").glob("*.json"))}
    pictures, files = {}, {}
    for word in config.new:
        name, equals, file = word.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+", name):
            raise InputError(f"{word!r}; expected NAME=FILE")
        if file.endswith((".png", ".svg")):
            pictures[root / "docs" / "pictures" / f"{name}{Path(file).suffix}"] = Path(file)
        else:
            stored[name] = [selected(record, config) for record in read_results(Path(file))]
            files[root / "results" / f"{name}.json"] = json.dumps(stored[name], indent=1) + "\n"
    tables = {name: table_of(records, name) for name, records in stored.items()}
    files |= {root / "docs" / "tables" / f"{name}.md": f"# {name}\n\n{text}\n" for name, text in tables.items()}
    for path, text in documents.items():
        for name, new in tables.items():
            text = fill(text, name, new)
        for picture in pictures:
            at = Path(os.path.relpath(picture, path.parent)).as_posix()
            text = fill(text, picture.stem, f"![{picture.stem.replace('-', ' ')}]({at})")
        files.setdefault(path, text)
    for path, source in pictures.items():
        if source.resolve() != path.resolve():
            shutil.copyfile(source, path)
    for path, text in files.items():
        if documents.get(path) != text:
            atomic_write_text(path, text)
            print(path.relative_to(root))


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(write_all, FiguresConfig, argv, "python -m benchmarks.figures", __doc__, leading="new")


if __name__ == "__main__":
    sys.exit(main())
