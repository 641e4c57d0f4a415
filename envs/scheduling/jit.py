"""Compilation settings shared by all hot-path code.

Numba's cache notices a change of the file that holds a function, but not of the functions it calls. The cache therefore
lies in a folder named after the text of all hot-path sources (those that compile something, envs/compiler.py that does it,
and envs/state.py, whose constants they read): whoever edits one of them gets fresh machine code, never stale one.
``NUMBA_DISABLE_JIT=1`` turns every function here into plain Python for a debugger.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import os
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba.core.types import int32, int64, unliteral

from envs.scheduling.compiler import BareCompiler, QuickCompiler

_ROOT = Path(__file__).resolve().parent.parent.parent


def _source_digest() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for package in ("envs", "agents", "serving"):
        for path in sorted((_ROOT / package).rglob("*.py")):
            text = path.read_bytes()
            if b"envs.scheduling.jit import" in text or path.name in ("compiler.py", "jit.py", "state.py"):
                digest.update(text)
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    """Folder of what was worked out: $STRAIT_CACHE, beside the sources when that is writable, or in the user's cache."""
    base = Path(os.environ.get("STRAIT_CACHE", _ROOT / ".cache"))
    if "STRAIT_CACHE" not in os.environ and not os.access(_ROOT, os.W_OK):
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "strait-rl"
    return base / _source_digest()


CACHE = _cache_folder()
"""Folder of results that hold as long as no hot-path source changes: compiled code, measured capacities."""

if "NUMBA_CACHE_DIR" not in os.environ:
    numba.config.CACHE_DIR = str(CACHE / "numba")  # type: ignore[attr-defined]

# No fastmath: compiled and plain Python must give the same bits. nogil: two halves of a batch run on two threads.
# No Numba runtime (_nrt): compiled code cannot allocate at all, so "zero allocation a step" holds by construction, and
# passing the state to a function costs no reference counting (three times the speed). Write loops, not array expressions.
_compiled: Any = functools.partial(numba.njit, cache=True, nogil=True, error_model="numpy", _nrt=False)


def njit(function: Callable[..., Any]) -> Any:
    """Compile a hot-path function.

    A function that Python calls needs code that unpacks its arguments; with a state of dozens of arrays that code is longer
    than most functions. So each has two forms: the one that is returned, for Python, and a bare one, compiled only when
    another compiled function calls it. That saves a third of the time that the first run takes.
    """
    return _in_two_forms(function, {})


def inlined(function: Callable[..., Any]) -> Any:
    """``njit`` for a function on the path of every decision: its code is put in place of each call.

    A call hands over all arrays of the state one by one, some hundred words, which takes longer than a small function does.
    """
    return _in_two_forms(function, {"forceinline": True})


def _widest(kind: Any) -> Any:
    """Type that an argument is passed as: Numba would compile a function anew for each constant, and for each integer width."""
    kind = unliteral(kind)
    return int64 if kind == int32 else kind


@contextlib.contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Without the garbage collector, which would look through the many objects of a compiler again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _in_two_forms(function: Callable[..., Any], options: dict[str, bool]) -> Any:
    dispatcher = _compiled(function, pipeline_class=QuickCompiler)
    if not hasattr(dispatcher, "overloads"):
        return dispatcher  # NUMBA_DISABLE_JIT=1
    # A function of its own, since Numba's cache tells functions apart by their qualified name.
    copy = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    copy.__module__ = function.__module__
    copy.__qualname__ = f"{function.__qualname__}.bare"
    bare = _compiled(copy, pipeline_class=BareCompiler, no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)

    def of_types(args: Any, kws: Any) -> Any:
        with _collector_at_rest():
            return bare.get_call_template([_widest(a) for a in args], {k: _widest(a) for k, a in kws.items()})

    dispatcher.get_call_template = of_types
    dispatcher.get_overload = bare.get_overload
    return dispatcher


def bind(function: Any, *example: Any) -> Callable[..., Any]:
    """The machine code of a compiled function for arguments of exactly these types.

    Calling a compiled function from Python looks up its overload by the types of all arguments, which takes longer than a
    decision. What is returned here skips that: about 1 us a call. Arguments of other types are undefined behaviour, so it is
    for callers that own their arrays. Compiles (or loads from the cache) on the spot; does not run the function.
    """
    if not hasattr(function, "overloads"):
        return function  # NUMBA_DISABLE_JIT=1
    signature = tuple(numba.typeof(a) for a in example)
    with _collector_at_rest():
        function.compile(signature)
    return function.overloads[signature].entry_point
