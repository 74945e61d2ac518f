"""Static analysis of a forward method: where a value comes from, and on which device it is.

Code in source order: enough for forward methods that assign local variables and return one, as
those of this family do. What is assigned in an ``if`` or a loop may hold after it or not: a value
may come from there, but a move to a device counts only where it is made in any case.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeGuard

import libcst as cst
import libcst.matchers as m

from glm4v_magic.core.errors import CheckpointError

__all__ = [
    "Forward",
    "code_of",
    "elements_of_cat",
    "find_forward",
    "find_method",
    "has_class",
    "mentions",
    "root_of",
    "to_device_of",
]

Join = tuple[cst.CSTNode, cst.BaseExpression, cst.BaseExpression]


@dataclass(frozen=True)
class _Assignment:
    """Assignment to a name.

    Attributes:
        end: when it takes effect, on the clock of `_Reading`.
        value: what is assigned; ``None`` if by a loop or an augmented assignment.
        branches: the blocks around it that may be skipped, outermost first.
        whole: whether the name gets the value, not a part of it by unpacking.
    """

    end: int
    value: cst.BaseExpression | None
    branches: tuple[cst.CSTNode, ...] = ()
    whole: bool = True

    def surely_before(self, branches: tuple[cst.CSTNode, ...]) -> bool:
        """Tell whether it was made wherever a use in `branches` is reached."""
        return branches[: len(self.branches)] == self.branches


@dataclass
class _Reading(cst.CSTVisitor):
    """Visitor of a function that records the order of nodes, assignments and operations."""

    start: dict[cst.CSTNode, int] = field(default_factory=dict)
    assignments: dict[str, list[_Assignment]] = field(default_factory=lambda: defaultdict(list))
    names: set[str] = field(default_factory=set)
    calls: list[cst.Call] = field(default_factory=list)
    sums: list[Join] = field(default_factory=list)
    products: list[Join] = field(default_factory=list)
    lookups: list[Join] = field(default_factory=list)
    differences: list[Join] = field(default_factory=list)
    branches: dict[cst.CSTNode, tuple[cst.CSTNode, ...]] = field(default_factory=dict)
    _clock: int = 0
    _open: tuple[cst.CSTNode, ...] = ()

    def __post_init__(self) -> None:
        super().__init__()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def on_visit(self, node: cst.CSTNode) -> bool:
        self.start[node] = self._tick()
        if isinstance(node, cst.BaseSuite):
            self._open = (*self._open, node)
        self.branches[node] = self._open
        if isinstance(node, cst.Name):
            self.names.add(node.value)
        elif isinstance(node, cst.Call):
            self.calls.append(node)
        elif isinstance(node, cst.BinaryOperation):
            self._joins(node.operator).append((node, node.left, node.right))
        elif isinstance(node, cst.AugAssign):
            self._joins(node.operator).append((node, node.target, node.value))
        elif isinstance(node, cst.Subscript):
            index = _only_index(node)
            if index is not None:
                self.lookups.append((node, node.value, index))
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        end = self._tick()
        for target, value, whole in _bindings(original_node):
            self.assignments[target].append(_Assignment(end, value, self._open, whole))
        if isinstance(original_node, cst.BaseSuite):
            self._open = self._open[:-1]

    def _joins(self, operator: cst.BaseBinaryOp | cst.BaseAugOp) -> list[Join]:
        """Return the list of the operations that an operator belongs to; a new one for others."""
        if isinstance(operator, (cst.Add, cst.AddAssign)):
            return self.sums
        if isinstance(operator, (cst.Multiply, cst.MultiplyAssign)):
            return self.products
        if isinstance(operator, (cst.Subtract, cst.SubtractAssign)):
            return self.differences
        return []


def _only_index(node: cst.Subscript) -> cst.BaseExpression | None:
    """Return the index in `value[index]` if it is a variable or an expression on one."""
    if len(node.slice) == 1 and isinstance(node.slice[0].slice, cst.Index):
        index = node.slice[0].slice.value
        if isinstance(root_of(index), cst.Name) and not m.matches(index, m.Name("None")):
            return index
    return None


_Binding = tuple[str, cst.BaseExpression | None, bool]


def _bindings(node: cst.CSTNode) -> Iterator[_Binding]:
    """Yield the names that a statement assigns, the value of each, and whether it is all of it."""
    if isinstance(node, cst.Assign):
        for target in node.targets:
            yield from _bound(target.target, node.value)
    elif isinstance(node, (cst.AnnAssign, cst.NamedExpr)) and isinstance(node.target, cst.Name):
        yield node.target.value, node.value, True
    elif isinstance(node, (cst.AugAssign, cst.For)):
        yield from ((name, None, False) for name in _names_in(node.target))


def _bound(target: cst.BaseExpression, value: cst.BaseExpression) -> Iterator[_Binding]:
    if isinstance(target, cst.Name):
        yield target.value, value, True
    elif isinstance(target, (cst.Tuple, cst.List)):
        if isinstance(value, (cst.Tuple, cst.List)) and len(value.elements) == len(target.elements):
            for one, other in zip(target.elements, value.elements, strict=True):
                yield from _bound(one.value, other.value)
        else:
            yield from ((name, value, False) for name in _names_in(target))


def _names_in(target: cst.BaseExpression) -> Iterator[str]:
    if isinstance(target, cst.Name):
        yield target.value
    elif isinstance(target, (cst.Tuple, cst.List)):
        for element in target.elements:
            yield from _names_in(element.value)


class Forward:
    """A forward method: its operations that join tensors, in order, and facts on expressions.

    Attributes:
        name: of the class and the method.
        calls: all calls.
        sums: `left + right` and `left += right`, as (node, left, right).
        products: `left * right` and `left *= right`, likewise.
        differences: `left - right` and `left -= right`, likewise.
        lookups: `value[index]` with a variable as the index, as (node, value, index).
    """

    def __init__(self, function: cst.FunctionDef, class_name: str, file: str) -> None:
        self._reading = _Reading()
        function.body.visit(self._reading)
        self.name = f"{class_name}.{function.name.value}"
        self._where = f"{file}: {self.name}"
        self.calls = self._reading.calls
        self.sums = self._reading.sums
        self.products = self._reading.products
        self.differences = self._reading.differences
        self.lookups = self._reading.lookups

    def not_understood(self, what: str) -> CheckpointError:
        """Return the error to raise if a place is not found in the method."""
        return CheckpointError(
            f"{self._where} has no {what} in a form that is known; nothing was changed.",
            "Use the file as published with GLM-4V-9B, or load the model with this package.",
        )

    def free_name(self, wish: str) -> str:
        """Return a name that the method does not use: `wish` if possible."""
        name = wish
        while name in self._reading.names:
            name += "_"
        return name

    def comes_from(self, expression: cst.BaseExpression, attribute: str) -> bool:
        """Tell whether a value is the output of `self.<attribute>`, not of an operation on it."""
        if mentions(expression, attribute):
            return True
        root = root_of(_without_dropout(expression))
        if not isinstance(root, cst.Name):
            return mentions(root, attribute)
        values = [assignment.value for assignment in self._assignments_of(root)]
        return any(self.comes_from(value, attribute) for value in values if value is not None)

    def argument_of(self, expression: cst.BaseExpression) -> str | None:
        """Return the argument of the method that a value is, or is a part of; ``None`` if of none.

        An operation on an argument is none, but its methods are, as those that change its form.
        """
        root = root_of(expression)
        if not isinstance(root, cst.Name):
            return None
        assignments = self._assignments_of(root)
        if not assignments:
            return root.value
        values = [each.value for each in assignments]
        found = {None if value is None else self.argument_of(value) for value in values}
        return found.pop() if len(found) == 1 else None

    def meet(self, one: cst.BaseExpression, other: cst.BaseExpression) -> bool:
        """Tell whether one of two operands is moved to the other's device."""
        return self._follows(one, other) or self._follows(other, one)

    def _follows(self, one: cst.BaseExpression, other: cst.BaseExpression) -> bool:
        anchor = self.moved_to(one)
        if anchor is None:
            return False
        if anchor.startswith("self."):
            return self._stays_with(other, anchor.split("."))
        return anchor in self._names_of(other, self._reading.start[other])

    def _stays_with(self, expression: cst.BaseExpression, anchor: list[str]) -> bool:
        """Tell whether a value is where `self.<name>`, or a weight of it, is.

        That is, whether it is this parameter or the output of this layer, and not moved since. A
        layer within the submodule (`self.mlp.fc1.weight`) may be on another GPU than its output.
        """
        inner = _without_activation(expression)
        while (down := _one_down(inner)) is not inner:
            if _may_move(inner) or len(anchor) > 3:
                return False
            if m.matches(inner, m.Attribute(m.Name("self"), m.Name(anchor[1]))):
                return True
            inner = _without_activation(down)
        values = [a.value for a in self._assignments_of(inner)] if _is_name(inner) else []
        return bool(values) and all(each and self._stays_with(each, anchor) for each in values)

    def _names_of(self, expression: cst.BaseExpression, used_at: int) -> Iterator[str]:
        """Yield the variables that hold a value: itself, and those it is a plain copy of."""
        if isinstance(expression, cst.NamedExpr):
            expression = expression.target
        yield code_of(expression)
        if isinstance(expression, cst.Name):
            assignments = self._assignments_of(expression)
            if len(assignments) != 1 or not isinstance(assignments[0].value, cst.Name):
                return
            copied, copied_at = assignments[0].value, assignments[0].end
            if not self._assigned_between(copied.value, copied_at, used_at):
                yield from self._names_of(copied, used_at)

    def moved_to(self, expression: cst.BaseExpression) -> str | None:
        """Return the variable (or submodule) to whose device an expression was moved, as code.

        ``None`` if it was not moved, or moved on since, or if that variable was assigned again.
        """
        return self._moved_to(expression, self._reading.start[expression])

    def _moved_to(self, expression: cst.BaseExpression, used_at: int) -> str | None:
        inner = expression
        while isinstance(inner, (cst.Call, cst.Attribute, cst.Subscript, cst.NamedExpr)):
            anchor = _anchor_of_to(inner)
            if anchor is not None:
                moved_at = self._reading.start[inner]
                return None if self._assigned_between(anchor, moved_at, used_at) else anchor
            if _may_move(inner):
                return None
            inner = _one_down(inner)
        if not isinstance(inner, cst.Name):
            return None
        values = [assignment.value for assignment in self._assignments_of(inner)]
        anchors = {None if value is None else self._moved_to(value, used_at) for value in values}
        return anchors.pop() if len(anchors) == 1 else None

    def _assignments_of(self, name: cst.Name) -> list[_Assignment]:
        """Return the assignments that may have given a name its value where it is used.

        That is the last one made in any case, and those after it that may have been skipped.
        """
        before, branches = self._reading.start[name], self._reading.branches[name]
        found: list[_Assignment] = []
        for assignment in self._reading.assignments.get(name.value, []):
            if assignment.end < before:
                found = [] if assignment.surely_before(branches) else found
                found.append(assignment)
        return found

    def _assigned_between(self, name: str, start: int, end: int) -> bool:
        return any(start < a.end < end for a in self._reading.assignments.get(name, []))


