"""What crosses the wire: requests, answers and their schema."""
