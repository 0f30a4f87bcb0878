"""The only place that traces, lowers and compiles."""
