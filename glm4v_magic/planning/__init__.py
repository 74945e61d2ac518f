"""Where each unit of a model lives: costs, search, plan, decision; nothing is loaded.

Imports `core`; `decision` also `hardware`, for the GPUs of this machine. No torch at import.
Begin with `plan.plan` (sizes and GPUs in, `core.plan.Plan` out); `costs` has the formulas,
`partition` the search and why it is optimal, `shortfall` the message for a model that does not fit,
`decision` the way from a user's options to a checked device map, `occupancy` a plan as parts.
"""
