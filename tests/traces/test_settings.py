"""Settings of another type or out of range: one line that names field, value and what would be right."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.command import run_command
from traces.errors import InputError
from traces.files import atomic_path, atomic_write_text, make_folder
from traces.settings import check_settings, check_types, fits, read_settings


@dataclass(frozen=True)
class Inner:
    """Settings inside settings.

    Attributes:
        n: a number.
    """

    n: int = 1


@dataclass(frozen=True)
class Settings:
    """One field of each kind.

    Attributes:
        name: text.
        seed: whole.
        rate: number.
        switch: switch.
        shape: sides.
        pair: two numbers.
        maybe: whole or nothing.
        share: numbers by name.
        level: one of two.
        inner: more.
    """

    name: str
    seed: int = 0
    rate: float = 1.0
    switch: bool = False
    shape: tuple[int, ...] | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    maybe: int | None = None
    share: dict[str, float] | None = None
    level: Literal["high", "low"] = "low"
    inner: Inner = field(default_factory=Inner)


WRONG: list[tuple[str, Any, str]] = [
    ("seed", True, "a whole number"),
    ("seed", "abc", "a whole number"),
    ("seed", 1.5, "a whole number"),
    ("seed", None, "a whole number"),
    ("rate", True, "a number"),
    ("rate", float("nan"), "a number"),
    ("rate", "1 ms", "a number"),
    ("switch", "false", "true or false"),
    ("switch", 0, "true or false"),
    ("shape", [True], "a list, each item a whole number, or null"),
    ("shape", 4, "a list, each item a whole number, or null"),
    ("pair", [1], "a list [a number, a number]"),
    ("maybe", "1", "a whole number, or null"),
    ("share", {"a": "b"}, "a mapping of names to a number, or null"),
    ("share", [1], "a mapping of names to a number, or null"),
    ("level", "middle", "'high' or 'low'"),
    ("name", ["float32"], "text"),
    ("inner", 3, "a mapping of settings"),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_a_value_of_another_type_is_one_line(name: str, value: Any, expected: str) -> None:
    line = f"{name}: {value!r}; expected {expected}"
    with pytest.raises(InputError) as read:
        read_settings(Settings, {"name": "a"} | {name: value}, "m.yaml: models[0]")
    with pytest.raises(InputError) as made:
        check_types(Settings(**{"name": "a"} | {name: value}))
    assert (str(read.value), str(made.value)) == (f"m.yaml: models[0]: {line}", line)


YAML = [(n, v, e) for n, v, e in WRONG if not isinstance(v, float) and v not in ("1", None)]


@pytest.mark.parametrize(("name", "value", "expected"), YAML)
def test_a_file_of_settings_is_read_as_strictly(
    name: str, value: Any, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"name": "a"} | {name: value}))
    assert run_command(lambda _: None, Settings, ["--config", str(tmp_path / "c.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {name}: ") and error.count("\n") == 1
    assert name == "level" or error.endswith(f"; expected {expected}\n")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "m.yaml: field 'name' is missing; expected text"),
        ({"name": "a", "sed": 1}, "m.yaml: unknown field 'sed'; known are name, seed, rate"),
        ([1], r"m.yaml: \[1\]; expected a mapping of name, seed"),
    ],
)
def test_a_mapping_with_other_fields_is_refused(values: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_settings(Settings, values, "m.yaml")


def test_a_mapping_of_the_right_types_is_read() -> None:
    found = read_settings(Settings, {"name": "a", "shape": [3, 4], "rate": 2, "pair": [1, 2]}, "m.yaml")
    assert (found.shape, found.rate, found.pair, found.seed) == ((3, 4), 2, (1, 2), 0)


@given(st.one_of(st.booleans(), st.integers(), st.floats(), st.text(), st.none(), st.lists(st.integers())))
def test_a_value_fits_one_kind_of_scalar_or_an_integer_two(value: Any) -> None:
    kinds = {kind for kind in (bool, int, float, str, type(None), list[int]) if fits(value, kind)}
    if isinstance(value, int) and not isinstance(value, bool):
        assert kinds == {int, float}
    else:
        assert len(kinds) == (0 if value != value else 1)


@dataclass
class Ranged:
    """Fields with ranges."""

    seed: int = 0
    counts: tuple[int, ...] = (1,)
    rate: float | None = 1.0
    names: tuple[str, ...] = ("a",)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"seed": -1}, "seed: -1; must be at least 0"),
        ({"seed": 5_000_000_000}, "seed: 5000000000; must be at most 4294967295"),
        ({"counts": ()}, "counts: empty; must hold at least one"),
        ({"counts": (3, 0)}, r"counts: \(3, 0\); must be at least 1"),
        ({"rate": 0.0}, "rate: 0.0; must be above 0"),
        ({"rate": float("inf")}, "rate: inf; must be above 0"),
        ({"names": ()}, "names: empty; must hold at least one"),
    ],
)
def test_a_value_out_of_range_is_one_line(values: dict[str, Any], says: str) -> None:
    check_settings(Ranged(rate=None), "", {"counts": 1}, {"rate": 0}, not_empty=["names"])
    with pytest.raises(InputError, match=f"^--{says}"):
        check_settings(Ranged(**values), "--", {"counts": 1}, {"rate": 0}, not_empty=["names"])


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_folder(tmp_path / "new", "--out").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="^--out: .*cannot be made a folder"):
        make_folder(tmp_path / "file", "--out")
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # the tests may run as root, who may all
    with pytest.raises(InputError, match="^--out: .*new cannot be written to"):
        make_folder(tmp_path / "new", "--out")


def test_a_file_that_cannot_be_written_ends_a_command_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(_: Settings) -> None:
        with atomic_path(tmp_path / "result.json") as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def through_a_file(_: Settings) -> None:
        (tmp_path / "file").write_text("")
        atomic_write_text(tmp_path / "file" / "result.json", "")

    def too_large(_: Settings) -> None:
        raise MemoryError

    for work, says in (
        (fill, f"{tmp_path / 'result.json'}: No space left on device"),
        (through_a_file, f"{tmp_path / 'file'}: "),
        (too_large, "not enough memory"),
    ):
        assert run_command(work, Settings, ["--name", "a"]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {says}") and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
