"""Weights in the forms of other programs: named, with the way to a folder that can be loaded.

Found by the first bytes of a file and by the names in a folder; nothing else of them is read.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.images.messages import one_line
from glm4v_magic.outside import is_endless, listed_names

__all__ = ["file_refusal", "refuse_foreign_file", "refuse_foreign_folder"]

_ARCHIVES = (
    b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c",
    b"Rar!",
)  # fmt: skip
"""First bytes of zip, gzip, bzip2, xz, zstd, 7z and rar."""
_TAR, _TAR_AT = b"ustar", 257
_OF_TORCH = (".bin", ".pt", ".pth", ".ckpt")  # zip archives, too, and to be kept as they are
_OTHERS = {".gguf": "GGUF, the format of llama.cpp", ".onnx": "ONNX"}
_GGUF = b"GGUF"
_OF_DEEPSPEED = "zero_to_fp32.py"  # it leaves this program beside the parts of its processes
_OF_FSDP = ".distcp"
_TO_FOLDER = "Give the folder that the checkpoint is in."


def file_refusal(text: str, file: Path) -> CheckpointError:
    """Return the error for a file that is given where a folder is wanted.

    Args:
        text: what the user typed.
        file: the file.
    """
    return _of_other_form(text, file) or CheckpointError(f"{text} is a file.", _TO_FOLDER)


def refuse_foreign_file(text: str, file: Path) -> None:
    """Raise CheckpointError if a file cannot be a ``config.json`` because it holds something else.

    Args:
        text: what the user typed.
        file: the file.
    """
    error = _of_other_form(text, file)
    if error is not None:
        raise error


def _of_other_form(text: str, file: Path) -> CheckpointError | None:
    head, suffix = _head(file), file.suffix.lower()
    if head.startswith(_GGUF) or suffix in _OTHERS:
        return _in_other_format(f"{text} is", ".gguf" if head.startswith(_GGUF) else suffix)
    is_archive = head.startswith(_ARCHIVES) or head[_TAR_AT:].startswith(_TAR)
    if suffix in (*_OF_TORCH, ".safetensors"):
        return CheckpointError(f"{text} is a file of weights.", _TO_FOLDER)
    if is_archive:
        return CheckpointError(f"{text} is an archive.", "Unpack it, and give the folder.")
    return None


def _head(file: Path) -> bytes:
    """Return the first bytes of a file; none of what cannot be read."""
    if is_endless(file):
        return b""
    try:
        with file.open("rb") as stream:
            return stream.read(_TAR_AT + len(_TAR))
    except OSError:  # said by what reads it
        return b""


def refuse_foreign_folder(folder: Path) -> None:
    """Raise CheckpointError if a folder without weights of its own holds those of other programs.

    Args:
        folder: a folder without safetensors files or pickles of a whole model.
    """
    names = sorted(listed_names(folder))
    where = f"{folder} holds no weights that can be loaded"
    rest = "" if "config.json" in names else (
        " Then put config.json and the tokenizer beside them, from the model that was trained."
    )  # fmt: skip
    here = shlex.quote(str(folder))
    if _OF_DEEPSPEED in names:
        raise CheckpointError(
            f"{where}, but the parts of a training with DeepSpeed.",
            f"DeepSpeed has them in parts: cd {here} && python {_OF_DEEPSPEED} . . "
            f"--safe_serialization{rest}",
        )
    part = next(_parts_of_fsdp(folder, names), None)
    if part is not None:
        merge = f"accelerate merge-weights {shlex.quote(str(part))} {here}"
        raise CheckpointError(
            f"{where}, but the parts of a training with FSDP, in {one_line(part.name)}.",
            f"FSDP has them in parts: {merge}{rest}",
        )
    for name in names:
        suffix = Path(name).suffix.lower()
        if suffix in _OTHERS:
            raise _in_other_format(f"{where}: {one_line(name)} is", suffix)


def _in_other_format(what: str, suffix: str) -> CheckpointError:
    named = f"{what} in {_OTHERS[suffix]}, which is not read here."
    return CheckpointError(named, code="take_the_original")


def _parts_of_fsdp(folder: Path, names: list[str]) -> Iterator[Path]:
    """Yield the folders with a model's parts: one within, as accelerate names it, or this one.

    The parts of an optimizer's state lie beside them, in another folder.
    """
    for each in (folder, *(folder / name for name in names if not name.startswith("optim"))):
        if listed_names(each, _OF_FSDP):
            yield each
