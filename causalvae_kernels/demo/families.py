"""What is replaced in which family, told by the rules themselves: for a table, a page and JSON."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..models import FAMILIES, recorded
from ..models.family_names import families
from ..models.generic import recognise
from ..models.swap import Family, Link, Swap
from ..temporal.frame_rule import short_name
from .family_check import build, rule_of

_CHECKOUT = Path(__file__).parents[2]

_INTRODUCTION = """# Families

What `swap` replaces in each VAE of diffusers. This page is generated from the rules by `causalvae-kernels
families --markdown`.

For classes without rules, and for any other model, causal convolutions are detected numerically: each module
that is or holds one `nn.Conv3d` is run on a few random pixels with random weights, and is replaced if its
outputs equal those of `causal_conv3d` for every length of clip and the run changed nothing on it. If its
gradients differ, it is replaced only in calls that need none. It runs unmodified as soon as anything that its
`forward` can read has changed since the swap: attributes of the instance and of its classes, buffers, new
parameters. `handle.refresh()` checks again; globals and closures are not observed. A model without any such
module is refused, and the error says what was looked for.

Every family with rules passes one contract, `tests/models/test_families.py`: encode and decode with 1, 5 and
17 frames, float32 and bfloat16, every CPU backend, under the tolerance rule against a float64 copy; the tier
`exact` bit for bit; tiling, slicing, checkpointing, training and gradients; saving, loading, casting, deep
copies, pickles, hooks, `torch.compile`; and any number of frames in, the same number out. Further tests cover
what is particular to a family. `causalvae-kernels verify --family NAME --weights FOLDER` checks weights of
your own. Modules that are left run as diffusers wrote them; `handle.report` lists them with reasons.
"""


@dataclass(frozen=True)
class FamilyFacts:
    """What is known about one class.

    Attributes:
        family: The word for it: "Wan".
        model: The class.
        has_rules: Whether somebody wrote rules for it.
        replaced: Classes of modules that are replaced, and what replaces them.
        left: Classes that are left, and why.
        frames: Which numbers of frames make the round trip as shipped, in words.
        adapted: Which numbers the model runs with `frames="any"`; others are padded and cropped.
        tests: The contract and files of its own, where the tests are there.
    """

    family: str
    model: str
    has_rules: bool
    replaced: dict[str, str]
    left: dict[str, str]
    frames: str
    adapted: str
    tests: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


def all_families() -> Iterator[FamilyFacts]:
    """Give the classes with rules, then those whose convolutions are recognised."""
    for model in sorted(families(), key=lambda model: model not in FAMILIES):
        yield _written(FAMILIES[model]) if model in FAMILIES else _recognised(model)


def _written(family: Family) -> FamilyFacts:
    replaced = {name: _first_sentence(rule.forward) for name, rule in family.rules.items()}
    adapted = {n: _first_sentence(r.forward) for n, r in family.adapted.items() if n not in replaced}
    replaced |= {name: f'with `frames="any"`: {words}' for name, words in adapted.items()}
    rules = (*family.rules.values(), *family.adapted.values())
    modules = {rule.forward.__module__.rpartition(".")[2] for rule in rules}
    return _facts(family.model, True, replaced, dict(family.needs_no_rule), _tests_of(family.model, modules))


def _recognised(model: str) -> FamilyFacts:
    """Recognise the convolutions of a small model with random weights."""
    vae = build(model, None, torch.float32)
    family = recognise(vae)
    handle = Swap(vae, family, Link(family.model, None, None, own=family))
    report = handle.report
    handle.restore()
    replaced = {entry.type_name: "`causal_conv3d`" for entry in report if entry.replaced}
    left = {e.type_name: e.reason for e in report if not e.replaced and e.type_name not in replaced}
    partly = {e.type_name: e.reason for e in report if not e.replaced and e.type_name in replaced}
    replaced |= {name: f"`causal_conv3d`; others are left: {reason}" for name, reason in partly.items()}
    return _facts(model, False, replaced, left, ("test_generic.py",))


def _facts(
    model: str, has_rules: bool, replaced: dict[str, str], left: dict[str, str], tests: tuple[str, ...]
) -> FamilyFacts:
    rule = rule_of(model)
    images = "no rule is known: single images"
    words = (images, images) if rule is None else (rule.words(), rule.words(adapted=True))
    return FamilyFacts(short_name(model), model, has_rules, replaced, left, *words, tests)


def _first_sentence(function: Any) -> str:
    """Return what a rule's docstring says first, behind the name of the class: "`Class`: what runs."."""
    if function is recorded.coder:
        return _RECORDED
    text = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    return text.partition(": ")[2].removesuffix(".")


_RECORDED = "its own `forward` is recorded as a schedule, else its modules run one by one"


def _tests_of(model: str, modules: set[str]) -> tuple[str, ...]:
    """Return the contract, if it has a model of this class, and the tests named like a file of rules."""
    families = {module.partition("_")[0] for module in modules}
    tests = _CHECKOUT / "tests"
    models = tests / "support" / "tiny_vaes.py"
    found = []
    if models.is_file() and f'"{model}"' in models.read_text(encoding="utf-8"):
        found.append("the contract")
    for path in sorted((tests / "models").glob("test_*.py")):
        name = path.stem.removeprefix("test_").removeprefix("swap_").partition("_")[0]
        if any(name.startswith(family) or family.startswith(name) for family in families):
            found.append(path.name)
    return tuple(found)


def markdown(found: list[FamilyFacts]) -> str:
    """Return the page `docs/families.md`."""
    lines = [
        _INTRODUCTION,
        "| class | replaced | left | frames as shipped | tests |",
        "|---|---|---|---|---|",
    ]
    for family in found:
        tests = ", ".join(f"`{name}`" if name.endswith(".py") else name for name in family.tests)
        kind = "rules for {}" if family.has_rules else "detected in {}"
        name = f"[{family.model}](#{family.model.lower()})"
        replaced, left = (kind.format(_classes(family.replaced)), _classes(family.left))
        lines.append(f"| {name} | {replaced} | {left} | {family.frames} | {tests} |")
    for family in found:
        lines += ["", f"## {family.model}", ""]
        if not family.has_rules:
            lines += ["No rules of its own; this is what is detected in a small model.", ""]
        lines += ["| module | what runs |", "|---|---|"]
        lines += [f"| `{name}` | {words} |" for name, words in family.replaced.items()]
        lines += [f"| `{name}` | left: {words} |" for name, words in family.left.items()]
        adapted = "" if family.adapted == family.frames else f' With `frames="any"` it runs {family.adapted}.'
        lines += ["", f"Frames as shipped: {family.frames}.{adapted}"]
    return "\n".join(lines) + "\n"


def _classes(found: dict[str, str]) -> str:
    return "1 class" if len(found) == 1 else f"{len(found)} classes"
