"""`families`: the table, the JSON, and that `docs/families.md` is what it writes."""

import json
from pathlib import Path

import pytest

from causalvae_kernels.demo import families
from causalvae_kernels.models import FAMILIES
from causalvae_kernels.temporal.model_rules import FAMILIES as KNOWN

pytest.importorskip("diffusers")
PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def test_the_page_is_up_to_date(run):
    result = run("families", "--markdown")
    assert result.code == 0, result.stderr
    assert PAGE.read_text(encoding="utf-8") == result.stdout, (
        "write it again: causalvae-kernels families --markdown > docs/families.md"
    )


def test_each_rule_says_what_runs():
    """No row of the page is empty, or tells what the file of a rule is about."""
    for family in FAMILIES.values():
        for name, rule in {**family.rules, **family.adapted}.items():
            words = families._first_sentence(rule.forward)
            assert words, f"{rule.forward.__module__}: the docstring of the rule for {name} is no sentence"
            assert "The rules for" not in words and "encoder and decoder" not in words


def test_json_and_table(run, refuse):
    facts = {row["model"]: row for row in json.loads(run("families", "--json").stdout)}
    assert set(facts) == {*FAMILIES, *KNOWN}
    for name, row in facts.items():
        assert row["has_rules"] == (name in FAMILIES)
        assert row["replaced"] and row["frames"] and all(row["replaced"].values())
        if name in FAMILIES:
            assert set(row["replaced"]) == {*FAMILIES[name].rules, *FAMILIES[name].adapted}
            assert row["left"] == FAMILIES[name].needs_no_rule
    assert facts["AutoencoderKLMagvit"]["tests"] == ["the contract", "test_magvit.py"]
    result = run("families")
    assert result.code == 0 and all(name in result.stdout for name in facts)
    assert "does not go with" in refuse("families", "--json", "--markdown")
