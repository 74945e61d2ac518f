"""The notebook: magics, commands, settings, completion, and everything that is shown in a cell.

The only room that imports IPython and ipywidgets, and the only one that may say ``%glm4v`` or
``--option``. Begin with `magics` (a cell arrives here) and `commands`, one module for each group;
`live` shows an answer while it comes, `render` turns plain data into HTML and text, `widgets` are
live views, `next_steps` words what to do after an error.
"""
