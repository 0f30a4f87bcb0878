"""The library of CPU kernels: found, loaded, its handlers registered with XLA. Once a process.

Without the library (no compiler at install) `register` is False and the reference kernels serve.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import jax

__all__ = ["HANDLERS", "ISAS", "isa", "library_path", "register", "set_isa", "set_threads"]

HANDLERS = (
    "ranvier_linear", "ranvier_attention", "ranvier_norm", "ranvier_sample", "ranvier_quantised",
    "ranvier_quantised_rows", "ranvier_rows",
)  # fmt: skip
"""FFI targets, by the names of their symbols."""
ISAS = ("generic", "avx2", "avx512", "avx512-bf16", "amx")


def library_path() -> Path:
    """Where the library lies when it was built."""
    return Path(__file__).parent / "libranvier_kernels.so"


@cache
def _library() -> ctypes.CDLL | None:
    path = library_path()
    return ctypes.CDLL(str(path)) if path.is_file() else None


@cache
def register() -> bool:
    """Register every handler for the cpu platform; False when there is no library."""
    library = _library()
    if library is None:
        return False
    library.ranvier_keep_memory()
    for name in HANDLERS:
        ffi: Any = jax.ffi
        capsule = ffi.pycapsule(getattr(library, name))
        ffi.register_ffi_target(name, capsule, platform="cpu", api_version=1)
    return True


def isa() -> str:
    """The instruction set that the kernels use here."""
    library = _library()
    return ISAS[library.ranvier_isa()] if library else "none"


def set_isa(name: str | None) -> str:
    """Use a lower instruction set (tests), or with None the best; the one in force."""
    library = _library()
    wanted = -1 if name is None else ISAS.index(name)
    return ISAS[library.ranvier_set_isa(wanted)] if library else "none"


def set_threads(count: int) -> None:
    """How many threads the kernels use, the caller's own included."""
    library = _library()
    if library is not None:
        library.ranvier_set_threads(count)
