"""Python mutants: the changes that cosmic-ray's operators make in the bodies of functions."""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

from .find import FOLDERS, Function, functions_of_python

LAYERS = ("core", "temporal", "ops", "models", "parity")
# They need a GPU, or Triton.
_FOR_GPUS = re.compile(r"triton|cuda|gpu|sm_?[89]0", re.IGNORECASE)
# Any call at all tells the one from the other.
_IS_NONE = re.compile(r"\bis (not )?None")
# By the names of cosmic-ray's operators: of its changes of one operator into all others the plausible ones.
_SWAPS = "Add_Sub Sub_Add Mul_FloorDiv Mul_Add FloorDiv_Mul Div_Mul Mod_FloorDiv Pow_Mul LShift_RShift"
_COMPARED = "Eq_NotEq NotEq_Eq Lt_LtE LtE_Lt Gt_GtE GtE_Gt Lt_Gt LtE_GtE Gt_Lt GtE_LtE"
KINDS = {
    "arithmetic": [f"ReplaceBinaryOperator_{swap}" for swap in _SWAPS.split()],
    "comparison": [f"ReplaceComparisonOperator_{swap}" for swap in _COMPARED.split()],
    "condition": ["AddNot", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceUnaryOperator_Delete_Not"],
    "sign": ["ReplaceUnaryOperator_Delete_USub"],
    "flag": ["ReplaceTrueWithFalse", "ReplaceFalseWithTrue"],
    "number": ["NumberReplacer"],
    "loop": ["ZeroIterationForLoop", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak"],
}


class DropStatement:
    """cosmic-ray has no operator that leaves out a statement: a call, or an assignment that others see."""

    _PLACES = (ast.Attribute, ast.Subscript)

    def places(self, tree: ast.AST) -> Iterator[tuple[int, int]]:
        """Return line and column of the statements of one line that may be left out."""
        for node in ast.walk(tree):
            call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            kept = isinstance(node, ast.AugAssign) or (
                isinstance(node, ast.Assign) and isinstance(node.targets[0], self._PLACES)
            )
            if (call or kept) and node.lineno == node.end_lineno:
                yield node.lineno, node.col_offset


def _left_out(tree: ast.AST) -> Iterator[ast.AST]:
    """Return what no mutant touches: texts, types, defaults, refusals, names of types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            yield from node.decorator_list
            yield from [*arguments.defaults, *(d for d in arguments.kw_defaults if d is not None)]
            every = [*arguments.args, *arguments.posonlyargs, *arguments.kwonlyargs]
            every += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
            yield from [a.annotation for a in every if a.annotation is not None]
            if node.returns is not None:
                yield node.returns
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "zip":
            yield from node.keywords  # strict=True, where lengths are equal anyway
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation
        elif isinstance(node, ast.Raise | ast.JoinedStr):
            yield node
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield node


def _one_line(before: str, after: str) -> tuple[int, str] | None:
    """Return number and text of the line that a change touches, if it is a single one."""
    old, new = before.splitlines(), after.splitlines()
    if len(old) != len(new):
        return None
    changed = [n for n, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1]]
    if len(changed) != 1:
        return None
    number = changed[0]
    start = len(os.path.commonprefix([old[number], new[number]]))
    # cosmic-ray puts a space before what it changed.
    spaced = new[number][start : start + 1] == " " and new[number][start - 1] in "([{:- "
    return number + 1, (new[number][:start] + new[number][start + spaced :]).strip()


class Source:
    """A file, and the changes that can be made in it."""

    def __init__(self, root: Path, path: str) -> None:
        self.path, self.text = path, (root / path).read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.functions = [Function(path, *f) for f in functions_of_python(self.text)]
        spans = [(n.lineno, n.col_offset, n.end_lineno, n.end_col_offset) for n in _left_out(self.tree)]
        self._spans = spans

    def _is_left_out(self, place: tuple[int, int]) -> bool:
        return any((s[0], s[1]) <= place < (s[2], s[3]) for s in self._spans)

    @functools.cached_property
    def changes(self) -> list[tuple[Function, str, str, int]]:
        """Return (function, kind, operator's name, occurrence) of every change in a function's body."""
        found = []
        nodes = list(ast_nodes(get_ast(self.text)))
        for kind, names in KINDS.items():
            for name in names:
                operator = cosmic_ray.plugins.get_operator(f"core/{name}")()
                places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
                found += [(place, kind, name, n) for n, place in enumerate(places)]
        found += [(place, "statement", "DropStatement", 0) for place in DropStatement().places(self.tree)]
        kept = []
        for place, kind, name, occurrence in found:
            inside = [f for f in self.functions if f.first < place[0] <= f.last]
            if not inside or self._is_left_out(place):
                continue
            function = max(inside, key=lambda f: f.first)
            if name == "DropStatement":
                occurrence = place[0]
            line = self.text.splitlines()[place[0] - 1]
            trivial = kind == "condition" and _IS_NONE.search(line)
            if not _FOR_GPUS.search(function.name + line) and not trivial:
                kept.append((function, kind, name, occurrence))
        return kept

    def make(self, name: str, occurrence: int) -> tuple[int, str] | None:
        """Return number and new text of the line, or None where the change is not one of a single line."""
        if name == "DropStatement":
            return occurrence, "pass"
        operator = cosmic_ray.plugins.get_operator(f"core/{name}")()
        after = mutate_code(self.text, operator, occurrence)
        try:
            same = after is None or ast.dump(ast.parse(after)) == ast.dump(self.tree)
        except SyntaxError:
            return None
        return None if same else _one_line(self.text, after)


def groups(root: Path) -> dict[str, list[Source]]:
    """Return the files of every layer, those for GPUs left out."""
    package = root / FOLDERS["python"]
    found = {}
    for layer in LAYERS:
        paths = (p.relative_to(root).as_posix() for p in sorted((package / layer).rglob("*.py")))
        found[layer] = [Source(root, path) for path in paths if not _FOR_GPUS.search(Path(path).name)]
    return found
