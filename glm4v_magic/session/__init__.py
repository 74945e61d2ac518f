"""A model in use and its chats: opens an engine, streams answers as events, keeps conversations.

Imports everything below it: `mapping`, `calls`, `engines`, `checkpoints`, `planning`, `core`. Begin
with `session.Session` (what Python users hold). It is made of layers: `model_in_use` holds the
model, `questions` asks it (`stream`) and keeps chats, and on them stand `maps`, `evaluations`,
`comparisons` and `looks_inside`. `opening` opens the engine of a chosen model, `chats` and
`chat_file` keep and store conversations, `preview` shows what would be sent.
"""
