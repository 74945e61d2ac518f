"""GLM-4.1V and its successors, through transformers' own classes.

No remote code and no torchvision. `families` lists the model types; `architecture` plans them,
`processing` writes their prompts, `checkpoint` loads them.
"""
