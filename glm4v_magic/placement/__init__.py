"""Which module lives on which GPU, and the proof that it works.

Importing this package imports nothing else: planning and patching need no torch.
"""
