"""Measure a model in this process, a running server, or the start of one."""
