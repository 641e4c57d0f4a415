"""Numba's compiler without the work that has no use here; ``envs.scheduling.jit`` compiles with it.

Numba makes machine code of every function, though one that only compiled functions call is copied into each of them, as
LLVM's code, and optimised there again. And it compares the flags of a compilation some ten thousand times, slowly. Leaving
both out saves more than half of the time that the first run takes: ``python -m envs.precompile`` with an empty cache took 22 s
of CPU with it and 52 to 57 s without (two cores, 28 November 2026). What is compiled is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, Flags

ENVIRONMENT = "_ZN08NumbaEnv"  # what the names of functions' environments begin with


class QuickFlags(Flags):
    """Flags that are equal at a glance if the same ones were set, as nearly always."""

    def __hash__(self) -> int:
        return hash(Flags)

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, Flags) and self._values == other._values) or super().__eq__(other)


class QuickCompiler(Compiler):
    """Numba's compiler with quick flags."""

    def __init__(
        self, typingctx: Any, targetctx: Any, library: Any, args: Any, return_type: Any, flags: Flags, locals: Any
    ) -> None:
        super().__init__(typingctx, targetctx, library, args, return_type, QuickFlags(flags), locals)


class BareLibrary(JITCodeLibrary):
    """Code that is only ever copied into callers: it stays as LLVM has it, to be optimised with theirs."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True
        whole = self._get_module_for_linking()
        # Numba writes to the address of the function's environment, so that alone becomes machine code.
        environment = [str(g) for g in whole.global_variables if g.name.startswith(ENVIRONMENT)]
        if environment:
            self._final_module = binding.parse_assembly("\n".join(environment))
            self._final_module.name = whole.name
        super()._finalize_final_module()


class BareCompiler(QuickCompiler):
    """Compiles a function that only compiled functions call."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        """Compile the function into a ``BareLibrary``."""
        self.state.library = BareLibrary(self.state.targetctx.codegen(), func.__qualname__)
        self.state.library.enable_object_caching()
        return super().compile_extra(func)
