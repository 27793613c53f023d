"""The list of mutants: each is found in the tree, and what finds them copes with code that moved."""

from pathlib import Path

import pytest

from tests.mutants import cxx, find, results
from tests.mutants.find import Gone, changed, locate

if not (find.ROOT / "csrc").exists():
    pytest.skip("the sources of the package are not here", allow_module_level=True)

PYTHON = """
def double(x):
    return x + x


class Sum:
    def of(self, items):
        total = 0
        for item in items:
            total += item
        return total
"""
CXX = """
namespace cvk {
// A brace in a comment { and a text: "}".
template <class Type>
inline int count(const Type& items, int from) {
  if (from < 0) return 0;
  for (int i = from; i < 3; ++i) { from += items[i]; }
  return from;
}
struct Walk {
  int step = 1;
  Walk(int first) : step{first} {}
  int operator()(int n) const { return n + step; }
};
}  // namespace cvk
"""


def mutant(function, before, after, **more):
    defaults = {"id": "x", "language": "python", "module": "core.sums", "occurrence": 0}
    return defaults | {"function": function, "before": before, "after": after} | more


@pytest.fixture
def tree(tmp_path):
    for name, text in (("core/sums.py", PYTHON), ("ops/other.py", PYTHON)):
        path = tmp_path / "causalvae_kernels" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path


def test_every_mutant_of_the_list_is_in_the_tree():
    gone = []
    for listed in results.read():
        try:
            path, _, text = changed(find.ROOT, listed)
        except Gone as reason:
            gone.append(str(reason))
            continue
        assert text != (find.ROOT / path).read_text(), listed["id"]
    assert not gone, "draw others with `python -m tests.mutants.draw --renew`: " + "; ".join(gone)


def test_every_id_is_there_once():
    ids = [listed["id"] for listed in results.read()]
    assert len(ids) == len(set(ids)) >= 160


def test_a_change_keeps_the_rest_of_the_file(tree):
    path, line, text = changed(tree, mutant("Sum.of", "total += item", "total -= item"))
    assert (path, line) == ("causalvae_kernels/core/sums.py", 10)
    assert text == PYTHON.replace("total += item", "total -= item")


def test_a_function_is_followed_into_another_file(tree):
    (tree / "causalvae_kernels" / "ops" / "other.py").unlink()
    moved = mutant("double", "return x + x", "return x - x", module="temporal.gone")
    assert locate(tree, moved) == ("causalvae_kernels/core/sums.py", 3)


@pytest.mark.parametrize(
    "lost",
    [
        mutant(
            "double", "return x + x", "", module="temporal.gone"
        ),  # in two files, and in neither named one
        mutant("double", "return x + x", "", occurrence=1),
        mutant("double", "return x + x + 0", ""),
        mutant("triple", "return x + x", ""),
    ],
    ids=["ambiguous", "fewer lines", "another line", "another name"],
)
def test_what_is_lost_is_gone(tree, lost):
    with pytest.raises(Gone):
        locate(tree, lost)


def test_functions_of_cxx_are_found_by_their_braces():
    found = list(cxx.functions(CXX))
    assert found == [("count", 4, 9), ("Walk::Walk", 12, 12), ("Walk::operator()", 13, 13)]


def test_a_list_is_replaced_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "LIST", Path(tmp_path, "mutants.json"))
    assert results.read() == []
    results.write([{"id": "é"}])
    assert results.read() == [{"id": "é"}] and [p.name for p in tmp_path.iterdir()] == ["mutants.json"]
