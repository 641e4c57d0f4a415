"""Imports point one way, traces <- envs <- agents <- serving, and torch stays out of what does not need it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("traces", "envs", "agents", "serving")
FILES = sorted(path.relative_to(ROOT) for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
# What is about the network itself; everything else outside serving runs without torch.
TRAINING = (
    "buffer", "callbacks", "checkpoint", "from_log", "imitate", "learner", "lookahead", "network", "ppo", "run_folder",
    "train_cli", "train_config", "tune_ppo",
)  # fmt: skip
NEEDS_TORCH = {"envs/sb3.py"} | {f"agents/{name}.py" for name in TRAINING}
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


def test_there_are_files_to_look_at() -> None:
    assert {path.parts[0] for path in FILES} == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path: Path) -> None:
    allowed = LAYERS[: LAYERS.index(path.parts[0]) + 1]
    for line, name in imported(path, at_import_only=False):
        top = name.partition(".")[0]
        assert top not in LAYERS or top in allowed, f"{path}:{line}: {path.parts[0]} imports {name}"
        assert top not in {"tests", "benchmarks", "train", "serve"}, f"{path}:{line}: a package imports {name}"


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] != "serving"], ids=str)
def test_torch_stays_out(path: Path) -> None:
    if path.as_posix() in NEEDS_TORCH:
        return
    heavy = TORCH | {name.removesuffix(".py").replace("/", ".") for name in NEEDS_TORCH}
    for line, name in imported(path, at_import_only=True):
        top = name.partition(".")[0]
        assert top not in heavy and not any(name == h or name.startswith(f"{h}.") for h in heavy), (
            f"{path}:{line}: imports {name}, which needs torch"
        )
