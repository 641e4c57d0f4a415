"""One way from a settings dataclass to a command: flags, a YAML file of them, one line for what is wrong, an exit status."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from traces.errors import InputError
from traces.settings import check_types, expected, fits

Settings = TypeVar("Settings")
FAILED, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141


def run_command(
    work: Callable[[Settings], int | None],
    settings: type[Settings],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    description: str | None = None,
    leading: str | None = None,
) -> int:
    """Parse the command line into settings, do the work, and say how it ended.

    Every field is a flag of its name, with its docstring as help; ``--config FILE`` reads fields from YAML, and flags win.
    Dashes and underscores mean the same, a switch needs no value, and lists may be written ``a,b`` or ``[a, b]``.

    Args:
        work: takes the settings; what it returns is the exit status, None is 0.
        settings: a dataclass; its ``__post_init__`` may raise InputError.
        argv: words of the command line; None: those of this process.
        prog: the command as a user types it.
        description: what it does, shown by ``--help``.
        leading: the list that takes the words in front of the first flag; None: there must be none.

    Returns:
        The exit status: 2 after bad input, 1 where a file cannot be written or memory does not suffice, each reported in one
        line, and 130 after Ctrl-C.
    """
    return exit_status(lambda: work(parse_settings(settings, argv, prog, description, leading)))


class _Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Flags with their defaults; the description as it is written."""


def parse_settings(
    settings: type[Settings],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    description: str | None = None,
    leading: str | None = None,
) -> Settings:
    """The settings that a command line names; see ``run_command``.

    Raises:
        InputError: a flag is unknown, or a value is malformed or out of range.
    """
    parser = ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=_Help,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of settings; flags win")
    parser.add_class_arguments(settings, as_group=False)
    words = list(sys.argv[1:] if argv is None else argv)
    first_flag = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    if leading is not None and first_flag:
        words[:first_flag] = [f"--{leading}={json.dumps(words[:first_flag])}"]
    try:
        words = spell_out(words, settings)
        for flag, word in zip(words, [*words[1:], ""], strict=False):
            if flag.partition("=")[0] == "--config":
                _check_file(Path(flag.partition("=")[2] or word), settings)
        given = parser.instantiate(parser.parse_args(words))
        values = given.as_dict()
        values.pop("config", None)
        result = settings(**values)
        check_types(result)
        return result
    except (ArgumentError, ValueError, TypeError) as error:
        raise InputError(_plainly(error, settings)) from None


def _check_file(path: Path, settings: type) -> None:
    """Refuse in a YAML file what the parser would pass over: text for a switch, and no mapping for settings inside settings."""
    if not path.is_file():
        return  # the parser says so
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"not YAML: {' '.join(str(error).split())}") from None
    kinds = dict(_flag_types(settings, ""))
    groups = {name.rpartition(".")[0] for name in kinds} - {""}
    for name, kind in [(group, Mapping) for group in sorted(groups)] + list(kinds.items()):
        value = data
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and (
            (kind is bool and not fits(value, bool)) or (kind is Mapping and not fits(value, dict))
        ):
            wanted = "a mapping of settings" if kind is Mapping else expected(bool)
            raise InputError(f"{name}: {value!r}; expected {wanted}")


def _plainly(error: Exception, settings: type) -> str:
    """What the parser says of a value of another type, as the rest of the project says it."""
    text = " ".join(str(error).split())
    found = re.search(r'Parser key "([\w.]+)": .*?(?:Got|Given) value: (.*)$', text)
    kind = dict(_flag_types(settings, "")).get(found[1]) if found else None
    # The last value in the text is the whole of it.
    return f"{found[1]}: {text.rpartition('value: ')[2]}; expected {expected(kind)}" if found and kind else text


def spell_out(words: Sequence[str], settings: type) -> list[str]:
    """Flags as the parser expects them: ``--log-json`` is ``--log_json=true``, ``--loads 0.8,1`` is ``--loads=[0.8,1]``."""
    kinds = dict(_flag_types(settings, "--"))
    result: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name == "--":
            result.append(word)
            continue
        name = "--" + name[2:].replace("-", "_")
        kind = kinds.get(name)
        if kind is bool and not equals and (not rest or rest[0] not in ("true", "false")):
            equals, value = "=", "true"
        elif _is_list(kind):
            if not equals and rest:
                equals, value = "=", rest.pop(0)
            whole = value[:1] == "{" or (value[:1] == "[" and value[-1:] == "]")  # not "[::1]:80"
            if value and not whole and value != "null":
                # Quoted, since YAML takes "[::1]:80" for a mapping.
                items = [item for one in value.split(",") if (item := one.strip())]
                value = json.dumps(items) if _of_text(kind) else f"[{value}]"
        result.append(name + equals + value)
    return result


def _flag_types(settings: type, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every flag with its type, those of settings inside settings ("--env.load") among them."""
    hints = typing.get_type_hints(settings)
    for field in fields(settings):  # type: ignore[arg-type]
        kind = hints[field.name]
        yield prefix + field.name, kind
        if is_dataclass(kind):
            yield from _flag_types(typing.cast(type, kind), f"{prefix}{field.name}.")


def _of_text(kind: Any) -> bool:
    """Whether the items of a list type, or of the list in a union, are text."""
    return str in typing.get_args(kind) or any(map(_of_text, typing.get_args(kind)))


def _is_list(kind: Any) -> bool:
    """Whether a type is a list or tuple, or one of these or None."""
    if typing.get_origin(kind) in (list, tuple):
        return True
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    return len(options) == 1 and len(typing.get_args(kind)) == 2 and _is_list(options[0])


def exit_status(work: Callable[[], Any]) -> int:
    """Do the work of a command; see ``run_command`` for what is returned."""
    try:
        status = work()
        return status if isinstance(status, int) else 0
    except SystemExit as end:  # --help
        return int(end.code or 0)
    except (InputError, ArgumentError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader is gone (`... | head`); Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except BrokenExecutor:
        print("error: a process was killed, maybe for want of memory; try fewer (--workers)", file=sys.stderr)
        return FAILED
    except (OSError, MemoryError) as error:  # a full disk, a folder where a file is, a size that does not fit
        place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        what = getattr(error, "strerror", None) or str(error) or "not enough memory"
        print(f"error: {place}{' '.join(what.split())}", file=sys.stderr)
        return FAILED
