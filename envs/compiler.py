"""Numba's compiler without the work that this project's code has no use for; ``envs.jit`` compiles with it.

Half of what Numba does for a function of which others take a copy is for nothing here. That half is left out in two classes
that Numba takes as options; compiled code is the same with and without them.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import binding
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, Flags


class QuickFlags(Flags):
    """Flags that compare quickly. Numba looks up some ten thousand things by them, and reads each flag by name each time."""

    def __hash__(self) -> int:
        return hash(Flags)

    def __eq__(self, other: Any) -> bool:
        return self is other or self._values == getattr(other, "_values", None) or super().__eq__(other)


class QuickCompiler(Compiler):
    """Numba's compiler with flags that compare quickly."""

    def __init__(self, typingctx, targetctx, library, args, return_type, flags, locals):
        super().__init__(typingctx, targetctx, library, args, return_type, QuickFlags(flags), locals)


class BareLibrary(JITCodeLibrary):
    """Code that is only ever put into that of its callers: it stays LLVM's, no machine code is made of it."""

    def _optimize_final_module(self) -> None:
        pass  # it is optimised with its callers

    def _finalize_final_module(self) -> None:
        self._finalized = True
        whole = self._get_module_for_linking()
        # Numba wants the address of the function's environment, so that alone is compiled.
        env = [str(g) for g in whole.global_variables if g.name.startswith("_ZN08NumbaEnv")]
        self._final_module = binding.parse_assembly("\n".join(env))
        self._final_module.name = whole.name
        super()._finalize_final_module()


class BareCompiler(QuickCompiler):
    """Compiles functions that only compiled functions call."""

    def compile_extra(self, func):
        self.state.library = BareLibrary(self.state.targetctx.codegen(), func.__qualname__)
        self.state.library.enable_object_caching()
        return super().compile_extra(func)
