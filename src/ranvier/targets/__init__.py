"""What each target can do."""
