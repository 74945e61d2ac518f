"""Decides where each unit of a model lives: costs, search, plan, decision. Nothing is loaded.

Works only on the data that it is given: sizes, names, GPUs. Imports `core`, and `outside` for
files; it needs neither torch nor GPUs, so a plan can be made anywhere. Begin with `plan.plan`
(sizes and GPUs in, `core.plan.Plan` out); `costs` has the formulas, `partition` the search and why
it is optimal, `shortfall` the message for a model that does not fit, `decision` leads from a user's
options to a checked device map, `occupancy` divides a plan into parts to show.
"""
