"""Static analysis of a forward method: where a value comes from, and on which device it is.

Straight-line code only, in source order: enough for forward methods that assign local variables
and return one, as those of this family's vision towers do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import libcst as cst
import libcst.matchers as m

from glm4v_magic.core.errors import CheckpointError

__all__ = [
    "Forward",
    "code_of",
    "elements_of_cat",
    "find_forward",
    "mentions",
    "root_of",
    "to_device_of",
]

Join = tuple[cst.CSTNode, cst.BaseExpression, cst.BaseExpression]


@dataclass(frozen=True)
class _Assignment:
    """Assignment to a name; no `value` if by unpacking, a loop or an augmented assignment."""

    end: int
    value: cst.BaseExpression | None


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
    _clock: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def on_visit(self, node: cst.CSTNode) -> bool:
        self.start[node] = self._tick()
        if isinstance(node, cst.Name):
            self.names.add(node.value)
        elif isinstance(node, cst.Call):
            self.calls.append(node)
        elif isinstance(node, cst.BinaryOperation):
            joins = {cst.Add: self.sums, cst.Multiply: self.products}.get(type(node.operator))
            if joins is not None:
                joins.append((node, node.left, node.right))
        elif isinstance(node, cst.AugAssign) and isinstance(node.operator, cst.AddAssign):
            self.sums.append((node, node.target, node.value))
        elif isinstance(node, cst.Subscript):
            index = _only_index(node)
            if index is not None:
                self.lookups.append((node, node.value, index))
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        end = self._tick()
        for target, value in _bindings(original_node):
            self.assignments[target].append(_Assignment(end, value))


def _only_index(node: cst.Subscript) -> cst.BaseExpression | None:
    """Return the index in `value[index]` if it is a variable or an expression on one."""
    if len(node.slice) == 1 and isinstance(node.slice[0].slice, cst.Index):
        index = node.slice[0].slice.value
        if isinstance(root_of(index), cst.Name) and not m.matches(index, m.Name("None")):
            return index
    return None


def _bindings(node: cst.CSTNode) -> Iterator[tuple[str, cst.BaseExpression | None]]:
    if isinstance(node, cst.Assign):
        for target in node.targets:
            if isinstance(target.target, cst.Name):
                yield target.target.value, node.value
            else:
                yield from ((name, None) for name in _names_in(target.target))
    elif isinstance(node, (cst.AnnAssign, cst.NamedExpr)) and isinstance(node.target, cst.Name):
        yield node.target.value, node.value
    elif isinstance(node, (cst.AugAssign, cst.For)):
        yield from ((name, None) for name in _names_in(node.target))


def _names_in(target: cst.BaseExpression) -> Iterator[str]:
    if isinstance(target, cst.Name):
        yield target.value
    elif isinstance(target, (cst.Tuple, cst.List)):
        for element in target.elements:
            yield from _names_in(element.value)


class Forward:
    """A forward method: its operations that join tensors, in order, and facts on expressions.

    Attributes:
        calls: all calls.
        sums: `left + right` and `left += right`, as (node, left, right).
        products: `left * right`, as (node, left, right).
        lookups: `value[index]` with a variable as the index, as (node, value, index).
    """

    def __init__(self, function: cst.FunctionDef, class_name: str, file: str) -> None:
        self._reading = _Reading()
        function.body.visit(self._reading)
        self._where = f"{file}: {class_name}.forward"
        self.calls = self._reading.calls
        self.sums = self._reading.sums
        self.products = self._reading.products
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
        root = root_of(expression)
        if isinstance(root, cst.Name):
            assignment = self._last_assignment(root)
            if assignment is not None and assignment.value is not None:
                return self.comes_from(assignment.value, attribute)
        return False

    def meet(self, one: cst.BaseExpression, other: cst.BaseExpression) -> bool:
        """Tell whether one of two operands is moved to the other's device."""
        return self._follows(one, other) or self._follows(other, one)

    def _follows(self, one: cst.BaseExpression, other: cst.BaseExpression) -> bool:
        anchor = self.moved_to(one)
        if anchor is None:
            return False
        if anchor.startswith("self."):
            return self.comes_from(other, anchor.split(".")[1])
        return anchor in self._names_of(other)

    def _names_of(self, expression: cst.BaseExpression) -> Iterator[str]:
        """Yield the variables that hold a value: itself, and those it is a plain copy of."""
        if isinstance(expression, cst.NamedExpr):
            expression = expression.target
        yield code_of(expression)
        if isinstance(expression, cst.Name):
            assignment = self._last_assignment(expression)
            if assignment is not None and isinstance(assignment.value, cst.Name):
                yield from self._names_of(assignment.value)

    def moved_to(self, expression: cst.BaseExpression) -> str | None:
        """Return the variable (or submodule) to whose device an expression was moved, as code.

        ``None`` if it was not moved, or if that variable was assigned again since.
        """
        return self._moved_to(expression, self._reading.start[expression])

    def _moved_to(self, expression: cst.BaseExpression, used_at: int) -> str | None:
        inner = expression
        while isinstance(inner, (cst.Call, cst.Attribute, cst.Subscript, cst.NamedExpr)):
            anchor = _anchor_of_to(inner)
            if anchor is not None:
                moved_at = self._reading.start[inner]
                return None if self._assigned_between(anchor, moved_at, used_at) else anchor
            inner = _one_down(inner)
        if isinstance(inner, cst.Name):
            assignment = self._last_assignment(inner)
            if assignment is not None and assignment.value is not None:
                return self._moved_to(assignment.value, used_at)
        return None

    def _last_assignment(self, name: cst.Name) -> _Assignment | None:
        before = self._reading.start[name]
        found = [a for a in self._reading.assignments.get(name.value, []) if a.end < before]
        return found[-1] if found else None

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


def _one_down(expression: cst.BaseExpression) -> cst.BaseExpression:
    """Return the object of a method call, an attribute or a subscript, else `expression`."""
    if isinstance(expression, cst.Call):
        return expression.func
    if isinstance(expression, (cst.Attribute, cst.Subscript, cst.NamedExpr)):
        return expression.value
    return expression


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


def to_device_of(expression: cst.BaseExpression, anchor: cst.Name) -> cst.Call:
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
    classes = [c for c in module.body if m.matches(c, m.ClassDef(name=m.Name(class_name)))]
    methods = [
        statement
        for found in classes
        if isinstance(found, cst.ClassDef)
        for statement in found.body.body
        if isinstance(statement, cst.FunctionDef) and statement.name.value == "forward"
    ]
    if len(classes) == 1 and len(methods) == 1:
        return Forward(methods[0], class_name, file)
    problem = "no class" if not classes else "more than one class"
    if len(classes) == 1:
        problem = "no single forward method in class"
    raise CheckpointError(
        f"{file} has {problem} {class_name}; nothing was changed.",
        "Is this the code of GLM-4V-9B?",
    )