def _anchor_of_to(call: cst.BaseExpression) -> str | None:
    """`x` for `<anything>.to(x.device)` and `<anything>.to(device=x.device)`."""
    if not m.matches(call, m.Call(func=m.Attribute(attr=m.Name("to")))):
        return None
    assert isinstance(call, cst.Call)
    for argument in call.args:
        named = argument.keyword is not None and argument.keyword.value != "device"
        if not named and m.matches(argument.value, m.Attribute(attr=m.Name("device"))):
            assert isinstance(argument.value, cst.Attribute)
            return code_of(argument.value.value)
    return None


_MOVES = m.Name("cuda") | m.Name("cpu") | m.Name("type_as")
_MAY_MOVE = m.Name("to") | m.Name("type")
_DTYPE = (
    m.Attribute(attr=m.Name("dtype"))
    | m.Name("dtype")
    | m.Attribute(
        m.Name("torch"), m.Name(m.MatchRegex(r"b?float\w*|half|double|u?int\d+|long|bool"))
    )
)
_NO_DEVICE = frozenset({"dtype", "non_blocking", "copy", "memory_format"})


def _may_move(call: cst.BaseExpression) -> bool:
    """Tell whether a call may move its object: `.cuda()`, `.to(...)` of more than a dtype."""
    if m.matches(call, m.Call(func=m.Attribute(attr=_MOVES))):
        return True
    if not m.matches(call, m.Call(func=m.Attribute(attr=_MAY_MOVE))):
        return False
    assert isinstance(call, cst.Call)
    named = {each.keyword.value for each in call.args if each.keyword is not None}
    first = next((each.value for each in call.args if each.keyword is None), None)
    if named - _NO_DEVICE:
        return True
    return first is not None and not m.matches(first, _DTYPE)


