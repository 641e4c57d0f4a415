"""The documents: commands that exist, examples that run, links that lead somewhere."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import docstring_parser
import jsonargparse
import numpy as np
import pytest
import yaml

from agents.evaluation.rollout import request_table, run
from agents.policies.registry import kinds, make_policy
from agents.training.cli import settings
from benchmarks.interference.baselines import Solo
from benchmarks.interference.coruns import errors, finish, folds
from benchmarks.interference.cross_validation import cross_validate
from benchmarks.interference.loaders import campaign
from envs.profiles.profile import synthetic_profile
from envs.simulation.simulator import Simulator
from serving.config import ServeConfig
from traces import formats
from traces.command import parse_settings
from traces.errors import InputError
from traces.measurements import Measurements
from traces.workload import Workload

ROOT = Path(__file__).resolve().parents[2]
# Tables are written by benchmarks.figures, and are not in the navigation.
TABLES = sorted((ROOT / "docs" / "tables").glob("*.md"))
PAGES = sorted(set((ROOT / "docs").rglob("*.md")) - set(TABLES))
DOCUMENTS = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *PAGES, *TABLES]
COMMANDS = ROOT / "docs" / "reference" / "commands.md"
EXAMPLES = ROOT / "docs" / "examples"
# Flags that make a command of the tutorial take moments.
SMALLER = {
    "serving.profiler": "--quick false --batches 80 --batch_sizes [1,2] --streams 2",
    "agents.evaluate": "--loads [0.9] --seeds 1 --workers 1",
    "train.py": "-n 512 --eval_freq 512 --save_freq 0 --env.streams 2 --env.duration_ms [300,300] "
    "--look_ahead.steps 8 --ppo.n_envs 16 --ppo.n_steps 16 --ppo.batch_size 128 "
    "--evaluation.loads [1.0] --evaluation.workloads 2 --evaluation.duration_ms 300 --evaluation.confirm 2",
    "serve.py": "--streams 2",
    "--replay": "--duration 1",
}


def commands(text: str) -> list[list[str]]:
    """The commands of the bash blocks of a document, as words; a command goes on while a quotation is open."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        held = ""
        for line in block.splitlines():
            held += line
            try:
                words = shlex.split(held, comments=True)
            except ValueError:
                held += "\n"
                continue
            held = ""
            if words:
                found.append(words)
        assert not held, f"a quotation is not closed: {held}"
    return found


def inline_commands(text: str) -> list[list[str]]:
    """Whole commands in running text and tables."""
    return [shlex.split(code) for code in re.findall(r"`((?:python|make) [^`\n]+)`", text)]


def all_commands() -> list[list[str]]:
    texts = [path.read_text() for path in DOCUMENTS]
    found = [words for text in texts for words in (*commands(text), *inline_commands(text))]
    return list({shlex.join(words): words for words in found}.values())


def main_module(name: str) -> str:
    """The module that ``python -m NAME`` runs."""
    return f"{name}.__main__" if (ROOT / name.replace(".", "/") / "__main__.py").is_file() else name


