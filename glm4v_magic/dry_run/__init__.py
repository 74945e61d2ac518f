"""Runs a model on virtual GPUs without its weights: finds mixed devices, memory peaks, copies.

Imports `checkpoints`, `planning`, `dispatch`, `virtual_gpus` and `core`. Begin with `run.dry_run`;
`report` is its result as plain data, `text` shows it as tables, `files` writes and reads its JSON.
"""
