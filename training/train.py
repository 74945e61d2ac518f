"""Train the demo model from scratch and write its checkpoint folder.

``python -m training.train --out DIR`` runs both stages; ``--tower FILE`` starts from a tower
that an earlier run left in ``DIR/tower.pt``; ``--from FOLDER`` begins with the weights of a
trained checkpoint, so that both stages go on from what it knows. A finished run leaves the
published files in DIR, and the throw-away heads in ``DIR/heads.pt`` for a run from there.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch
from torch import Tensor

from training.batches import image_batches, stream
from training.configuration import checkpoint_config
from training.continuing import carry_over
from training.export import export, load_network
from training.heads import DenseHeads
from training.network import Network, initialise
from training.options import parser as shared_parser
from training.questions import KINDS
from training.tokenizer import RANKS, Tokenizer, corpus_words, train_ranks
from training.tower import train_tower
from training.whole import rescale_tower, train_whole

__all__ = ["main"]

_HEADS = "heads.pt"


def main() -> None:
    """Make the tokenizer, train both stages, write the folder."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(options)
    network, heads = _fresh(tokenizer, options)
    if options.tower:
        _load_tower(options.tower, network, heads)
    elif options.minutes_tower:
        train_tower(
            network, heads, minutes=options.minutes_tower, seed=options.seed,
            batch=options.batch_tower, learning_rate=options.rate_tower, dtype=dtype,
            workers=options.workers,
        )  # fmt: skip
        _save_tower(options.out / "tower.pt", network, heads)
    if options.minutes_whole == 0:
        return
    if not options.start:
        with stream(image_batches, options.seed, 64) as batches:
            images = torch.from_numpy(batches.next(0).images).to(options.device)
        rescale_tower(network, images)
    train_whole(
        network, heads, options.out / "tokenizer.model",
        functools.partial(_save, options.out, len(tokenizer.ranks)),
        minutes=options.minutes_whole, seed=options.seed, batch=options.batch_whole,
        length=options.length, learning_rate=options.rate_whole, dtype=dtype,
        curriculum_from=0.5 if options.start else 0.0, more=dict(options.more),
        chinese=options.chinese, alike=options.alike, workers=options.workers,
    )  # fmt: skip
    print(f"wrote {options.out}")


def _parser() -> argparse.ArgumentParser:
    parser = shared_parser(__doc__, KINDS, minutes_whole=45, chinese=0.35)
    add = parser.add_argument
    add(
        "--alike", type=float, default=0.0,
        help="share of images in stage B whose shapes differ in colour only",
    )  # fmt: skip
    add("--ranks", type=int, default=RANKS, help="size of the tokenizer without special tokens")
    add("--length", type=int, default=96, help="ids in a row of conversation")
    add("--compile", action="store_true", help="fuse operations first (needs a C++ compiler)")
    return parser


def _tokenizer(options: argparse.Namespace) -> Tokenizer:
    tokenizer = Tokenizer(train_ranks(corpus_words(options.seed), options.ranks))
    tokenizer.save(options.out / "tokenizer.model")
    return tokenizer


def _fresh(tokenizer: Tokenizer, options: argparse.Namespace) -> tuple[Network, DenseHeads]:
    torch.manual_seed(options.seed)
    config = checkpoint_config(len(tokenizer.ranks))
    network = Network(config)
    initialise(network, torch.Generator().manual_seed(options.seed))
    if options.start:
        known = Tokenizer.load(options.start / "tokenizer.model")
        carry_over(load_network(options.start), known, network, tokenizer)
    if options.compile:
        network.transformer.encoder.compile(dynamic=False)
        network.transformer.vision.compile(dynamic=False)
    heads = DenseHeads(config["vision_config"]["hidden_size"], config["hidden_size"])
    if options.start and (options.start / _HEADS).exists():
        heads.load_state_dict(torch.load(options.start / _HEADS, weights_only=True))
    return network.to(options.device), heads.to(options.device)


def _save(
    folder: Path, ranks: int, weights: dict[str, Tensor], head_weights: dict[str, Tensor]
) -> None:
    """Write the checkpoint, and beside it the heads for a run that goes on from it."""
    export(weights, ranks, folder)
    torch.save(head_weights, folder / _HEADS)


def _save_tower(path: Path, network: Network, heads: DenseHeads) -> None:
    tower = network.transformer.vision.state_dict()
    torch.save({"tower": tower, "heads": heads.state_dict()}, path)


def _load_tower(path: Path, network: Network, heads: DenseHeads) -> None:
    saved = torch.load(path, weights_only=True)
    network.transformer.vision.load_state_dict(saved["tower"])
    heads.load_state_dict(saved["heads"])


if __name__ == "__main__":
    main()
