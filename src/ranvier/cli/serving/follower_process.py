"""A rank other than 0 as a process; its order comes on stdin. Started by Ray's actors."""

from __future__ import annotations

import sys

from ranvier.cli.serving.log import configure_logging
from ranvier.cli.serving.order import EngineOrder
from ranvier.cli.serving.rank_load import follow_leader

__all__ = ["main"]


def main() -> None:
    """Follow rank 0 to the end; the process leaves with the code that tells how it was."""
    configure_logging(form="text", level="INFO")
    follow_leader(EngineOrder.load(sys.stdin.read()))


if __name__ == "__main__":
    main()
