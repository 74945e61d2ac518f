"""GLM-4V-9B (2024): everything that is particular to this checkpoint.

`layout` (names, shapes, checks; no torch) · `configuration` · `vision` and `text` (modules) ·
`modeling` (the model) · `weights` (published names) · `processing` (prompt, pixels, text) ·
`checkpoint` (what the rest of the package sees).
"""
