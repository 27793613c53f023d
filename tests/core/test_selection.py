"""Selection: argument > use_backend() > environment > default; one predicate chooses and forces."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import pytest
import torch

from causalvae_kernels import (
    BackendUnavailable,
    InvalidInput,
    causal_conv3d,
    causal_pad3d,
    explain,
    group_norm,
    use_backend,
    use_precision,
)
from causalvae_kernels.core import env, native
from causalvae_kernels.core.backend import Backend
from causalvae_kernels.core.known_issues import known_bad_versions, why_conv3d_is_broken
from causalvae_kernels.core.op import Op, all_ops, op_named
from causalvae_kernels.core.precision import resolve_precision
from causalvae_kernels.core.selection import requested_backend
from tests.support.backends import replace_backend

X, WEIGHT = torch.zeros(1, 2, 3, 4, 5), torch.zeros(3, 2, 3, 3, 3)


def _source(**keywords) -> tuple[str | None, str]:
    explanation = explain(causal_conv3d, X, WEIGHT, **keywords)
    return explanation.chosen, explanation.source


def test_who_decides(monkeypatch):
    assert _source() == ("aten", "default")
    monkeypatch.setenv("CAUSALVAE_KERNELS_BACKEND", "reference")
    assert _source() == ("reference", "environment")
    with use_backend("aten"):
        assert _source() == ("aten", "use_backend()")
        assert _source(backend="reference") == ("reference", "argument")
        with use_backend("reference"):
            assert _source() == ("reference", "use_backend()")
        assert _source() == ("aten", "use_backend()")
    assert _source() == ("reference", "environment")
    with use_backend("auto"):
        assert _source() == ("aten", "use_backend()")


def test_a_backend_for_every_op_is_for_those_that_have_it(monkeypatch):
    """On a GPU the norms are Triton's alone, and `cuda` for a whole model must leave them their order."""
    with use_backend("cuda"):
        answer = explain("group_norm", X, 2)
        assert (answer.chosen, answer.source) == ("aten", "default")
        assert torch.equal(group_norm(X, 2), group_norm(X, 2, backend="aten"))
        with pytest.raises(BackendUnavailable, match="'cuda' cannot run this call: .*use_backend"):
            causal_pad3d(X, 2)
    monkeypatch.setenv("CAUSALVAE_KERNELS_BACKEND", "cuda")
    assert explain("group_norm", X, 2).chosen == "aten"
    with pytest.raises(BackendUnavailable, match="group_norm has no such backend"):
        group_norm(X, 2, backend="cuda")


def test_precision_the_same_way(monkeypatch):
    assert resolve_precision(None) == "high"
    monkeypatch.setenv("CAUSALVAE_KERNELS_PRECISION", "exact")
    assert resolve_precision(None) == "exact"
    with use_precision("high"):
        assert resolve_precision(None) == "high"
        assert resolve_precision("exact") == "exact"
    assert resolve_precision("") == "exact"


def test_a_word_in_the_environment_that_means_nothing(monkeypatch):
    monkeypatch.setenv("CAUSALVAE_KERNELS_BACKEND", "cudnn")
    with pytest.raises(InvalidInput, match="CAUSALVAE_KERNELS_BACKEND: got 'cudnn', expected one of auto"):
        causal_pad3d(X, 2)
    monkeypatch.setenv("CAUSALVAE_KERNELS_BACKEND", "  ")
    assert _source() == ("aten", "default")


def test_wrong_words():
    with pytest.raises(InvalidInput), use_backend("tpu"):
        pass
    with pytest.raises(InvalidInput), use_precision("low"):
        pass
    with pytest.raises(InvalidInput, match="expected one of causal_conv3d"):
        explain("conv")


def test_explain_has_a_sentence_for_every_backend():
    explanation = explain("causal_conv3d", X.double(), WEIGHT.double())
    sentences = dict(explanation.rows)
    assert list(sentences) == ["reference", "aten", "cpu", "triton", "cuda"]
    assert sentences["aten"] == "runs this call"
    assert "another backend is preferred" in sentences["reference"]
    for backend in ("cpu", "triton", "cuda"):
        assert sentences[backend].startswith("cannot run this call: ")
    assert str(explanation).count("\n") == 5


def test_auto_holds_nothing_that_was_not_measured():
    for op in all_ops():
        assert op.order == ("aten", "reference")


