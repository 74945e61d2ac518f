"""Plain data that every room shares: conversations, events, model shapes, plans, errors.

Imports the standard library and nothing else, so it also runs in a browser. Data holds no
rendering: `plan_text` and `wording` make text, `notebook.render` makes HTML; a class names, in one
line, what `print` shows of it. Begin with `conversation` (what is asked and answered), `events`
(the stream of one answer), `model_shape` and `plan` (a model in numbers, and where its units live),
and `errors` (all that can go wrong).
"""
