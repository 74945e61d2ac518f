"""One prompt over many items: what each row is asked, batches, results, answers given again.

Imports `calls`, `engines` and `core`. Begin with `items` (a list, folder, Series or DataFrame ->
rows) and `runner` (asks them in batches and yields events); `results` makes the list or table that
is returned, `answer_cache` keeps answers for the next run.
"""
