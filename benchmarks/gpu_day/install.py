"""Installs what a machine lacks from wheels that travelled, without network. Runs before anything else is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
WHEELS = ROOT / ".wheels"


def names(file: str) -> list[str]:
    """The packages that a list beside this file names."""
    lines = (FOLDER / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def missing() -> list[str]:
    """What travels as wheels and is not installed."""
    found = []
    for name in names("wheels.txt"):
        try:
            version(name)
        except PackageNotFoundError:
            found.append(name)
    return found


def install(wheels: Path = WHEELS) -> None:
    """Install the wheels into a folder of this process and its children, where something is missing.

    Raises:
        SystemExit: there are no wheels, or they do not fit this Python.
    """
    needed = missing()
    if not needed:
        return
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        sys.exit(f"error: {', '.join(needed)}: not installed, and no wheels in {wheels}; run `make gpu-wheels` first")
    target = tempfile.mkdtemp(prefix="gpu-day-packages-")
    options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", target, *options, *files]
    if subprocess.run(command).returncode:
        sys.exit(f"error: the wheels in {wheels} do not fit this Python")
    sys.path.insert(0, target)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (target, os.environ.get("PYTHONPATH"))))
