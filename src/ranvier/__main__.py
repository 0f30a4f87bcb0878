"""`python -m ranvier` is `ranvier`."""

from __future__ import annotations

import sys

from ranvier.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