def _one_down(expression: cst.BaseExpression) -> cst.BaseExpression:
    """Return the object of a method call, an attribute or a subscript, else `expression`."""
    if isinstance(expression, cst.Call):
        return expression.func
    if isinstance(expression, (cst.Attribute, cst.Subscript, cst.NamedExpr)):
        return expression.value
    return expression


def _without_dropout(expression: cst.BaseExpression) -> cst.BaseExpression:
    """Return `x` of a call `dropout(x, ...)`, by whatever path the function is named."""
    name = m.Name("dropout")
    if m.matches(expression, m.Call(func=name | m.Attribute(attr=name), args=[m.AtLeastN(n=1)])):
        assert isinstance(expression, cst.Call)
        return expression.args[0].value
    return expression


_ACTIVATION = m.Name(m.MatchRegex(r"(\w*_)?(act\w*|gelu|silu|dropout)"))


def _without_activation(expression: cst.BaseExpression) -> cst.BaseExpression:
    """Return `x` of `self.act(x)` and the like, which have no weights and so are where `x` is."""
    while m.matches(
        expression,
        m.Call(func=_ACTIVATION | m.Attribute(attr=_ACTIVATION), args=[m.AtLeastN(n=1)]),
    ):
        assert isinstance(expression, cst.Call)
        expression = expression.args[0].value
    return expression


