"""The patch, end to end, with the transformers that runs published code: ``make nightly-patch``.

    python tests/remote_code/with_transformers_4.py

Runs in an environment of its own with transformers 4.48 and no more of this package's dependencies
than torch, accelerate and libcst. The code is the stand-in of the tests, loaded as the published
code is (``trust_remote_code=True``): from a folder, and by an id from the cache of the hub. Before
the patch some split fails; after it every split answers as one device does, padded and not, with a
step of decoding after each prompt.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

TESTS = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/stand-in-9b"


def main(asked: list[str]) -> int:
    if asked[:1] == ["splits"]:
        return splits_of(asked[1], patched=asked[2] == "patched")
    if asked[:1] == ["make"]:
        return make(Path(asked[1]))
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        environment = os.environ | {"HF_HOME": f"{home}/hf", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = str(TESTS.parent)

        def run(*command: str) -> str:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", *command],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"{command}: {done.stdout}{done.stderr}")
            return done.stdout

        folder = home / "models" / "stand-in-9b"
        run(__file__, "make", str(folder))
        repository = home / "hf/hub/models--someone--stand-in-9b"
        shutil.copytree(folder, repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        for asked_for in (str(folder), NAME):
            tell(run(__file__, "splits", asked_for, "published"))
            told = run("-m", "glm4v_magic.remote_code.patch", asked_for)
            assert "Restart every Python process" in told, told
            assert "4.48.3 is installed here" in told, told
            tell(run(__file__, "splits", asked_for, "patched"))
            again = run("-m", "glm4v_magic.remote_code.patch", asked_for)
            assert "Nothing to do" in again, again
    return 0


def tell(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


def make(folder: Path) -> int:
    """Write a checkpoint of the stand-in: random weights, its code, and a map to its classes."""
    sys.path.insert(0, str(TESTS))
    from standins import eva2clip_splits as splits

    splits.build(splits.load()).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "modeling_chatglm.ChatGLMConfig",
        "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("visual.py", "modeling_chatglm.py"):
        shutil.copy(splits.FOLDER / name, folder / name)
    return 0


def splits_of(asked_for: str, *, patched: bool) -> int:
    """Load the model on every split; exits with 1 unless it runs, or fails, as it should."""
    sys.path.insert(0, str(TESTS))
    import torch
    from standins import eva2clip_splits as splits
    from transformers import AutoModelForCausalLM

    from glm4v_magic.virtual_gpus import VirtualGPUs

    def load() -> torch.nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(asked_for, trust_remote_code=True)
        return model.eval().requires_grad_(False)

    expected = splits.answers(load(), "cpu")
    failed = []
    maps = maps_of(load())
    for number, device_map in enumerate(maps):
        model = load()
        with VirtualGPUs("4x1GiB"):
            splits.place(model, device_map)
            try:
                found = splits.answers(model)
            except RuntimeError:
                failed.append(number)
                continue
        assert all(map(torch.equal, found, expected)), device_map
    state = "patched" if patched else "as published"
    tell(f"{asked_for}, {state}: {len(failed)} of {len(maps)} splits fail\n")
    return int(bool(failed) == patched)


def maps_of(model) -> list[dict[str, int]]:
    """Every border between two units in the order of the model, both ways round, and 20 at random.

    Units are whole text layers, and parts of these.
    """
    from standins import eva2clip_splits as splits

    maps = []
    for inside_blocks in (False, True):
        names = splits.units(model, inside_blocks)
        for border in range(1, len(names)):
            for home in (0, 1):
                maps.append({n: home if i < border else 1 - home for i, n in enumerate(names)})
        chance = random.Random(0)
        maps += [{name: chance.randrange(4) for name in names} for _ in range(10)]
    return maps


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
