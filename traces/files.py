"""Files that appear whole or not at all, with numbers as short as they may be."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from traces.errors import InputError


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Errors of the system name ``path``, whatever temporary file, or none, the writer names."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` when the block ends without an error.

    The temporary file keeps the suffix of `path` (writers that choose a format by suffix work) and is removed when the
    block raises, so that a reader never sees half a file. Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with naming(path):
            yield temporary
            # mkstemp makes the file private; what is published follows the user's umask instead.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path | str, place: str) -> Path:
    """The folder, made where it is not there; InputError that names ``place`` when it cannot be, or be written to."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{place}: {path} cannot be made a folder ({error.strerror})") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{place}: {path} cannot be written to")
    return Path(path)


def check_file(path: Path | str, place: str) -> None:
    """Make the folder of a file that is to be written; InputError that names ``place`` where it could not be."""
    make_folder(Path(path).parent, place)
    if Path(path).is_dir():
        raise InputError(f"{place}: {path} is a folder; expected a file")


def make_numbered(folder: Path, prefix: str = "", first: int = 0, digits: int = 1) -> Path:
    """A new folder in ``folder``, named by the prefix and the next number; whoever else makes one has another."""
    there = [path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*")]
    number = max((int(name) for name in there if name.isdecimal()), default=first - 1) + 1
    while True:
        made = folder / f"{prefix}{number:0{digits}d}"
        try:
            made.mkdir(parents=True)
            return made
        except FileExistsError:
            number += 1


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def rounded(value: Any, digits: int) -> Any:
    """Floats to significant digits, in dictionaries, lists and tuples, too; None for what is not a number."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return value
