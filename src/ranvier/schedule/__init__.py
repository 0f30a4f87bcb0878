"""Which tokens run next, in which blocks: pure decisions."""