def runnable() -> set[str]:
    """Every script and module of the project that runs as a command, as a user types it."""
    found = set()
    for folder in ("", "traces", "envs", "agents", "serving", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py") if folder else ROOT.glob("*.py"):
            if re.search(r"^if __name__ == .__main__.:", path.read_text(), re.MULTILINE):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
                found.add(f"python -m {name}" if folder else f"python {path.name}")
    return found


def test_every_command_is_in_the_table_of_commands() -> None:
    rows = re.findall(r"^\| (.*?) ?\| `(.+?)` \| (.+) \| (.+) \|$", COMMANDS.read_text(), re.MULTILINE)
    listed = {" ".join(shlex.split(command)[: 2 + command.startswith("python -m")]) for _, command, _, _ in rows}
    assert listed == runnable() and len(listed) == len(rows)
    named = {name.strip("`"): command for name, command, _, _ in rows if name}
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    targets = {name: target.removesuffix(":main") for name, target in scripts.items()}
    modules = {
        name: command.split()[-1 if ".py" in command else 2].removesuffix(".py") for name, command in named.items()
    }
    assert modules == targets
    for module in targets.values():
        assert callable(importlib.import_module(module).main)


class Parsed(BaseException):
    """The command line was accepted."""


def parsed_by(module: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the main function of a module parse a command line, and stop it there."""
    main = importlib.import_module(main_module(module)).main
    if not inspect.signature(main).parameters:
        assert not argv, f"{module} takes no flags"
        return
    for kind in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
        real = kind.parse_args

        def parse_args(self, *args, real=real, **kwargs):
            real(self, *args, **kwargs)
            raise Parsed

        monkeypatch.setattr(kind, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [module, *argv])
    with pytest.raises(Parsed):
        main()


@pytest.mark.parametrize("words", all_commands(), ids=lambda words: " ".join(words)[:70])
def test_each_command_is_accepted(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = words[: words.index("|")] if "|" in words else [word for word in words if word != "&"]
    program, *rest = words
    if program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "tensorboard":
        from tensorboard.program import TensorBoard

        TensorBoard().configure([program, *rest])
    elif program == "python" and rest[0] == "-m":
        parsed_by(rest[1], rest[2:], monkeypatch)
    elif program == "python" and rest[0] == "train.py":
        if "-i" not in rest:
            settings(rest[1:])
    elif program == "python" and rest[0] == "serve.py":
        parse_settings(ServeConfig, rest[1:])
    elif program == "python":
        assert (ROOT / rest[0]).is_file()
    else:  # run with the section that it belongs to
        assert program in ("curl", "echo", "mkdir", "cp", "kill"), f"no test knows how to check {program}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_snippets_exist(path: Path) -> None:
    text = re.sub(r"^```bash\n.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target.partition("#")[0]).exists(), target
    for snippet in re.findall(r'^--8<-- "(.+)"$', text, re.MULTILINE):
        assert (ROOT / snippet).is_file(), snippet
    for module in re.findall(r"^::: (\S+)$", text, re.MULTILINE):
        assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_and_files_named_in_the_text_exist(path: Path) -> None:
    packages = "traces|envs|agents|serving|benchmarks"
    for name in re.findall(rf"`((?:{packages})[./][\w./-]+)`", path.read_text()):
        if "/" in name:
            assert (ROOT / name).exists(), name
        else:
            parts = name.split(".")
            known = [ROOT.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
            found = [at for at in known if at.is_dir() or at.with_suffix(".py").is_file()]
            assert len(found) >= len(parts) - 1, name


def test_every_page_is_in_the_navigation() -> None:
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES}
    shown = set(re.findall(r"[\w/-]+\.md", json.dumps(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])))
    assert shown == pages


# The sections that are run as they stand.


def section(path: Path, title: str) -> str:
    return path.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Shell:
    """Runs the commands of a document in a folder, in order; a server in the background ends with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.server: subprocess.Popen[bytes] | None = None
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}

    def words(self, words: list[str]) -> list[str]:
        if words[0] == "python":
            words = [sys.executable, *words[1:]]
            if words[1].endswith(".py"):
                words[1] = str(ROOT / words[1])
        serves = any(word.endswith("serve.py") for word in words)
        for name, flags in SMALLER.items():
            if any(word == name or word.endswith(f"/{name}") for word in words):
                words += flags.split()
        words = [str(ROOT / word) if word.startswith("docs/examples/") else word for word in words]
        if serves and "--replay" not in words:
            words += ["--port", str(self.port)]
        return [word.replace("localhost:8000", f"127.0.0.1:{self.port}") for word in words]

    def run(self, words: list[str]) -> str:
        """Run one command and return what it prints; "&" leaves it in the background, ">" writes a file."""
        if words[0] == "tensorboard":
            return ""
        if words[0] == "kill":
            assert self.server is not None
            self.server.send_signal(signal.SIGTERM)
            assert self.server.wait(60) == 0
            return ""
        background, target = words[-1] == "&", None
        words = words[:-1] if background else words
        if len(words) > 2 and words[-2] == ">":
            target, words = words[-1], words[:-2]
        words = self.words(list(words))
        if background:
            log = (self.folder / "server.log").open("wb")
            self.server = subprocess.Popen(words, cwd=self.folder, env=self.environment, stdout=log, stderr=log)
            return ""
        ended = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=500, check=False
        )
        server_log = self.folder / "server.log"
        told = server_log.read_text()[-2000:] if server_log.is_file() else ""
        assert ended.returncode == 0, f"{shlex.join(words)}: {ended.stderr[-2000:]} {told}"
        if target is not None:
            (self.folder / target).write_text(ended.stdout)
        return ended.stdout


