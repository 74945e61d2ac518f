"""Live output while a cell runs: one answer or many rows, and the Stop button."""
