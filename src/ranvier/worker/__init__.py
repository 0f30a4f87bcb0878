"""Processes that work on foreign data under limits that the system keeps."""
