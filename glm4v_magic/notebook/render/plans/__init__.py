"""Plans and dry runs: which GPU holds what, drawn as bars and told in tables; the part that runs.

`device_map` and `plan` draw with the standard library alone, by `render.bars`.
"""
