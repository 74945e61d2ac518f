"""Calls to a model: prompt with ``{{expressions}}``, images and options, checked and put together.

Imports `images`, `checkpoints` and `core`; no IPython and no torch. Begin with `call` (arguments ->
request, generation -> answer); `prompt` expands expressions, `forms` finds JSON or code in an
answer and checks it. `boxes` finds boxes and points, `tags` takes the tags around them out of the
text, `answer` draws them.
"""
