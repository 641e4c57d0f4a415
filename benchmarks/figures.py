"""Tables and pictures of the documents, from files of results: ``python -m benchmarks.figures [NAME=FILE ...]``.

A file results/NAME.json holds the JSON object that a command printed last. Each becomes the table of the page
docs/tables/NAME.md, which keeps the prose around it, and fills the blocks of that name in README.md and docs, whole or in part:

    <!-- figures: headline -->
    <!-- end -->
    <!-- figures: headline; rows: strait | edf; columns: high, violated | p99 high -->
    <!-- end -->

``headline=runs/live.txt`` first stores the results of a run: a file of JSON, or a command's output, whose lines that begin with
``{`` are JSON. A picture (.png, .svg) goes to docs/pictures and into the block. Without words all tables are written anew, and
all blocks are filled from the pages of tables.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.leaderboard import markdown
from benchmarks.common.tables import interval, pivot_table, table
from benchmarks.live.report import headline_table, sim_to_live_table
from traces.command import run_command
from traces.errors import InputError
from traces.files import atomic_write_text

ROOT = Path(__file__).resolve().parent.parent
HEAD = re.compile(r"<!-- figures: (?P<name>[\w-]+)(?:; rows: (?P<rows>.+?))?(?:; columns: (?P<columns>.+?))? -->\n")
END = "<!-- end -->"
BLOCK = "<!-- figures: {name} -->\n<!-- end -->\n"
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
    """Of agents.evaluate: one row per policy, one column per load; the rates, and below them the differences from Strait."""
    found = record["policies"]
    loads = [f"{load:g}" for load in record["loads"]]

    def minus(cell: dict[str, Any]) -> str:
        found = cell.get("weighted_minus_strait")
        return interval(found) if found and any(found) else "-"

    names = sorted(found, key=lambda name: found[name][loads[-1]]["weighted"])
    rates = [
        [name, *(f"{found[name][load]['high']:.2f} / {found[name][load]['low']:.2f}" for load in loads)]
        for name in names
    ]
    differences = [[name, *(minus(found[name][load]) for load in loads)] for name in names]
    parts = [
        f"Simulated, suite {record['suite']}: violations of high / low priority, %.",
        table(["policy", *(f"load {load}" for load in loads)], rates),
        "Weighted violations minus Strait's, points, paired, with a bootstrap 95 % interval; below 0 is better.",
        table(["policy", *(f"load {load} minus Strait" for load in loads)], differences),
    ]
    return "\n\n".join(parts)


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


def routing_table(record: Record) -> str:
    """Of agents.routing: one row per router, for each kind of arrivals and load the rates and the difference."""
    found = record["routers"]
    names = list(dict.fromkeys(row["router"] for row in found))
    cells = list(dict.fromkeys((row["workload"], row["load"]) for row in found))
    by_place = {(row["router"], row["workload"], row["load"]): row for row in found}

    def minus(row: dict[str, Any]) -> str:
        return interval(row["difference"]) if any(row.get("difference", ())) else "-"

    heads = [f"{workload} {load:g}" for workload, load in cells]
    rows = {name: [by_place[name, *cell] for cell in cells] for name in names}
    rates = [[name, *(f"{row['high']:.2f} / {row['low']:.2f}" for row in rows[name])] for name in names]
    doors = f" behind {record['doors']} doors" if record["doors"] > 1 else ""
    parts = [
        f"Simulated, {record['accelerators']} accelerators of {record['profile']}{doors}, "
        f"answers {record['answer_delay_ms']:g} ms on their way: violations of high / low priority, %, by arrivals and load; "
        "then weighted violations minus those of power of two, points, paired, with a bootstrap 95 % interval.",
        table(["router", *heads], rates),
        table(["router", *(f"{head}, difference" for head in heads)], [[n, *map(minus, rows[n])] for n in names]),
    ]
    return "\n\n".join(parts)


# By the keys that a record of the kind has; the first that fits.
KINDS: tuple[tuple[set[str], Callable[[Record], str]], ...] = (
    ({"claims"}, headline_table),
    ({"explained"}, sim_to_live_table),
    ({"ablations"}, ablation_table),
    ({"instances"}, optimum_table),
    ({"accelerators", "routers"}, routing_table),
    ({"env"}, lambda record: markdown(record["policies"])),
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


def excerpt(text: str, rows: str | None, columns: str | None) -> str:
    """One table of some rows and columns, named with `` | `` between, of the tables in a text; the text if none are named.

    Raises:
        InputError: no table has such a row or column.
    """
    if rows is None and columns is None:
        return text
    cells: dict[str, dict[str, str]] = {}
    corners: dict[str, str] = {}
    for part in text.split("\n\n"):
        lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in part.splitlines()]
        if part.startswith("|"):
            for row, *values in lines[2:]:
                corners.setdefault(row, part[1:].partition("|")[0].strip())
                cells.setdefault(row, {}).update(zip(lines[0][-len(values) :], values))
    names = rows.split(" | ") if rows else list(cells)
    heads = (
        columns.split(" | ") if columns else list(dict.fromkeys(head for name in names for head in cells.get(name, ())))
    )
    for name in names:
        if not any(head in cells.get(name, ()) for head in heads):
            raise InputError(f"no table has the row {name!r} with one of the columns {heads}")
    return table(
        (corners[names[0]], *heads), [(name, *(cells[name].get(head, "-") for head in heads)) for name in names]
    )


def fill(text: str, new: Mapping[str, str]) -> str:
    """The text with those of its blocks replaced whose names are among the new.

    Raises:
        InputError: a block is not closed, or asks for a row or column that there is not.
    """
    parts, place = [], 0
    for head in HEAD.finditer(text):
        name, end, following = head["name"], text.find(END, head.end()), HEAD.search(text, head.end())
        if end < 0 or (following and following.start() < end):
            raise InputError(f"block {name!r} is not closed by {END}")
        if name in new:
            parts += [text[place : head.end()], f"\n{excerpt(new[name], head['rows'], head['columns'])}\n\n"]
            place = end
    return "".join([*parts, text[place:]])


def shown_tables(pages: Mapping[str, str]) -> dict[str, str]:
    """The tables that the pages of docs/tables show, by name: what fills blocks elsewhere where nothing newer is known."""
    found = {}
    for name, text in pages.items():
        whole = re.search(rf"<!-- figures: {re.escape(name)} -->\n(.*?){END}", text, re.DOTALL)
        if whole:
            found[name] = whole[1].strip()
    return found


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
    folder = root / "docs" / "tables"
    tables = {name: table_of(records, name) for name, records in stored.items()}
    pages = {path.stem: text for path, text in documents.items() if path.parent == folder}
    missing = tables.keys() - shown_tables(pages).keys()
    written = {folder / f"{n}.md": f"{pages.get(n) or f'# {n}'}\n\n{BLOCK.format(name=n)}" for n in sorted(missing)}
    tables = shown_tables(pages) | tables
    for path, text in (documents | written).items():
        shown = {p.stem: Path(os.path.relpath(p, path.parent)).as_posix() for p in pictures}
        files[path] = fill(text, tables | {name: f"![{name.replace('-', ' ')}]({at})" for name, at in shown.items()})
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
