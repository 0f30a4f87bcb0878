"""One module a command, imported only when the command line names it."""
