"""GLM-4V-9B (2024): everything particular to this checkpoint.

`layout` (names, shapes, checks; no torch) · `units` (sizes for plans) · `configuration` · `vision`
and `text` (modules) · `modeling` (the model) · `weights` (published names) · `processing` (prompt,
pixels, text) · `architecture` and `checkpoint` (what the rest of the package uses).
"""
