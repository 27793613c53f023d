"""MSE and PSNR against formulas worked out by hand; sentences about frame counts; amplification."""

import math

import pytest
import torch

from causalvae_kernels.data.metrics import frame_max_difference, frame_mse, psnr
from causalvae_kernels.demo.panels import amplification


def test_mse_by_hand():
    target = torch.zeros(2, 3, 1, 2)
    video = target.clone()
    video[1, 0, 0, 0] = 0.5
    video[1, 2, 0, 1] = -0.25
    assert frame_mse(video, target) == [0.0, pytest.approx((0.25 + 0.0625) / 6, rel=1e-12)]


def test_mse_of_a_constant_offset():
    target = torch.rand(3, 3, 4, 4)
    assert frame_mse(target + 0.1, target) == pytest.approx([0.01] * 3, rel=1e-5)


@pytest.mark.parametrize(("mse", "decibel"), [(1.0, 0.0), (0.01, 20.0), (0.001, 30.0), (0.25, 6.0205999)])
def test_psnr_by_hand(mse, decibel):
    assert psnr(mse) == pytest.approx(decibel, abs=1e-6)


def test_psnr_of_no_error_and_of_nan():
    assert psnr(0.0) == math.inf
    assert math.isnan(psnr(math.nan))


def test_largest_difference_by_hand():
    a = torch.zeros(2, 3, 2, 2)
    b = a.clone()
    b[0, 1, 1, 0] = -0.5
    b[1, 2, 0, 0] = math.nan
    first, second = frame_max_difference(a, b)
    assert first == 0.5
    assert math.isnan(second)


@pytest.mark.parametrize(("size", "factor"), [(0.9e-5, 5e4), (2.4e-3, 2e2), (0.5, 1.0), (0.9, 1.0)])
def test_amplification_brings_a_constant_near_one_half(size, factor):
    assert amplification(torch.full((100,), size)) == pytest.approx(factor)


def test_amplification_of_nothing():
    assert amplification(torch.zeros(10)) == 1.0
    assert amplification(torch.full((10,), math.nan)) == 1.0
