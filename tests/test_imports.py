"""Imports point one way between layers and between the rooms inside them, and torch stays out of what does not need it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("traces", "envs", "agents", "serving", "benchmarks")
# The rooms of each layer: a file imports from its own room and from those before it. "" is the layer's own folder.
ROOMS = {
    "traces": ("", "formats", "twin"),
    "envs": ("scheduling", "profiles", "simulation", "cluster", "drawing", ""),
    "agents": ("policies", "learned", "evaluation", "routing", "training", ""),
    "serving": (
        "models",
        "executors",
        "profiling",
        "engine",
        "observers",
        "status",
        "replay",
        "api",
        "cluster",
        "",
        "ray",
    ),
    "benchmarks": ("common", "interference", "live", "", "gpu_day"),
}
FILES = sorted(path.relative_to(ROOT) for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
MOST_FILES = 16
# What is about the network itself; everything else outside serving runs without torch.
NEEDS_TORCH = ("envs/sb3.py", "envs/mixed.py", "agents/learned/network.py", "agents/training/")
TORCH = {"torch", "stable_baselines3", "sb3_contrib", "tensorboard"}


def imported(path: Path, at_import_only: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of each module that a file imports; optionally only what runs when the file is imported."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if at_import_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if at_import_only and isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                continue
            yield child
            yield from walk(child)

    for node in walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join((*path.parts[: len(path.parts) - node.level], base)).rstrip(".")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def room_of(parts: tuple[str, ...]) -> str:
    """Name of the room that a path, or the parts of a module's name, lies in; "" for the layer's own folder."""
    return parts[1] if len(parts) > 1 and (ROOT / parts[0] / parts[1]).is_dir() else ""


def test_there_are_files_to_look_at() -> None:
    assert {path.parts[0] for path in FILES} == set(LAYERS)
    for layer, rooms in ROOMS.items():
        assert {room_of(path.parts) for path in FILES if path.parts[0] == layer} == set(rooms)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path: Path) -> None:
    layer, room = path.parts[0], room_of(path.parts)
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    rooms = ROOMS[layer][: ROOMS[layer].index(room) + 1]
    for line, name in imported(path, at_import_only=False):
        parts = tuple(name.split("."))
        assert parts[0] not in LAYERS or parts[0] in allowed, f"{path}:{line}: {layer} imports {name}"
        assert parts[0] not in {"tests", "train", "serve"}, f"{path}:{line}: a package imports {name}"
        if parts[0] == layer:
            assert room_of(parts) in rooms, f"{path}:{line}: room {room or layer!r} imports {name}"


def test_one_file_imports_ray() -> None:
    naming = {path.as_posix() for path in FILES if 'import_module("ray")' in (ROOT / path).read_text()}
    assert naming == {"traces/ray_session.py"}
    for path in FILES:
        for line, name in imported(path, at_import_only=False):
            assert name.partition(".")[0] != "ray", f"{path}:{line}: imports ray, not by traces.ray_session"


def test_no_circle_of_imports() -> None:
    """No file reaches itself by what is imported when files are imported."""
    modules = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    edges = {}
    for module, path in modules.items():
        names = {name for _, name in imported(path, at_import_only=True)}
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        edges[module] = {name for name in found if name in modules and name != module}
    left = dict(edges)
    while ready := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in ready:
            del left[module]
    assert not left, f"circles among {sorted(left)}"


def test_no_room_is_crowded() -> None:
    files = [*FILES, *(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))]
    for folder in {path.parent for path in files}:
        assert sum(path.parent == folder for path in files) <= MOST_FILES, (
            f"{folder} holds more than {MOST_FILES} files"
        )


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] not in ("serving", "benchmarks")], ids=str)
def test_torch_stays_out(path: Path) -> None:
    if path.as_posix().startswith(NEEDS_TORCH):
        return
    heavy = TORCH | {name.removesuffix(".py").rstrip("/").replace("/", ".") for name in NEEDS_TORCH}
    for line, name in imported(path, at_import_only=True):
        top = name.partition(".")[0]
        assert top not in heavy and not any(name == h or name.startswith(f"{h}.") for h in heavy), (
            f"{path}:{line}: imports {name}, which needs torch"
        )


@pytest.mark.parametrize(
    "module",
    [
        "serving.door",
        "serving.api.processes.step_process",
        "serving.api.processes.large_json",
        "serving.models.processes.model_process",
    ],
)
def test_processes_that_run_no_model_do_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
