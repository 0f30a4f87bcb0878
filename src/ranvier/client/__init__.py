"""A client of a running server: HTTP, OpenAI's routes, the terminal."""
