"""The models that a server may serve, and where they come from, as lists and folders of models say.

A list of models is a YAML file (a list of entries), or a folder with one such file, ``models.yaml``, or with one
``NAME.yaml`` per model, and a folder ``NAME/VERSION/`` with the file of each version of a model, ``model.onnx`` for example,
and ``NAME/model.yaml`` with the fields that the file does not say. An entry has the fields of ``ModelSpec``, and the defaults
of requests that name none:

    - name: classifier
      source: classifier.pt          # beside this file, or builtin:NAME, hf:FOLDER or module:factory
      input_shape: [3, 224, 224]     # of a model with one input; or:
      inputs: {ids: {shape: [-1], datatype: INT64}, mask: [-1]}
      max_size: 512                  # of what is -1
      preprocess: {function: text:tokens, inputs: {text: {datatype: BYTES, shape: []}}}
      priority: high
      timeout_ms: 50
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from serving.models.builtin.registry import BUILTIN
from serving.models.load import MODEL_FILES, builtin_spec, spec_of
from serving.models.served import ModelSpec
from serving.models.tensor_fields import Rules, check_fields_by, is_buckets, is_integer, read_step, read_tensors
from serving.models.tensors import NAMES, VERSION_MARK
from traces.errors import InputError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")


_TEXT = ("text", lambda value: isinstance(value, str) and value != "")
# Each field of an entry, by name, as errors list them: what it must be, in words and as a test.
_FIELDS: Rules = {
    "buckets": ("a list of ascending sizes, each an integer of at least 1", is_buckets),
    "compiled": ("true or false", lambda value: isinstance(value, bool)),
    "input_dtype": (f"one of {', '.join(NAMES)}", lambda value: isinstance(value, str) and value in NAMES),
    "input_high": ("an integer of at least 1", lambda value: is_integer(value, 1, 2**63)),
    "input_shape": (
        "a list of sides, each an integer of at least 1",
        lambda value: isinstance(value, list) and all(is_integer(side, 1, 2**31) for side in value),
    ),
    "inputs": ("", lambda value: True),  # see read_tensors
    "kind": _TEXT,
    "max_size": ("an integer of at least 1", lambda value: is_integer(value, 1, 2**31)),
    "name": _TEXT,
    "outputs": ("", lambda value: True),
    "own_process": ("true or false", lambda value: isinstance(value, bool)),
    "postprocess": ("", lambda value: True),  # see read_step
    "preprocess": ("", lambda value: True),
    "priority": ("'high' or 'low'", lambda value: value in ("high", "low")),
    "seed": ("an integer of at least 0", lambda value: is_integer(value, 0, 2**63)),
    "source": _TEXT,
    "timeout_ms": (
        "a number above 0",
        lambda value: type(value) in (int, float) and 0 < value < 1e12,
    ),
    "version": ("a whole number", lambda value: str(value).isdecimal() and not isinstance(value, bool)),
}


@dataclass(frozen=True)
class Entry:
    """One model that may be served.

    Attributes:
        spec: where it comes from.
        priority: of requests that name none: 0 (high) or 1 (low); None leaves it to the API.
        timeout_ms: relative deadline of requests that name none; None leaves it to the API.
        initial: whether it is served from the start; not so the versions of a model beside the newest or the chosen one.
    """

    spec: ModelSpec
    priority: int | None = None
    timeout_ms: float | None = None
    initial: bool = True


def read_entries(sources: Sequence[str]) -> dict[str, Entry]:
    """The models that ``--models`` names, in order.

    Args:
        sources: built-in names and NAME=SOURCE; or paths of folders and YAML files.

    Raises:
        InputError: not such a source, a malformed file, a name that repeats, or a path that leaves its folder.
    """
    found: dict[str, Entry] = {}
    for source in sources:
        is_path = "=" not in source and source not in BUILTIN
        entries = _read_path(Path(source)) if is_path and _like_path(source) else [Entry(spec_of(source))]
        for entry in entries:
            name = entry.spec.name
            if not NAME.fullmatch(name if entry.initial else name.partition(VERSION_MARK)[0]):
                raise InputError(f"{source}: model name {name!r}; it must be letters, digits, '_', '-' and '.'")
            if name in found:
                raise InputError(f"{source}: model {name!r} is named twice")
            found[name] = entry
    if not found:
        raise InputError(f"--models: {' '.join(sources)} names no model")
    return found


def initial_entries(sources: Sequence[str]) -> dict[str, Entry]:
    """Those that are served from the start; as `read_entries`."""
    return {name: entry for name, entry in read_entries(sources).items() if entry.initial}


def _like_path(source: str) -> bool:
    return "/" in source or source.endswith((".yaml", ".yml")) or Path(source).exists()


def _read_path(path: Path) -> list[Entry]:
    if not path.exists():
        raise InputError(f"{path}: no such folder or file of models")
    if not path.is_dir():
        return _read_file(path)
    listing = path / "models.yaml"
    files = [listing] if listing.is_file() else sorted(path.glob("*.yaml"))
    found = [entry for file in files for entry in _read_file(file)]
    for folder in sorted(path.iterdir()) if not listing.is_file() else ():
        versions = _versions_in(folder)
        if versions:
            found += _read_versions(folder, versions)
    if not found:
        raise InputError(f"{path}: holds no models.yaml, no NAME.yaml and no NAME/VERSION/")
    return found


def _versions_in(folder: Path) -> list[str]:
    """Names of the folders of versions, ascending: whole numbers, as Triton has them."""
    if not folder.is_dir():
        return []
    return sorted((one.name for one in folder.iterdir() if one.is_dir() and one.name.isdecimal()), key=int)


def _read_versions(folder: Path, versions: list[str]) -> list[Entry]:
    """The entries of one model's versions; the newest, or that which model.yaml names, is served from the start."""
    described, values = folder / "model.yaml", {}
    if described.is_file():
        values = _load_yaml(described)
        if not isinstance(values, dict) or {"name", "source"} & set(values):
            raise InputError(f"{described}: it must be a mapping of a model's fields without name and source")
    chosen = str(values.pop("version", versions[-1]))
    if chosen not in versions:
        raise InputError(f"{described}: version is {chosen}; there are {', '.join(versions)}")
    found = []
    for version in versions:
        where = str(folder / version)
        name = folder.name if version == chosen else f"{folder.name}{VERSION_MARK}{version}"
        item = values | {"name": name, "source": _source_in(folder / version, where), "version": version}
        found.append(replace(_entry(item, where, folder / version), initial=version == chosen))
    return found


