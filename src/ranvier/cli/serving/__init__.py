"""The two processes of a server: their start, their end, and what they say."""
