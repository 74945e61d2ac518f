"""A tiny model that has learnt a few answers by heart: real code and weights, foreseeable words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from shells import TINY
from torch.nn.functional import cross_entropy

from glm4v_magic.core.conversation import Conversation, Message

MOST_STEPS = 400


def roomy(folder: Path) -> Path:
    """Copy the tiny checkpoint, with room for long conversations."""
    shutil.copytree(TINY, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"seq_length": 2048}
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def talk(*texts: str) -> Conversation:
    """A conversation of these turns, the user's first."""
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[n % 2], text) for n, text in enumerate(texts)))  # type: ignore[arg-type]


def learn(engine, *lessons: tuple[str, ...]) -> None:
    """Train the model of an engine until it says the last text of each lesson after the others."""
    model, processor = engine.model, engine.processor
    end = processor.token_id("<|user|>")
    rows = []
    for *before, answer in lessons:
        prompt = processor.expand(processor.prompt_ids(talk(*before)))
        rows.append((prompt, [*processor.text_ids("\n" + answer), end]))
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), length), processor.pad_token_id)
    mask, targets = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(rows):
        whole = torch.tensor([*prompt, *answer])
        ids[row, : len(whole)] = whole
        mask[row, : len(whole)] = 1
        targets[row, len(prompt) - 1 : len(whole) - 1] = torch.tensor(answer)
    model.requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    for _ in range(MOST_STEPS):
        logits = model(input_ids=ids, attention_mask=mask).logits
        wanted = targets >= 0
        loss = cross_entropy(logits[wanted], targets[wanted])
        if loss < 0.02:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.requires_grad_(False)
    assert loss < 0.02, f"the lessons were not learnt: {loss}"
