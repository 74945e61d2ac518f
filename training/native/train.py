"""Train the second demo model from scratch and write its checkpoint folder.

``python -m training.native.train --out DIR`` runs both stages; ``--tower FILE`` starts from a tower
that an earlier run left in ``DIR/tower.pt``; ``--from FOLDER`` goes on from a trained checkpoint.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch
from torch import Tensor

from training.native.configuration import CHAT_TEMPLATE, LAYERS, checkpoint_config
from training.native.export import export, load_network
from training.native.heads import DenseHeads
from training.native.network import Network, initialise
from training.native.questions import CLIP_KINDS, IMAGE_KINDS, PAIR_KINDS
from training.native.tokenizer import load, save, trained
from training.native.tower import rescale_tower, train_tower
from training.native.whole import train_whole
from training.options import parser as shared_parser

__all__ = ["main"]

_HEADS = "heads.pt"
_KINDS = {*CLIP_KINDS, *(kind for kinds in (IMAGE_KINDS, PAIR_KINDS) for kind in kinds["english"])}


def main() -> None:
    """Make the tokenizer, train both stages, write the folder."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    dtype = getattr(torch, options.dtype)
    if options.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # on the matrix units, which are fast
    options.out.mkdir(parents=True, exist_ok=True)
    network, heads = _begun(options)
    if options.tower:
        saved = torch.load(options.tower, weights_only=True, map_location="cpu")
        network.model.visual.load_state_dict(saved["tower"])
        heads.load_state_dict(saved["heads"])
    elif options.minutes_tower:
        train_tower(
            network, heads, functools.partial(_save_tower, options.out, network, heads),
            minutes=options.minutes_tower, seed=options.seed,
            batch=options.batch_tower, learning_rate=options.rate_tower, dtype=dtype,
            workers=options.workers,
        )  # fmt: skip
    if options.minutes_whole == 0:
        return
    if not options.start:
        rescale_tower(network, options.seed)
    train_whole(
        network, heads, options.out, functools.partial(_save, options.out),
        minutes=options.minutes_whole, seed=options.seed, batch=options.batch_whole,
        length=options.length, learning_rate=options.rate_whole, dtype=dtype,
        curriculum_from=0.5 if options.start else 0.0, more=dict(options.more),
        chinese=options.chinese, workers=options.workers,
    )  # fmt: skip
    print(f"wrote {options.out}")


def _parser() -> argparse.ArgumentParser:
    parser = shared_parser(__doc__, sorted(_KINDS), minutes_whole=70, chinese=0.15)
    add = parser.add_argument
    add("--vocabulary", type=int, default=704, help="size of the tokenizer")
    add("--layers", type=int, default=LAYERS, help="of the text part; with --from, some may be new")
    add("--length", type=int, default=112, help="tokens of a conversation besides its images")
    return parser


def _begun(options: argparse.Namespace) -> tuple[Network, DenseHeads]:
    """Return a network as it begins, its tokenizer in the folder of the run."""
    if options.start:
        tokenizer = load(options.start)
        tokenizer.chat_template = CHAT_TEMPLATE
        save(tokenizer, options.out)
        network = load_network(options.start, options.layers)
    else:
        save(trained(options.seed, options.vocabulary), options.out)
        network = Network(checkpoint_config(load(options.out).get_vocab(), options.layers))
        initialise(network, torch.Generator().manual_seed(options.seed))
    heads = DenseHeads(*network.widths)
    if options.start and (options.start / _HEADS).exists():
        saved = torch.load(options.start / _HEADS, weights_only=True, map_location="cpu")
        heads.load_state_dict(saved)
    return network.to(options.device), heads.to(options.device)


def _save(folder: Path, weights: dict[str, Tensor], head_weights: dict[str, Tensor]) -> None:
    """Write the checkpoint, and beside it the heads for a run that goes on from it."""
    export(weights, folder)
    torch.save(head_weights, folder / _HEADS)


def _save_tower(folder: Path, network: Network, heads: DenseHeads) -> None:
    tower = network.model.visual.state_dict()
    torch.save({"tower": tower, "heads": heads.state_dict()}, folder / "tower.pt")


if __name__ == "__main__":
    main()
