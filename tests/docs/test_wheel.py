"""The wheel: it builds, holds what the packages read, and its commands run in an environment of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("traces", "envs", "agents", "serving", "benchmarks")
# Read by benchmarks.gpu_day only, which runs from the sources.
NOT_SHIPPED = {"benchmarks/gpu_day/provided.txt", "benchmarks/gpu_day/wheels.txt"}


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, since a build leaves folders beside them."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "train.py", "serve.py"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps", "-w", str(out), "."]
    built = run([*pip, "--no-build-isolation"], source)
    if built.returncode and "setuptools" in built.stderr:  # none here, or too old a one: let pip fetch it
        built = run(pip, source)
        if built.returncode and "No matching distribution" in built.stderr:
            pytest.skip("needs setuptools, which is neither here nor to be fetched")
    assert built.returncode == 0, built.stderr[-3000:]
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of commands of a new environment that holds the wheel, and sees the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    installed = run(
        [sys.executable, "-m", "pip", f"--python={python}", "install", "-q", "--no-deps", str(wheel)], folder
    )
    assert installed.returncode == 0, installed.stderr[-3000:]
    (packages,) = folder.glob("lib/python*/site-packages")
    # Behind the environment's own; .pth files in it, such as that of an editable install, do not count.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_has_the_version_and_every_file_that_the_packages_read(wheel: Path) -> None:
    assert wheel.name == f"strait_rl-{PROJECT['version']}-py3-none-any.whl"
    shipped = set(zipfile.ZipFile(wheel).namelist())
    for name in PACKAGES:
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / name).rglob("*") if path.is_file()}
        missing = {path for path in files if "__pycache__" not in path} - shipped - NOT_SHIPPED
        assert not missing, missing
    assert not any(path.startswith(("tests", "docs")) for path in shipped)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["strait-serve", "strait-choose"])
def test_a_command_of_the_wheel_runs_in_an_environment_of_its_own(
    command: str, environment: Path, tmp_path: Path
) -> None:
    shown = run([str(environment / command), "--help"], tmp_path)
    assert shown.returncode == 0 and "usage:" in shown.stdout, shown.stderr[-3000:]


@pytest.mark.slow
def test_the_installed_package_is_the_wheels_and_finds_its_files(environment: Path, tmp_path: Path) -> None:
    code = (
        "import serve, envs, gymnasium; from envs.profiles.profile import Profile;"
        "from serving.api.http import api_document;"
        "Profile.load('gpu-a100'); name = gymnasium.spec('Strait/DualPriority-v2').id;"
        "print(api_document('x')['info']['version'], serve.__file__, name)"
    )
    shown = run([str(environment / "python"), "-c", code], tmp_path)
    assert shown.returncode == 0, shown.stderr[-3000:]
    version, file, name = shown.stdout.split()
    assert Path(file).is_relative_to(environment.parent) and (version, name) == ("x", "Strait/DualPriority-v2")


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_every_script_is_an_entry_point_of_the_wheel(name: str, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = (path for path in archive.namelist() if path.endswith("entry_points.txt"))
        text = archive.read(entry).decode()
    assert f"{name} = {PROJECT['scripts'][name]}" in text
