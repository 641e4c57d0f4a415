"""One way to run commands: flags however they are typed, a file of settings, one line for what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from traces.command import parse_settings, run_command
from traces.errors import InputError


@dataclass
class Settings:
    """What to do.

    Attributes:
        out: where to.
        loads: how much.
        names: of what.
        full: all of it.
    """

    out: str
    loads: tuple[float, ...] = (1.0,)
    names: list[str] | None = None
    full: bool = False
    sizes: list[int] = field(default_factory=lambda: [1, 2])

    def __post_init__(self) -> None:
        if not self.loads:
            raise InputError("--loads: (); must hold at least one number")


@pytest.mark.parametrize(
    "words",
    (
        ["--out", "x", "--full", "--loads", "0.5,2", "--names", "a,b"],
        ["--out=x", "--full=true", "--loads=[0.5, 2]", "--names=[a, b]"],
        ["--full", "true", "--out", "x", "--loads", "[0.5,2]", "--names", "[a,b]"],
    ),
)
def test_flags_may_be_typed_in_many_ways(words: list[str]) -> None:
    got = parse_settings(Settings, words)
    assert (got.out, got.full, tuple(got.loads), got.names, got.sizes) == ("x", True, (0.5, 2.0), ["a", "b"], [1, 2])


def test_words_in_front_of_the_flags_fill_the_leading_list() -> None:
    got = parse_settings(Settings, ["a=x.json", "b", "--out", "x"], leading="names")
    assert got.names == ["a=x.json", "b"] and got.out == "x"
    assert parse_settings(Settings, ["--out", "x"], leading="names").names is None
    with pytest.raises(InputError):
        parse_settings(Settings, ["a", "--out", "x"])


def test_flags_win_over_a_file_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("out: from file\nfull: true\n")
    got = parse_settings(Settings, ["--config", str(path), "--out", "from flag"])
    assert (got.out, got.full) == ("from flag", True)


@pytest.mark.parametrize(
    ("words", "says"),
    (
        (["--out", "x", "--loads", "[]"], "--loads: (); must hold at least one number"),
        (["--out", "x", "--nothing", "1"], "nothing"),
        (["--out", "x", "--loads", "many"], "loads"),
        ([], "out"),
    ),
)
def test_bad_input_is_one_line_and_status_2(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda _: None, Settings, words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error


def test_exit_status_says_how_the_work_ended(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: Settings) -> None:
        raise KeyboardInterrupt

    assert run_command(lambda _: None, Settings, ["--out", "x"]) == 0
    assert run_command(lambda _: 3, Settings, ["--out", "x"]) == 3
    assert run_command(interrupted, Settings, ["--out", "x"]) == 130
