"""Look into a loaded model: why it gave an answer, token by token.

Everything is computed when it is asked for, by forwards over prompt and answer through the loaded
model as it is, whatever its devices, offload and quantisation; normal answers cost nothing more.
Imports `engines`, `checkpoints` and `core`, and torch; `tracing` alone nnsight, if it is installed,
to change what the model computes. Begin with `inspection`, which a caller gets through `entry`;
`reading` is the forward with its hooks, `attention`, `covering` and `gradients` are one method
each, `labelled`, `grids`, `lens` and `inspected_token` the data that they return, `lending` the
engine that all of them need; `maps` keeps where on an image a token comes from by each of them, and
`comparison` has two answers side by side.
"""
