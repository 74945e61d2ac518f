"""Plans and dry runs: which GPU holds what, as bars and tables; the part that is running.

`device_map` and `plan` draw with the standard library alone, by `render.bars`.
"""
