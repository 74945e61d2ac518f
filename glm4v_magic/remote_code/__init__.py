"""Make GLM-4V-9B's own (remote) code consistent on any split: in memory and on disk.

Imports `core`; torch for the model in memory, libcst for the files. Begin with
`consistency.make_consistent` (a loaded model) or `patch` (a checkpoint folder or an id of the hub,
``python -m glm4v_magic.remote_code.patch``, which needs libcst alone); `copies` finds the code and
transformers' copies of it; `source_patch`, `source_sites` and `source_flow` find and edit the
places in the source.
"""
