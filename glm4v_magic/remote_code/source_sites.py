"""The places in GLM-4V-9B's own source code where tensors from two GPUs can meet, and the fixes.

`edit_visual` and `edit_modeling` take the bytes of `visual.py` and `modeling_chatglm.py`, and
`edit_cross_visual` those of CogAgent's `cross_visual.py`, and return them with every such place
made consistent. CogVLM, CogVLM2 and CogAgent have the same tower; their text models move the image
features themselves. Only the expressions concerned change: white
space, comments, line endings and encoding stay as they are. A place is recognised by what it
does (which of the class's submodules and parameters meet in which operation), not by its line
or by the names of local variables, so that the revisions of June to October 2024 are all
understood. Nothing here needs torch.

| place                              | class            | becomes                              |
| ---------------------------------- | ---------------- | ------------------------------------ |
| class token before the patches     | PatchEmbedding   | `cat((cls.to(x.device), x))`         |
| position embedding added           | PatchEmbedding   | `x += position.to(x.device)`         |
| residual after attention, and MLP  | TransformerLayer | `stream.to(branch.device) + branch`  |
| product of the gated linear unit   | GLU              | `(gate := g(x)) * h(x).to(gate...)`  |
| boi and eoi around the features    | EVA2CLIPModel    | `cat((boi.to(x.device), x, eoi...))` |
| image features in the embeddings   | ChatGLMModel     | `features[i].to(embeds.device)`      |
| rotary embedding at the positions  | ChatGLMModel     | `rotary[positions.to(rotary...)]`    |
| padding mask in the full mask      | (`get_masks`)    | `full * padding.to(full.device)`     |
| residual after attention, and MLP  | GLMBlock         | `stream.to(branch.device) + branch`  |
| rotary embedding, cache and mask   | SelfAttention    | each `.to` the query or the key      |
| position embedding of CogAgent     | EVA2CLIPModel    | `x + pos_embed.to(x.device)`         |
| the same, of its second tower      | CrossVisionModel | likewise                             |

A residual moves the stream to its branch, not the branch back, so that what has crossed to the
next GPU stays there. The published correction of `visual.py` (`mlp_output` back to `mlp_input`)
is recognised and left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider

from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.remote_code.source_flow import (
    Forward,
    code_of,
    elements_of_cat,
    find_forward,
    find_method,
    has_class,
    root_of,
    to_device_of,
)

__all__ = ["SourceEdit", "SourceSite", "edit_cross_visual", "edit_modeling", "edit_visual"]

Edits = dict[cst.CSTNode, cst.CSTNode]


@dataclass(frozen=True)
class SourceSite:
    """A place in the source.

    Attributes:
        what: what meets there, for instance ``"residual add after the MLP"``.
        where: class and method.
        line: line in the source as read, counted from 1.
        consistent: whether it was consistent already, so that nothing was changed.
    """

    what: str
    where: str
    line: int
    consistent: bool


@dataclass(frozen=True)
class SourceEdit:
    """A source file with all its places consistent: its bytes, encoding, and what was found."""

    source: bytes
    encoding: str
    sites: tuple[SourceSite, ...]


@dataclass(frozen=True)
class _Found:
    """A place in the syntax tree; `edits` is empty if it is consistent already."""

    what: str
    node: cst.CSTNode
    edits: Edits


_Finder = Callable[[Forward], Iterator[_Found]]


def edit_visual(source: bytes, file: str = "visual.py") -> SourceEdit:
    """Make the vision tower's five places consistent (two residuals, and so six expressions).

    Raises:
        CheckpointError: if the source cannot be parsed, or a place does not look like any known
            revision.
    """

    def methods(module: cst.Module) -> _Methods:
        yield find_forward(module, "PatchEmbedding", file), (_class_token, _position_add)
        yield (
            find_forward(module, "TransformerLayer", file),
            (_residual_after_attention, _residual_after_mlp),
        )
        yield find_forward(module, "GLU", file), (_gated_product,)
        yield find_forward(module, "EVA2CLIPModel", file), (_outer_position_add, _boundary_tokens)

    return _edit(source, file, methods)


def edit_cross_visual(source: bytes, file: str = "cross_visual.py") -> SourceEdit:
    """Make the position embedding of CogAgent's second tower consistent.

    Raises:
        CheckpointError: as `edit_visual`.
    """

    def methods(module: cst.Module) -> _Methods:
        yield find_forward(module, "CrossVisionModel", file), (_cross_position_add,)

    return _edit(source, file, methods)


def edit_modeling(source: bytes, file: str = "modeling_chatglm.py") -> SourceEdit:
    """Make the text model's places consistent, those within its layers included.

    Raises:
        CheckpointError: if the source cannot be parsed, or a place does not look like any known
            revision.
    """

    def methods(module: cst.Module) -> _Methods:
        yield find_forward(module, "ChatGLMModel", file), (_splice, _rotary_lookup)
        yield find_method(module, "get_masks", file), (_padding_mask,)
        if has_class(module, "GLMBlock"):
            yield (
                find_forward(module, "GLMBlock", file),
                (_text_residual_after_attention, _text_residual_after_mlp),
            )
        if has_class(module, "SelfAttention"):
            yield (
                find_forward(module, "SelfAttention", file),
                (_rotary_of_query, _cache_before_key, _mask_of_attention),
            )

    return _edit(source, file, methods)


_Methods = Iterator[tuple[Forward, Sequence[_Finder]]]


def _edit(source: bytes, file: str, methods: Callable[[cst.Module], _Methods]) -> SourceEdit:
    module = _parse(source, file)
    wrapper = MetadataWrapper(module, unsafe_skip_copy=True)
    positions = wrapper.resolve(PositionProvider)
    edits: Edits = {}
    sites = []
    for forward, finders in methods(module):
        for finder in finders:
            for found in finder(forward):
                edits.update(found.edits)
                line = positions[next(iter(found.edits), found.node)].start.line
                sites.append(SourceSite(found.what, forward.name, line, not found.edits))
    if not edits:
        return SourceEdit(source, module.encoding, tuple(sites))
    edited = module.visit(_Replace(edits))
    # libcst drops a byte order mark when it reads one.
    mark = b"\xef\xbb\xbf" if source.startswith(b"\xef\xbb\xbf") else b""
    return SourceEdit(mark + edited.bytes.removeprefix(mark), module.encoding, tuple(sites))


def _parse(source: bytes, file: str) -> cst.Module:
    try:
        return cst.parse_module(source)
    except cst.ParserSyntaxError as error:
        raise CheckpointError(
            f"{file} is not valid Python: line {error.raw_line} cannot be parsed.",
            "Download the file again.",
        ) from None
    except (UnicodeDecodeError, LookupError, SyntaxError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be decoded as Python source: {_one_line(error)}.",
            "Download the file again.",
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


class _Replace(cst.CSTTransformer):
    """Replace nodes of the original tree, by identity."""

    def __init__(self, edits: Edits) -> None:
        super().__init__()
        self._edits = edits

    def on_leave(  # type: ignore[override]  # the base class is generic in the node
        self, original_node: cst.CSTNode, updated_node: cst.CSTNode
    ) -> cst.CSTNode:
        return self._edits.get(original_node, updated_node)


def _class_token(forward: Forward) -> Iterator[_Found]:
    what = "class token before the patches"
    yield _cat_around(forward, what, moved=("cls_embedding",))


def _boundary_tokens(forward: Forward) -> Iterator[_Found]:
    what = "boi and eoi around the image features"
    yield _cat_around(forward, what, moved=("boi", "eoi"))


def _cat_around(forward: Forward, what: str, moved: tuple[str, ...]) -> _Found:
    """Find a cat of the parameters `moved` and one variable, and move these to the variable."""
    for call in forward.calls:
        elements = elements_of_cat(call)
        parameters = [e for e in elements if any(forward.comes_from(e, a) for a in moved)]
        others = [e for e in elements if e not in parameters]
        if len(parameters) != len(moved) or len(others) != 1:
            continue
        if not isinstance(others[0], cst.Name):
            break
        anchor = others[0]
        wrong = [p for p in parameters if forward.moved_to(p) != code_of(anchor)]
        return _Found(what, call, {p: to_device_of(p, anchor) for p in wrong})
    raise forward.not_understood(what)


def _position_add(forward: Forward) -> Iterator[_Found]:
    what = "position embedding added to the patches"
    yield _sum_of_branch(forward, what, "position_embedding", keep_stream=True)


def _outer_position_add(forward: Forward) -> Iterator[_Found]:
    """Find the position embedding that CogAgent's tower adds to the patches; others have none."""
    if any(forward.comes_from(part, "pos_embed") for _, *parts in forward.sums for part in parts):
        yield from _cross_position_add(forward)


