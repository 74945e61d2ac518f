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

from training.native.configuration import CHAT_TEMPLATE, checkpoint_config
from training.native.export import export, load_network
from training.native.heads import DenseHeads
from training.native.network import Network, initialise
from training.native.questions import CLIP_KINDS, IMAGE_KINDS, PAIR_KINDS
from training.native.tokenizer import load, save, trained
from training.native.tower import rescale_tower, train_tower
from training.native.whole import train_whole

__all__ = ["main"]

_HEADS = "heads.pt"
_KINDS = {*CLIP_KINDS, *(kind for kinds in (IMAGE_KINDS, PAIR_KINDS) for kind in kinds["english"])}


def main() -> None:
    """Make the tokenizer, train both stages, write the folder."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    dtype = getattr(torch, options.dtype)
    options.out.mkdir(parents=True, exist_ok=True)
    network, heads = _begun(options)
    if options.tower:
        saved = torch.load(options.tower, weights_only=True)
        network.model.visual.load_state_dict(saved["tower"])
        heads.load_state_dict(saved["heads"])
    elif options.minutes_tower:
        train_tower(
            network, heads, functools.partial(_save_tower, options.out, network, heads),
            minutes=options.minutes_tower, seed=options.seed,
            batch=options.batch_tower, learning_rate=options.rate_tower, dtype=dtype,
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
        chinese=options.chinese,
    )  # fmt: skip
    print(f"wrote {options.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the checkpoint")
    add("--tower", type=Path, help="skip stage A: tower and heads from this file")
    add("--from", dest="start", type=Path, help="begin with the weights of this folder")
    add(
        "--more", type=_factor, nargs="+", default=[], metavar="KIND=FACTOR",
        help="ask these kinds that much more often in stage B",
    )  # fmt: skip
    add("--chinese", type=float, default=0.15, help="share of Chinese conversations in stage B")
    add("--minutes-tower", type=float, default=16, help="length of stage A")
    add("--minutes-whole", type=float, default=70, help="length of stage B")
    add("--seed", type=int, default=0)
    add("--vocabulary", type=int, default=704, help="size of the tokenizer")
    add("--batch-tower", type=int, default=64)
    add("--batch-whole", type=int, default=32)
    add("--length", type=int, default=112, help="tokens of a conversation besides its images")
    add("--rate-tower", type=float, default=2e-3, help="peak learning rate of stage A")
    add("--rate-whole", type=float, default=1.5e-3, help="peak learning rate of stage B")
    add("--dtype", choices=("bfloat16", "float32"), default="float32", help="of the arithmetic")
    add("--threads", type=int, default=2)
    return parser


def _factor(text: str) -> tuple[str, float]:
    """``box=3`` -> ("box", 3.0)."""
    kind, _, factor = text.partition("=")
    if kind not in _KINDS:
        raise argparse.ArgumentTypeError(f"no kind {kind!r}; there are {', '.join(sorted(_KINDS))}")
    return kind, float(factor)


def _begun(options: argparse.Namespace) -> tuple[Network, DenseHeads]:
    """Return a network as it begins, its tokenizer in the folder of the run."""
    if options.start:
        tokenizer = load(options.start)
        tokenizer.chat_template = CHAT_TEMPLATE
        save(tokenizer, options.out)
        network = load_network(options.start)
    else:
        save(trained(options.seed, options.vocabulary), options.out)
        network = Network(checkpoint_config(load(options.out).get_vocab()))
        initialise(network, torch.Generator().manual_seed(options.seed))
    heads = DenseHeads(*network.widths)
    if options.start and (options.start / _HEADS).exists():
        heads.load_state_dict(torch.load(options.start / _HEADS, weights_only=True))
    return network, heads


def _save(folder: Path, weights: dict[str, Tensor], head_weights: dict[str, Tensor]) -> None:
    """Write the checkpoint, and beside it the heads for a run that goes on from it."""
    export(weights, folder)
    torch.save(head_weights, folder / _HEADS)


def _save_tower(folder: Path, network: Network, heads: DenseHeads) -> None:
    tower = network.model.visual.state_dict()
    torch.save({"tower": tower, "heads": heads.state_dict()}, folder / "tower.pt")


if __name__ == "__main__":
    main()
