"""Calls to a model: prompt with ``{{expressions}}``, images and options, checked and put together.

Imports `inspect`, `engines`, `images`, `checkpoints` and `core`; no IPython, and torch only through
them. Begin with `call` (arguments -> request, generation -> answer); `asking` is the one loop over
what an engine says, `refusals` has what a model does not take, `prompt` expands expressions,
`forms` finds JSON or code in an answer and checks it, `tasks` has published prompts. `boxes` finds
boxes and points, `tags` takes the tags around them out of the text, `answer` draws them.
"""
