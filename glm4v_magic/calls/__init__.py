"""What is asked: prompts with their ``{{expressions}}``, images and options as one checked call.

Imports `images`, `checkpoints` and `core`; no IPython and no torch. Begin with `call` (arguments ->
what is asked); `prompt` expands expressions, `forms` finds JSON or code in an answer and checks it.
`boxes` finds boxes and points, `tags` takes the tags around them out of the text, `answer` draws
them.
"""
