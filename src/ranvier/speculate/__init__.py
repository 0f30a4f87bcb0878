"""How many tokens to guess and, on the host, which: pure arithmetic on lists of tokens."""
