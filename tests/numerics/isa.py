"""What the kernels' tests share: every instruction set that this machine has."""

from __future__ import annotations

import pytest

from ranvier.native import library

NEEDS_KERNELS = pytest.mark.skipif(not library.register(), reason="the kernels are not built")
ISAS = library.ISAS[: library.ISAS.index(library.isa()) + 1] if library.register() else ()