@pytest.fixture
def shell(tmp_path: Path):
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    shell = Shell(tmp_path)
    yield shell
    if shell.server is not None:
        shell.server.kill()
        shell.server.wait()


@pytest.mark.slow
def test_the_model_of_the_readme_is_served(shell: Shell) -> None:
    text = section(ROOT / "README.md", "Serve your own model")
    block = re.search(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert block is not None and len(block[1].splitlines()) <= 10
    printed = [shell.run(words) for words in commands(text)]
    answer = json.loads(printed[-1])
    assert answer["model_name"] == "net" and answer["outputs"][0]["shape"] == [1, 4]
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(f"127.0.0.1:{shell.port}")
    tensor = http.InferInput("input", [1, 16], "FP32")
    tensor.set_data_from_numpy(np.arange(1, 17, dtype=np.float32)[None])
    same = client.infer("net", [tensor], priority=1, timeout=500_000).as_numpy("output")
    np.testing.assert_allclose(same.ravel(), answer["outputs"][0]["data"], rtol=1e-5)


@pytest.mark.slow
def test_the_tutorial_runs_from_profile_to_serving(shell: Shell) -> None:
    printed = [shell.run(words) for words in commands((ROOT / "docs" / "tutorial.md").read_text())]
    assert (shell.folder / "runs/mine/evaluated/report.md").is_file()
    assert (shell.folder / "runs/mine-ppo/policy.safetensors").is_file()
    assert json.loads(next(text for text in printed if "model_name" in text))["outputs"][0]["shape"] == [1, 4]
    assert (shell.folder / "runs/mine/recorded/0000/arrivals.parquet").is_file()
    assert json.loads(printed[-1].splitlines()[-1])["offered"] > 0


# The examples of the how-to pages.


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # Numba's cache looks modules up by name
    spec.loader.exec_module(module)
    return module


def test_the_example_policy_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.policies.registry._KINDS", kinds())
    example("shortest_first")
    profile = synthetic_profile(seed=0)
    n = np.arange(60)
    workload = Workload(2.0 * n, n % len(profile.models), n % 2, np.full(60, 400.0), profile.models)
    sim = Simulator(profile, 1, 4)
    run(sim, make_policy("shortest-first"), [workload], [0])
    table = request_table(sim)
    met = (table["outcome"] == "met").groupby(table["priority"]).mean()
    assert len(table) == 60 and met[0] > 0.9 and met[0] >= met[1] > 0


def test_the_example_trace_format_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "FORMATS", dict(formats.FORMATS))
    example("access_log")
    path = tmp_path / "site.log"
    path.write_text("# access log\n0.5 bert\n0.25 resnet\n")
    arrivals = formats.load_arrivals(path)
    np.testing.assert_allclose(arrivals.arrival_ms, [0.0, 250.0])
    path.write_text("# access log\nsoon bert\n")
    with pytest.raises(InputError, match=r"site\.log:2: 'soon bert'"):
        formats.load_arrivals(path)


def test_the_example_interference_model_beats_none() -> None:
    data = campaign.load(Measurements.load(ROOT / "traces" / "data" / "cpu2"))
    fold = folds(data.group, 2)
    crowded = ~data.alone & (data.n_corunners > 0)
    mape = [
        errors(finish(data, cross_validate(data, make, fold))[crowded], data.exec_ms[crowded])["mape"]
        for make in (example("one_slope").OneSlope, Solo)
    ]
    assert mape[0] < mape[1]


def settings_classes() -> list[type]:
    """The typed settings of all commands: dataclasses named so in the packages."""
    packages = ("traces", "envs", "agents", "serving", "benchmarks")
    files = [path for top in packages for path in (ROOT / top).rglob("*.py")]
    named = re.compile(r"^@dataclass.*\nclass (\w*(?:Config|Benchmark))\b", re.MULTILINE)
    found = []
    for path in sorted(files):
        for name in named.findall(path.read_text()):
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            found.append(getattr(module, name))
    return found


def helped(cls: type) -> set[str]:
    """The settings that a class's docstring explains, as --help finds them."""
    return {one.arg_name for one in docstring_parser.parse(cls.__doc__ or "").params}


def test_each_setting_has_help_of_its_own() -> None:
    classes = settings_classes()
    assert len(classes) > 30
    lacking = [
        f"{cls.__name__}.{name}"
        for cls in classes
        for name in set(cls.__annotations__) - {name for one in cls.__mro__ for name in helped(one)}
    ]
    assert not lacking
