"""One prompt over many items: the prompt of each row, batches, results, and answers from a cache.

Imports `calls`, `engines` and `core`. Begin with `items` (a list, folder, Series or DataFrame ->
rows) and `runner` (asks them in batches and yields events); `results` makes the list or table that
is returned, `answer_cache` keeps answers for the next run.
"""