def _cross_position_add(forward: Forward) -> Iterator[_Found]:
    what = "position embedding added to the features"
    yield _sum_of_branch(forward, what, "pos_embed", keep_stream=True)


def _text_residual_after_attention(forward: Forward) -> Iterator[_Found]:
    yield _sum_of_branch(forward, "residual add after the attention", "self_attention")


def _text_residual_after_mlp(forward: Forward) -> Iterator[_Found]:
    yield _sum_of_branch(forward, "residual add after the MLP", "mlp")


def _residual_after_attention(forward: Forward) -> Iterator[_Found]:
    yield _sum_of_branch(forward, "residual add after the attention", "input_layernorm")


def _residual_after_mlp(forward: Forward) -> Iterator[_Found]:
    yield _sum_of_branch(forward, "residual add after the MLP", "post_attention_layernorm")


def _sum_of_branch(
    forward: Forward, what: str, branch_of: str, keep_stream: bool = False
) -> _Found:
    """Find a sum of a variable and a branch that ends in `self.<branch_of>`."""
    found = []
    for node, left, right in forward.sums:
        if forward.comes_from(left, branch_of) != forward.comes_from(right, branch_of):
            branch, stream = (left, right) if forward.comes_from(left, branch_of) else (right, left)
            found.append((node, stream, branch))
    if len(found) != 1:
        raise forward.not_understood(what)
    node, stream, branch = found[0]
    if forward.meet(stream, branch):
        return _Found(what, node, {})
    in_place = isinstance(node, cst.AugAssign)
    if isinstance(branch, cst.Name) and not (keep_stream or in_place):
        return _Found(what, node, {stream: to_device_of(stream, branch)})
    if isinstance(stream, cst.Name):
        return _Found(what, node, {branch: to_device_of(branch, stream)})
    raise forward.not_understood(what)


