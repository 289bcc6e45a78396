"""What one does with a log: ask other models the same, and compare."""
