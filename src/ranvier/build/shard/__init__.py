"""One model over several ranks: what each rank holds, and the program that each runs."""
