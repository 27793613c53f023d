"""What makes a coder be read again, and what does not."""

import copy

import pytest
import torch
from torch import nn

from causalvae_kernels.coder import Watch


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(2, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.act = nn.SiLU()
        self.scale = 1.5


def hook(model):
    model.blocks[0].act.register_forward_hook(lambda *_: None)


def pre_hook(model):
    model.blocks[0].register_forward_pre_hook(lambda *_: None)


def replaced_forward(model):
    model.blocks[1].norm.forward = lambda x: x


def other_child(model):
    model.blocks[0].act = nn.ReLU()


def taken_child(model):
    model.blocks[0].act = None


def setting(model):
    model.blocks[0].norm.eps = 1e-3


def own_setting(model):
    model.blocks[1].scale = 2.0


def mode(model):
    model.eval()


def half(model):
    model.bfloat16()


def layout(model):
    model.to(memory_format=torch.channels_last_3d)


def parametrized(model):
    nn.utils.parametrizations.weight_norm(model.blocks[0].conv)


def other_class(model):
    model.blocks[0].act.__class__ = nn.Identity


def accelerated(model):
    model.blocks[0].conv._hf_hook = object()


def no_bias(model):
    model.blocks[0].conv.bias = None


def strided_bias(model):
    model.blocks[0].conv.bias.data = torch.randn(8)[::2]


def new_child(model):
    model.blocks.append(nn.Identity())


def bias_is_back(model):
    model.blocks[1].norm.bias = nn.Parameter(torch.zeros(4))


CHANGES = [
    new_child,
    bias_is_back,
    strided_bias,
    hook,
    pre_hook,
    replaced_forward,
    other_child,
    taken_child,
    setting,
    own_setting,
    mode,
    half,
    layout,
    parametrized,
    other_class,
    accelerated,
    no_bias,
]


@pytest.fixture
def model():
    root = nn.Module()
    root.blocks = nn.ModuleList([Block(), Block()])
    root.blocks[1].norm.bias = None
    return root


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_changes_are_noticed(change, model):
    watch = Watch(model)
    assert watch.holds() and watch.holds()
    change(model)
    assert not watch.holds()
    assert Watch(model).holds()


def test_a_hook_that_goes_is_noticed(model):
    handle = model.blocks[0].register_forward_hook(lambda *_: None)
    watch = Watch(model)
    model.blocks[0].register_forward_hook(lambda *_: None)  # it is called all the same
    assert watch.holds()
    model.blocks[0]._forward_hooks.clear()
    assert not watch.holds()
    handle.remove()


def test_other_values_of_weights_are_not(model):
    watch, other = Watch(model), copy.deepcopy(model)
    model.load_state_dict(other.state_dict())
    model.blocks[0].conv.weight = nn.Parameter(torch.randn(4, 2, 3, 3, 3))
    with torch.no_grad():
        model.blocks[1].conv.weight.add_(1)
    assert watch.holds()
    assert all(a is b for a, b in zip(watch.parameters, model.parameters(), strict=True))