def _source_in(folder: Path, where: str) -> str:
    files = [one.name for suffix in ("onnx", "pt", "pt2") for one in sorted(folder.glob(f"*.{suffix}"))]
    if len(files) == 1:
        return files[0]
    if not files and (folder / "config.json").is_file():
        return "hf:."
    raise InputError(
        f"{where}: holds {len(files)} files of models; it must be one .onnx, .pt or .pt2, or a folder of hf:"
    )


def _load_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from None


def _read_file(path: Path) -> list[Entry]:
    data = _load_yaml(path)
    if isinstance(data, dict) and isinstance(data.get("models"), list):
        data = data["models"]
    if isinstance(data, dict):
        data = [{"name": path.stem} | data]
    if not isinstance(data, list) or not data:
        raise InputError(f"{path}: it must hold a list of models, each with name and source")
    return [_entry(item, f"{path}: models[{number}]", path.parent) for number, item in enumerate(data)]


def _entry(item: Any, where: str, folder: Path) -> Entry:
    if isinstance(item, str):
        return Entry(builtin_spec(item))
    if not isinstance(item, dict):
        raise InputError(f"{where}: {item!r}; expected a mapping with name and source")
    values = dict(item)
    if isinstance(values.get("name"), str):
        where += f" ({values['name']})"
    for key in ("name", "source"):
        values.setdefault(key, None)
    check_fields_by(_FIELDS, values, where, f"{where}: ")
    priority, timeout = values.pop("priority", None), values.pop("timeout_ms", None)
    for key in {"input_shape", "buckets"} & set(values):
        values[key] = tuple(values[key])
    for key in {"inputs", "outputs"} & set(values):
        values[key] = read_tensors(values[key], f"{where}: {key}")
    for key, tensors in {"preprocess": "inputs", "postprocess": "outputs"}.items():
        if key in values:
            values[key] = read_step(values[key], tensors, f"{where}: {key}", str(folder.resolve()))
    if "inputs" in values and "input_shape" in values:
        raise InputError(f"{where}: input_shape is for a model with one input, {'input'!r}; give inputs or input_shape")
    if "version" in values:
        values["version"] = str(values["version"])
    spec = ModelSpec(**values, folder=str(folder.resolve()))
    scheme = "hf:" if spec.source.startswith("hf:") else ""
    if scheme or spec.source.endswith(MODEL_FILES):
        path = _inside(folder, spec.source.removeprefix(scheme), where)
        spec = replace(spec, source=f"{scheme}{path}")
    return Entry(
        spec, None if priority is None else int(priority == "low"), None if timeout is None else float(timeout)
    )


def _inside(folder: Path, source: str, where: str) -> Path:
    """The path of a file of the repository; a link that leads out of it is refused, too."""
    root = folder.resolve()
    path = (root / source).resolve()
    if not path.is_relative_to(root):
        raise InputError(f"{where}: source {source!r} lies outside of {folder}; move the file into the folder")
    return path