def _gated_product(forward: Forward) -> Iterator[_Found]:
    what = "product of gate_proj and dense_h_to_4h"
    for node, left, right in forward.products:
        if not _is_pair(forward, left, right, "gate_proj", "dense_h_to_4h"):
            continue
        if forward.meet(left, right):
            yield _Found(what, node, {})
        elif isinstance(left, cst.Name):
            yield _Found(what, node, {right: to_device_of(right, left)})
        elif isinstance(right, cst.Name):
            yield _Found(what, node, {left: to_device_of(left, right)})
        else:
            # Python evaluates the left operand first, so its name exists when the right one runs.
            name = cst.Name(forward.free_name("gate"))
            named = cst.NamedExpr(name, left, lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
            yield _Found(what, node, {left: named, right: to_device_of(right, name)})
        return
    raise forward.not_understood(what)


def _is_pair(
    forward: Forward, left: cst.BaseExpression, right: cst.BaseExpression, one: str, other: str
) -> bool:
    return (forward.comes_from(left, one) and forward.comes_from(right, other)) or (
        forward.comes_from(left, other) and forward.comes_from(right, one)
    )


def _splice(forward: Forward) -> Iterator[_Found]:
    what = "image features between the word embeddings"
    for call in forward.calls:
        elements = elements_of_cat(call)
        features = [e for e in elements if forward.comes_from(e, "vision")]
        embeds = {code_of(root_of(e)) for e in elements if e not in features}
        if len(features) != 1 or len(embeds) != 1:
            continue
        anchor = cst.parse_expression(embeds.pop())
        if not isinstance(anchor, cst.Name):
            break
        if forward.moved_to(features[0]) == code_of(anchor):
            yield _Found(what, call, {})
        else:
            yield _Found(what, call, {features[0]: to_device_of(features[0], anchor)})
        return
    raise forward.not_understood(what)


def _rotary_lookup(forward: Forward) -> Iterator[_Found]:
    what = "rotary embedding looked up at the positions"
    found = False
    for node, value, index in forward.lookups:
        if not forward.comes_from(value, "rotary_pos_emb"):
            continue
        found = True
        if forward.meet(value, index):
            yield _Found(what, node, {})
        elif isinstance(value, cst.Name):
            yield _Found(what, node, {index: to_device_of(index, value)})
        else:
            raise forward.not_understood(what)
    if not found:
        raise forward.not_understood(what)


def _padding_mask(forward: Forward) -> Iterator[_Found]:
    what = "padding mask in the full mask"
    found = False
    for node, left, right in (*forward.products, *forward.differences):
        if not _is_padding(forward, right) or _is_padding(forward, left):
            continue
        found = True
        if not isinstance(left, cst.Name):
            raise forward.not_understood(what)
        moved = forward.moved_to(right) == code_of(left)
        yield _Found(what, node, {} if moved else {right: to_device_of(right, left)})
    if not found:
        raise forward.not_understood(what)


def _is_padding(forward: Forward, expression: cst.BaseExpression) -> bool:
    """Tell whether an expression is the padding mask, or a sum or difference with a number."""
    root = root_of(expression)
    if isinstance(root, cst.BinaryOperation):
        return isinstance(root.right, cst.BaseNumber) and _is_padding(forward, root.left)
    return forward.argument_of(expression) == "padding_mask"


def _rotary_of_query(forward: Forward) -> Iterator[_Found]:
    what = "rotary embedding applied to query and key"
    found = False
    for call in forward.calls:
        if len(call.args) != 2 or forward.argument_of(call.args[1].value) != "rotary_pos_emb":
            continue
        found = True
        vectors, rotary = (argument.value for argument in call.args)
        if not isinstance(vectors, cst.Name):
            raise forward.not_understood(what)
        moved = forward.moved_to(rotary) == code_of(vectors)
        yield _Found(what, call, {} if moved else {rotary: to_device_of(rotary, vectors)})
    if not found:
        raise forward.not_understood(what)


def _cache_before_key(forward: Forward) -> Iterator[_Found]:
    what = "cache before the new keys and values"
    found = False
    for call in forward.calls:
        elements = elements_of_cat(call)
        if len(elements) != 2 or forward.argument_of(elements[0]) != "kv_cache":
            continue
        found = True
        earlier, new = elements
        if not isinstance(new, cst.Name):
            raise forward.not_understood(what)
        moved = forward.moved_to(earlier) == code_of(new)
        yield _Found(what, call, {} if moved else {earlier: to_device_of(earlier, new)})
    if not found:
        raise forward.not_understood(what)


def _mask_of_attention(forward: Forward) -> Iterator[_Found]:
    what = "mask of the attention"
    for call in forward.calls:
        values = [argument.value for argument in call.args]
        if not m.matches(call.func, m.Attribute(m.Name("self"), m.Name("core_attention"))):
            continue
        masks = [each for each in values if "attention_mask" in _names_within(each)]
        if len(masks) != 1 or not isinstance(values[0], cst.Name):
            break
        (mask,) = masks
        if isinstance(mask, cst.IfExp) and forward.moved_to(mask.orelse) == code_of(values[0]):
            yield _Found(what, call, {})
        elif isinstance(mask, cst.Name):
            # There is no mask in a batch without padding.
            none_or_moved = cst.IfExp(
                test=cst.Comparison(mask, [cst.ComparisonTarget(cst.Is(), cst.Name("None"))]),
                body=mask,
                orelse=to_device_of(mask, values[0]),
            )
            yield _Found(what, call, {mask: none_or_moved})
        else:
            break
        return
    raise forward.not_understood(what)


def _names_within(expression: cst.BaseExpression) -> set[str]:
    return {found.value for found in m.findall(expression, m.Name()) if isinstance(found, cst.Name)}
