"""Which operators of PyTorch take tensors of several devices, and why.

Names are those of PyTorch's operator database. What is not listed takes none. The expectation comes
from PyTorch's sources, and `test_virtual_gpus_rules_of_torch` checks the rules below it against
``native_functions.yaml`` and the checks in PyTorch's own binary.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FOR_THE_CPU_ALONE", "NOT_EQUAL", "OTHERWISE_ON_CUDA", "TAKEN", "Taken"]

CPU, CPU_SCALAR, GPU, GPU_SCALAR = "cpu", "0-dim on the cpu", "another gpu", "0-dim on another gpu"
EVERYWHERE = frozenset({CPU, CPU_SCALAR, GPU, GPU_SCALAR})


@dataclass(frozen=True)
class Taken:
    """Operators that take tensors at the same places, for the same reason."""

    reason: str
    places: frozenset[str]
    operators: str

    @property
    def names(self) -> list[str]:
        return self.operators.split()


TAKEN = (
    Taken(
        "TensorIterator takes one 0-dim tensor of the CPU (allow_cpu_scalars)",
        frozenset({CPU_SCALAR}),
        """
        __radd__ __rdiv__ __rmod__ __rmul__ __rpow__ __rsub__ add addcmul allclose atan2 copysign
        dist div eq float_power floor_divide fmax fmin fmod ge gt heaviside hypot isclose ldexp le
        lerp
        logical_and logical_or logical_xor lt max maximum min minimum mul ne
        nn.functional.binary_cross_entropy_with_logits nn.functional.gaussian_nll_loss
        nn.functional.l1_loss nn.functional.margin_ranking_loss nn.functional.mse_loss
        nn.functional.smooth_l1_loss nn.functional.soft_margin_loss pow remainder rsub
        special.chebyshev_polynomial_t special.chebyshev_polynomial_u special.chebyshev_polynomial_v
        special.chebyshev_polynomial_w special.hermite_polynomial_h special.hermite_polynomial_he
        special.laguerre_polynomial_l special.legendre_polynomial_p
        special.shifted_chebyshev_polynomial_t special.shifted_chebyshev_polynomial_u
        special.shifted_chebyshev_polynomial_v special.shifted_chebyshev_polynomial_w
        special.xlog1py special.zeta sub true_divide xlogy
        """,
    ),
    Taken(
        "only shapes are read, or each tensor is treated alone",
        EVERYWHERE,
        """
        atleast_1d atleast_2d atleast_3d broadcast_tensors expand_as reshape_as resize_as_ view_as
        """,
    ),
    Taken(
        "the source is copied into a clone, or to its device",
        EVERYWHERE,
        """
        as_strided_scatter diagonal_scatter select_scatter slice_scatter to
        """,
    ),
    Taken(
        "a 0-dim tensor is read with item()",
        EVERYWHERE,
        """
        index_fill linspace logspace masked_fill narrow
        """,
    ),
    Taken(
        "where() moves 0-dim tensors to the first GPU among its operands",
        frozenset({CPU_SCALAR, GPU, GPU_SCALAR}),
        """
        masked.amax masked.amin masked.argmax masked.argmin masked.cumprod masked.cumsum
        masked.log_softmax masked.logsumexp masked.mean masked.median masked.norm masked.prod
        masked.softmax masked.softmin masked.sum nn.functional.cosine_embedding_loss
        nn.functional.hinge_embedding_loss where
        """,
    ),
    Taken(
        "indices and lengths may be on the CPU, or are moved from there",
        frozenset({CPU, CPU_SCALAR}),
        """
        __getitem__ _unsafe_masked_index _unsafe_masked_index_put_accumulate index_put
        tensor_split
        """,
    ),
    Taken(
        "targets and lengths are moved to where the kernel wants them",
        frozenset({CPU, GPU}),
        "nn.functional.ctc_loss",
    ),
    Taken(
        "samples without elements, or with n=0, use no other operand",
        EVERYWHERE,
        """
        diff linalg.pinv nn.functional.batch_norm nn.functional.bilinear
        """,
    ),
)

NOT_EQUAL = {
    "chalf": "PyTorch cannot compare complex32 on the CPU",
    "empty": "no values",
    "empty_like": "no values",
    "empty_permuted": "no values",
    "empty_strided": "no values",
    "linalg.cond": "PyTorch computes singular vectors too for tensor subclasses: other last bits",
    "linalg.eigvalsh": "PyTorch computes eigenvectors too for tensor subclasses: other last bits",
    "linalg.lstsq": "the driver gelsy, which CUDA lacks, differs in last bits from call to call",
    "linalg.matrix_norm": "as linalg.svdvals",
    "linalg.norm": "as linalg.svdvals",
    "linalg.svdvals": "PyTorch computes singular vectors too for tensor subclasses: last bits",
    "new_empty": "no values",
    "new_empty_strided": "no values",
    "norm": "the nuclear norm, as linalg.svdvals",
    "sparse.mm": "virtual GPUs have no sparse tensors",
    "sparse.sampled_addmm": "virtual GPUs have no sparse tensors",
    "tensor_split": "the split points must be on the CPU, as with CUDA",
    "to_sparse": "virtual GPUs have no sparse tensors",
}
"""Operators of which a sample gives another result, or none, on a virtual GPU."""

FOR_THE_CPU_ALONE = frozenset({"histogram", "histogramdd"})
"""Operators that CUDA has no kernel for, and virtual GPUs refuse."""

OTHERWISE_ON_CUDA: dict[str, str] = {}
"""Operators of which CUDA takes a sample that virtual GPUs refuse, or the other way round."""
