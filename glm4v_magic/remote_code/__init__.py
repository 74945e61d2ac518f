"""Make GLM-4V-9B's own (remote) code consistent on any split: in memory and on disk.

Imports `core`; torch for the model in memory, libcst for the files. Begin with
`consistency.make_consistent` (a loaded model) or `patch` (a checkpoint folder,
``python -m glm4v_magic.remote_code.patch``); `source_patch`, `source_sites` and `source_flow` find
and edit the places in the source.
"""
