"""Common GPUs by name: memory, its bandwidth, and how fast they multiply matrices.

Sources, named in each line of the table: data sheets (``sheet``) and architecture white papers
(``paper``) of the makers. Where these give a range, the faster variant is taken, because the
figures are upper bounds.

memory
    GiB that torch reports, as its out-of-memory messages quote it ("GPU 0 has a total capacity of
    14.74 GiB"): what error correction and the driver take is gone already.
bandwidth
    GB/s, powers of 1000: bus width x memory clock x 2.
products
    TFLOPS of dense matrices in float16, summed in float32, as PyTorch does it; with tensor cores
    where there are any. Consumer GPUs do that at half the rate of float16 accumulation.
multiprocessors
    Streaming multiprocessors that are switched on; they tell how much memory a CUDA context takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["GPU_MODELS", "GPUModel", "capability_of", "gpu_model"]


@dataclass(frozen=True, slots=True)
class GPUModel:
    """A model of GPU.

    Attributes:
        name: name as people write it.
        marks: words of a name that tell the model.
        memory_gib: memory in GiB, as torch reports it.
        bandwidth: bytes per second between the GPU and its memory.
        flops: operations per second in products of matrices in half precision.
        capability: CUDA's compute capability; ``None`` for other makers' GPUs.
        multiprocessors: number of streaming multiprocessors; ``None`` for other makers' GPUs.
        source: where the figures are from.
        hints: words that tell it from others with the same marks: how it is connected.
    """

    name: str
    marks: tuple[str, ...]
    memory_gib: float
    bandwidth: int
    flops: float
    capability: tuple[int, int] | None
    multiprocessors: int | None
    source: str
    hints: tuple[str, ...] = ()

    @property
    def memory_bytes(self) -> int:
        """`memory_gib` in bytes."""
        return int(self.memory_gib * 2**30)


# name; marks; hints; GiB; GB/s; TFLOPS; compute capability; multiprocessors; source
_TABLE = """
P100           ; p100          ;          ; 15.89 ;  732 ;   21.2 ; 6.0  ; 56  ; sheet Tesla P100
V100-16GB      ; v100          ; 16gb     ; 15.77 ;  900 ;  125   ; 7.0  ; 80  ; sheet V100
V100-32GB      ; v100          ; 32gb     ; 31.73 ;  900 ;  125   ; 7.0  ; 80  ; sheet V100
TITAN V        ; titan v       ;          ; 11.77 ;  653 ;  110   ; 7.0  ; 80  ; sheet TITAN V
T4             ; t4            ;          ; 14.56 ;  320 ;   65   ; 7.5  ; 40  ; paper Turing
RTX 2060       ; 2060          ; 6gb      ;  5.79 ;  336 ;   25.8 ; 7.5  ; 30  ; paper Turing
RTX 2060 12GB  ; 2060          ; 12gb     ; 11.76 ;  336 ;   28.7 ; 7.5  ; 34  ; paper Turing
RTX 2070       ; 2070          ;          ;  7.78 ;  448 ;   29.9 ; 7.5  ; 36  ; paper Turing
RTX 2080       ; 2080          ;          ;  7.78 ;  448 ;   42.4 ; 7.5  ; 46  ; paper Turing
RTX 2080 Ti    ; 2080 ti       ;          ; 10.75 ;  616 ;   56.9 ; 7.5  ; 68  ; paper Turing
TITAN RTX      ; titan rtx     ;          ; 23.64 ;  672 ;  130.5 ; 7.5  ; 72  ; paper Turing
Quadro RTX 6000; quadro 6000   ;          ; 23.64 ;  672 ;  130.5 ; 7.5  ; 72  ; paper Turing
Quadro RTX 8000; quadro 8000   ;          ; 47.45 ;  672 ;  130.5 ; 7.5  ; 72  ; sheet RTX 8000
A100-40GB      ; a100          ; 40gb     ; 39.38 ; 1555 ;  312   ; 8.0  ; 108 ; sheet A100
A100-80GB      ; a100          ; 80gb sxm4; 79.15 ; 2039 ;  312   ; 8.0  ; 108 ; sheet A100
A100-80GB PCIe ; a100          ; 80gb pcie; 79.15 ; 1935 ;  312   ; 8.0  ; 108 ; sheet A100
A30            ; a30           ;          ; 23.50 ;  933 ;  165   ; 8.0  ; 56  ; sheet A30
A2             ; a2            ;          ; 14.54 ;  200 ;   18   ; 8.6  ; 10  ; sheet A2
A10            ; a10           ;          ; 22.02 ;  600 ;  125   ; 8.6  ; 72  ; sheet A10
A10G           ; a10g          ;          ; 21.98 ;  600 ;   70   ; 8.6  ; 80  ; sheet A10G
A16            ; a16           ;          ; 14.54 ;  200 ;   17.9 ; 8.6  ; 10  ; sheet A16, a 4th
A40            ; a40           ;          ; 44.35 ;  696 ;  149.7 ; 8.6  ; 84  ; sheet A40
RTX A2000      ; a2000         ;          ; 11.63 ;  288 ;   31.9 ; 8.6  ; 26  ; sheet RTX A2000
RTX A4000      ; a4000         ;          ; 15.72 ;  448 ;   76.7 ; 8.6  ; 48  ; sheet RTX A4000
RTX A5000      ; a5000         ;          ; 23.67 ;  768 ;  111.1 ; 8.6  ; 64  ; sheet RTX A5000
RTX A6000      ; a6000         ;          ; 47.43 ;  768 ;  154.8 ; 8.6  ; 84  ; sheet RTX A6000
RTX 3060       ; 3060          ; 12gb     ; 11.75 ;  360 ;   25.6 ; 8.6  ; 28  ; paper GA102
RTX 3060 8GB   ; 3060          ; 8gb      ;  7.78 ;  240 ;   25.6 ; 8.6  ; 28  ; paper GA102
RTX 3060 Ti    ; 3060 ti       ;          ;  7.78 ;  448 ;   32.4 ; 8.6  ; 38  ; paper GA102
RTX 3070       ; 3070          ;          ;  7.78 ;  448 ;   40.6 ; 8.6  ; 46  ; paper GA102
RTX 3070 Ti    ; 3070 ti       ;          ;  7.78 ;  608 ;   43.5 ; 8.6  ; 48  ; paper GA102
RTX 3080       ; 3080          ; 10gb     ;  9.76 ;  760 ;   59.5 ; 8.6  ; 68  ; paper GA102
RTX 3080 12GB  ; 3080          ; 12gb     ; 11.76 ;  912 ;   61.3 ; 8.6  ; 70  ; paper GA102
RTX 3080 Ti    ; 3080 ti       ;          ; 11.76 ;  912 ;   68.2 ; 8.6  ; 80  ; paper GA102
RTX 3090       ; 3090          ;          ; 23.67 ;  936 ;   71   ; 8.6  ; 82  ; paper GA102
RTX 3090 Ti    ; 3090 ti       ;          ; 23.67 ; 1008 ;   80   ; 8.6  ; 84  ; paper GA102
L4             ; l4            ;          ; 22.03 ;  300 ;  121   ; 8.9  ; 58  ; sheet L4
L40            ; l40           ;          ; 44.39 ;  864 ;  181   ; 8.9  ; 142 ; sheet L40
L40S           ; l40s          ;          ; 44.39 ;  864 ;  366   ; 8.9  ; 142 ; sheet L40S
RTX 4060       ; 4060          ;          ;  7.62 ;  272 ;   30.2 ; 8.9  ; 24  ; paper Ada
RTX 4060 Ti    ; 4060 ti       ;          ; 15.59 ;  288 ;   44.1 ; 8.9  ; 34  ; paper Ada
RTX 4070       ; 4070          ;          ; 11.60 ;  504 ;   58.3 ; 8.9  ; 46  ; paper Ada
RTX 4070 SUPER ; 4070 super    ;          ; 11.60 ;  504 ;   71   ; 8.9  ; 56  ; paper Ada
RTX 4070 Ti    ; 4070 ti       ;          ; 11.60 ;  504 ;   80.2 ; 8.9  ; 60  ; paper Ada
RTX 4070 Ti SUPER; 4070 ti super;         ; 15.59 ;  672 ;   88.2 ; 8.9  ; 66  ; paper Ada
RTX 4080       ; 4080          ;          ; 15.59 ;  717 ;   97.5 ; 8.9  ; 76  ; paper Ada
RTX 4080 SUPER ; 4080 super    ;          ; 15.59 ;  736 ;  104.4 ; 8.9  ; 80  ; paper Ada
RTX 4090       ; 4090          ;          ; 23.52 ; 1008 ;  165.2 ; 8.9  ; 128 ; paper Ada
RTX 4000 Ada   ; 4000 ada      ;          ; 19.56 ;  360 ;  106.9 ; 8.9  ; 48  ; sheet RTX 4000 Ada
RTX 4000 SFF Ada; 4000 sff ada ;          ; 19.56 ;  280 ;   76.7 ; 8.9  ; 48  ; sheet RTX 4000 SFF
RTX 5000 Ada   ; 5000 ada      ;          ; 31.49 ;  576 ;  261.1 ; 8.9  ; 100 ; sheet RTX 5000 Ada
RTX 6000 Ada   ; 6000 ada      ;          ; 47.37 ;  960 ;  364.2 ; 8.9  ; 142 ; sheet RTX 6000 Ada
H100           ; h100          ; sxm hbm3 ; 79.10 ; 3352 ;  989   ; 9.0  ; 132 ; sheet H100
H100 PCIe      ; h100          ; pcie     ; 79.10 ; 2039 ;  756   ; 9.0  ; 114 ; sheet H100 PCIe
H100 NVL       ; h100 nvl      ;          ; 93.00 ; 3938 ;  989   ; 9.0  ; 132 ; sheet H100 NVL
H20            ; h20           ;          ; 95.00 ; 4023 ;  148   ; 9.0  ; 78  ; sheet H20
H200           ; h200          ;          ; 139.72; 4917 ;  989   ; 9.0  ; 132 ; sheet H200
GH200          ; gh200         ; 480gb    ; 94.50 ; 4023 ;  989   ; 9.0  ; 132 ; sheet GH200
GH200-144GB    ; gh200         ; 144g 144gb; 139.70; 4917 ;  989   ; 9.0  ; 132 ; sheet GH200
B200           ; b200          ;          ; 178.00; 8184 ; 2250   ; 10.0 ; 148 ; sheet DGX B200
RTX 5060 Ti    ; 5060 ti       ;          ; 15.47 ;  448 ;   47.4 ; 12.0 ; 36  ; paper Blackwell
RTX 5070       ; 5070          ;          ; 11.50 ;  672 ;   61.7 ; 12.0 ; 48  ; paper Blackwell
RTX 5070 Ti    ; 5070 ti       ;          ; 15.47 ;  896 ;   87.9 ; 12.0 ; 70  ; paper Blackwell
RTX 5080       ; 5080          ;          ; 15.47 ;  960 ;  112.6 ; 12.0 ; 84  ; paper Blackwell
RTX 5090       ; 5090          ;          ; 31.36 ; 1792 ;  209.5 ; 12.0 ; 170 ; paper Blackwell
RTX PRO 6000   ; pro 6000      ;          ; 94.97 ; 1792 ;  503.8 ; 12.0 ; 188 ; sheet RTX PRO 6000
MI210          ; mi210         ;          ; 63.98 ; 1638 ;  181   ;      ;     ; sheet MI210
MI300X         ; mi300x        ;          ; 191.5 ; 5325 ; 1307   ;      ;     ; sheet MI300X
RX 7900 XTX    ; 7900 xtx      ;          ; 23.98 ;  960 ;  122.8 ;      ;     ; sheet RX 7900 XTX
"""

_OTHERS = frozenset(
    {"ada", "d", "grid", "laptop", "max", "mig", "mobile", "nvl", "sff", "super", "ti", "vgpu"}
)
"""Words with which a name means another model than without them, or a part of a GPU."""

_WORD = re.compile(r"[a-z]+[0-9]+[a-z]*|[0-9]+[a-z]+|[0-9]+|[a-z]+", re.ASCII)
_JOINED = re.compile(r"(?:rtx|gtx|titan|quadro)(?=[0-9])", re.ASCII)
_SUFFIXED = re.compile(r"([0-9]{4})(ti|super|d)?(super)?", re.ASCII)
_SHARE = re.compile(r"[0-9]+[a-hj-z]?[aqc]|[0-9]+c", re.ASCII)  # "A10-4Q": a virtual GPU


_ALIKE = 0.15  # reported and nominal sizes of a GPU differ by less


def gpu_model(name: str, memory_bytes: int | None = None) -> GPUModel | None:
    """Return the model of GPU that a name tells; ``None`` if it is unknown, or a part of a GPU.

    Args:
        name: as NVML, torch or people write it: ``Tesla T4``, ``NVIDIA A100-SXM4-80GB``,
            ``RTX-3090``, ``4090``.
        memory_bytes: memory of the GPU, where models differ in nothing else; ``None`` takes the
            first in the table.
    """
    words = _words(name)
    if any(_SHARE.fullmatch(word) for word in words):
        return None
    found = [model for model in _matching(words) if not (words & _OTHERS) - {*model.marks}]
    if not found:
        return None

    def unlike(model: GPUModel) -> tuple[float, float]:
        told = len(words.intersection(model.hints))
        size = 0.0 if memory_bytes is None else abs(memory_bytes / model.memory_bytes - 1)
        return -told, 0.0 if size < _ALIKE else size

    return min(found, key=unlike)


def capability_of(name: str) -> tuple[int, int] | None:
    """Return the compute capability of a GPU by its name; ``None`` if the name does not tell."""
    capabilities = {model.capability for model in _matching(_words(name))}
    return capabilities.pop() if len(capabilities) == 1 else None


def _matching(words: frozenset[str]) -> list[GPUModel]:
    """Return the models whose marks are among `words`, those with the most marks."""
    found = [model for model in GPU_MODELS if words.issuperset(model.marks)]
    most = max((len(model.marks) for model in found), default=0)
    return [model for model in found if len(model.marks) == most]


def _words(name: str) -> frozenset[str]:
    words: set[str] = set()
    for word in _WORD.findall(_JOINED.sub(lambda match: match[0] + " ", name.lower())):
        match = _SUFFIXED.fullmatch(word)  # "3090ti"
        words.update(filter(None, match.groups()) if match else [word])
    return frozenset(words)


def _read() -> Iterator[GPUModel]:
    for line in _TABLE.strip().splitlines():
        name, marks, hints, memory, bandwidth, flops, capability, multiprocessors, source = (
            cell.strip() for cell in line.split(";")
        )
        major, _, minor = capability.partition(".")
        yield GPUModel(
            name,
            tuple(marks.split()),
            float(memory),
            int(bandwidth) * 10**9,
            float(flops) * 1e12,
            (int(major), int(minor)) if capability else None,
            int(multiprocessors) if multiprocessors else None,
            source,
            tuple(hints.split()),
        )


GPU_MODELS = tuple(_read())
"""The table."""
