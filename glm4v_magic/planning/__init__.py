"""Where each unit of a model lives: costs, search, plan, decision; nothing is loaded.

Works on the data that it is given: sizes, names, GPUs. Imports `core`, and `outside` for files; no
torch, and it asks no machine, so that a plan can be made where there is neither.
Begin with `plan.plan` (sizes and GPUs in, `core.plan.Plan` out); `costs` has the formulas,
`partition` the search and why it is optimal, `shortfall` the message for a model that does not fit,
`decision` the way from a user's options to a checked device map, `occupancy` a plan as parts.
"""