def test_explain_runs_nothing(monkeypatch):
    def fails(*_):
        raise AssertionError("explain must not run a backend")

    for op in all_ops():
        for backend in op.backends.values():
            replace_backend(monkeypatch, op, replace(backend, write=fails, make=fails, bind=None))
    assert explain(causal_pad3d, X, 2).chosen == "aten"
    with pytest.raises(AssertionError):
        causal_pad3d(X, 2)


def test_one_predicate_chooses_and_forces(monkeypatch):
    """A backend that says no is skipped by auto and raises, with its sentence, when forced."""
    op = op_named("causal_pad3d")
    replace_backend(monkeypatch, op, replace(op.backends["aten"], why_not=lambda *_: "it is Monday"))
    assert explain(causal_pad3d, X, 2).chosen == "reference"
    assert torch.equal(causal_pad3d(X, 2), torch.zeros(1, 2, 5, 4, 5))
    with pytest.raises(BackendUnavailable) as raised:
        causal_pad3d(X, 2, backend="aten")
    message = str(raised.value)
    assert "backend 'aten' cannot run this call: it is Monday" in message
    assert "reference can run this call" in message and "cpu " in message
    for name in ("reference", "cpu"):
        replace_backend(monkeypatch, op, replace(op.backends[name], why_not=lambda *_: "nor this"))
    with pytest.raises(BackendUnavailable, match="no backend can run this call"):
        causal_pad3d(X, 2)


def test_an_exception_in_a_backend_is_not_swallowed(monkeypatch):
    op = op_named("causal_pad3d")

    def breaks(*_):
        raise ZeroDivisionError

    replace_backend(monkeypatch, op, Backend("aten", make=breaks))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            causal_pad3d(X, 2)


def test_contexts_belong_to_a_thread():
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(_source()))
        thread.start()
        thread.join()
    assert seen == [("aten", "default")]


def test_the_environment_table_is_complete():
    names = [variable.name for variable in env.TABLE]
    assert len(set(names)) == len(names)
    assert all(name.startswith("CAUSALVAE_KERNELS_") for name in names)
    assert all(variable.meaning.endswith(".") and variable.default for variable in env.TABLE)


def test_a_dispatch_mode_sees_the_operator():
    """Called directly, an op skips the dispatcher; nothing that looks on may notice."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Listen(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Listen() as listening, torch.no_grad():
        causal_conv3d(X, WEIGHT)
    assert "causalvae_kernels.causal_conv3d.default" in listening.names


def test_meta_and_fake_tensors_run_nothing():
    meta = causal_conv3d(X.to("meta"), WEIGHT.to("meta"))
    assert meta.device.type == "meta" and meta.shape == (1, 3, 3, 4, 5)
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = causal_conv3d(mode.from_tensor(X), mode.from_tensor(WEIGHT))
    assert type(fake).__name__ == "FakeTensor" and fake.shape == (1, 3, 3, 4, 5)


def test_known_bad_versions():
    assert known_bad_versions("2.13.0+cpu", None) == [] or torch.cuda.is_available()
    assert "163539" in known_bad_versions("2.10.0", 91002)[0]
    assert "166643" in " ".join(known_bad_versions("2.9.1", 91200))
    assert known_bad_versions("2.9.1", 91500) == []
    assert known_bad_versions("2.12.0", 91500) == []


@pytest.mark.parametrize("version, broken", [(91002, (True, False, False)), (91500, (False,) * 3)])
def test_dtypes_that_a_version_breaks(monkeypatch, version, broken):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    monkeypatch.setattr(torch, "__version__", "2.10.0+cu130")
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    assert tuple(why_conv3d_is_broken(dtype) is not None for dtype in dtypes) == broken


def test_reference_comes_with_the_op():
    for op in all_ops():
        assert isinstance(op, Op) and "reference" in op.backends
        assert op.backends["reference"].why_not(None, "high", None) is None


def test_the_native_module_is_built():
    """Or the tests of the backend `cpu` would pass by not being there."""
    if os.environ.get("CAUSALVAE_KERNELS_SKIP_BUILD", "0") not in ("", "0"):
        pytest.skip("CAUSALVAE_KERNELS_SKIP_BUILD is set")
    assert native.why_no_cpu() is None


def test_a_compiler_reads_the_backend_that_holds_and_guards_on_it():
    @torch.compile(backend="eager", fullgraph=True)
    def asked(x):
        return x + (requested_backend(None)[0] == "aten")

    zero = torch.zeros(())
    assert asked(zero) == 0
    with use_backend("aten"):
        assert asked(zero) == 1
        with use_backend("reference"):
            assert asked(zero) == 0
    assert asked(zero) == 0
