"""Put a device map on a model: hooks at the borders of stages, copies, checks afterwards.

Imports `core`, `planning` and torch. Begin with `hooks.dispatch`; `copies` brings what all layers
share to each GPU once per step, `arrival` checks that every weight is on its device, `activity`
records which part of a model is running. `module_tree` lists what a device map can name, and
`automatic` makes transformers' own map.
"""