def _is_name(expression: cst.BaseExpression) -> TypeGuard[cst.Name]:
    return isinstance(expression, cst.Name)


def root_of(expression: cst.BaseExpression) -> cst.BaseExpression:
    """Return the start of a chain of calls, attributes and subscripts: `x` of `x[i].to(d)`."""
    while (inner := _one_down(expression)) is not expression:
        expression = inner
    return expression


def mentions(expression: cst.CSTNode, attribute: str) -> bool:
    """Tell whether `self.<attribute>` occurs in an expression, outside nested operations."""
    if isinstance(expression, (cst.BinaryOperation, cst.BooleanOperation, cst.Comparison)):
        return False
    if m.matches(expression, m.Attribute(m.Name("self"), m.Name(attribute))):
        return True
    return any(mentions(child, attribute) for child in expression.children)


def elements_of_cat(call: cst.Call) -> list[cst.BaseExpression]:
    """Return the tensors of `torch.cat((a, b), ...)`; none for any other call."""
    is_cat = m.matches(call.func, m.Attribute(attr=m.Name("cat") | m.Name("concat")))
    if is_cat and call.args and isinstance(call.args[0].value, (cst.Tuple, cst.List)):
        return [element.value for element in call.args[0].value.elements]
    return []


def code_of(expression: cst.BaseExpression) -> str:
    """Return an expression as one line of code, without parentheses around it."""
    bare = expression.with_changes(lpar=[], rpar=[])
    return cst.Module(body=[]).code_for_node(bare)


def to_device_of(expression: cst.BaseExpression, anchor: cst.Name) -> cst.BaseExpression:
    """Return `expression.to(anchor.device)`."""
    is_chain = isinstance(expression, (cst.Name, cst.Attribute, cst.Call, cst.Subscript))
    if not is_chain and not expression.lpar:
        expression = expression.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    device = cst.Attribute(cst.Name(anchor.value), cst.Name("device"))
    return cst.Call(cst.Attribute(expression, cst.Name("to")), [cst.Arg(device)])


def find_forward(module: cst.Module, class_name: str, file: str) -> Forward:
    """Return the forward method of a top-level class.

    Raises:
        CheckpointError: if there is no such class or method, or more than one.
    """
    classes = [found for found in _classes(module) if found.name.value == class_name]
    methods = [method for found in classes for method in _methods(found, "forward")]
    if len(classes) == 1 and len(methods) == 1:
        return Forward(methods[0], class_name, file)
    problem = "no class" if not classes else "more than one class"
    if len(classes) == 1:
        problem = "no single forward method in class"
    raise CheckpointError(
        f"{file} has {problem} {class_name}; nothing was changed.",
        "Is this the code of GLM-4V-9B?",
    )


def find_method(module: cst.Module, name: str, file: str) -> Forward:
    """Return the method of a name that only one top-level class has.

    Raises:
        CheckpointError: if no class has it, or more than one.
    """
    found = [(each, method) for each in _classes(module) for method in _methods(each, name)]
    if len(found) == 1:
        return Forward(found[0][1], found[0][0].name.value, file)
    raise CheckpointError(
        f"{file} has {'no' if not found else 'more than one'} method {name}; nothing was changed.",
        "Is this the code of GLM-4V-9B?",
    )


def has_class(module: cst.Module, name: str) -> bool:
    """Tell whether a module has a top-level class of a name."""
    return any(found.name.value == name for found in _classes(module))


def _classes(module: cst.Module) -> Iterator[cst.ClassDef]:
    yield from (each for each in module.body if isinstance(each, cst.ClassDef))


def _methods(found: cst.ClassDef, name: str) -> Iterator[cst.FunctionDef]:
    for each in found.body.body:
        if isinstance(each, cst.FunctionDef) and each.name.value == name:
            yield each
