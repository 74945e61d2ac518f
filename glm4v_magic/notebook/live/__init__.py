"""What is on the screen while a cell runs: one answer, or many rows, and the Stop button."""
