"""Live output while a cell runs: one answer or many rows, with the Stop button."""
