"""The demo's VAEs: the small random one, and folders that can or cannot be loaded."""

import json

import pytest
import torch

from causalvae_kernels.core.errors import InvalidInput
from causalvae_kernels.demo.vae import small_random_vae, spatial_factor
from causalvae_kernels.models.loading import load_vae, vae_folder

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    vae = small_random_vae(seed=3)
    vae.save_pretrained(folder)
    return folder, vae


@pytest.fixture
def copy_of(saved, tmp_path):
    """A fresh copy of the saved folder, to be spoilt."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in saved[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_same_weights(one, other):
    other = other.state_dict()
    assert one.state_dict().keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.state_dict().items())


def test_small_vae_depends_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = small_random_vae(seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert_same_weights(first, small_random_vae(seed=0))
    assert not torch.equal(
        first.encoder.conv_in.conv.weight, small_random_vae(seed=1).encoder.conv_in.conv.weight
    )
    assert not first.training
    assert spatial_factor(first) == 8


def test_folder_is_loaded(saved):
    folder, vae = saved
    loaded = load_vae(folder)
    assert_same_weights(loaded, vae)
    assert not loaded.training


def test_dtype(saved):
    assert small_random_vae(torch.bfloat16).dtype == torch.bfloat16
    assert load_vae(saved[0], torch.bfloat16).dtype == torch.bfloat16


def test_pipeline_folder_is_loaded(saved, tmp_path):
    (tmp_path / "vae").symlink_to(saved[0])
    assert vae_folder(tmp_path) == tmp_path / "vae"
    assert_same_weights(load_vae(tmp_path), saved[1])


def test_variant_is_loaded(saved, tmp_path):
    saved[1].save_pretrained(tmp_path, variant="fp16")
    assert_same_weights(load_vae(tmp_path), saved[1])


def test_shards_are_loaded(saved, tmp_path):
    saved[1].save_pretrained(tmp_path, max_shard_size="2MB", variant="fp16")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_weights(load_vae(tmp_path), saved[1])


def test_no_such_folder(tmp_path):
    with pytest.raises(InvalidInput, match="no such folder"):
        load_vae(tmp_path / "missing")


def test_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="is a file, expected a diffusers folder"):
        load_vae(tmp_path / "file")


def test_empty_folder(tmp_path):
    with pytest.raises(InvalidInput, match=r"neither config\.json nor vae/config\.json"):
        load_vae(tmp_path)


def test_config_that_is_no_json(copy_of):
    (copy_of / "config.json").write_text("{")
    with pytest.raises(InvalidInput, match="cannot be read as a configuration"):
        load_vae(copy_of)


def test_another_class(copy_of):
    change_config(copy_of, _class_name="AutoencoderKLWan")
    with pytest.raises(InvalidInput, match="describes AutoencoderKLWan, expected AutoencoderKLCogVideoX"):
        load_vae(copy_of)


def test_no_weights(copy_of):
    (copy_of / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"holds no diffusion_pytorch_model\*\.safetensors"):
        load_vae(copy_of)


def test_weights_that_are_cut_off(copy_of):
    path = copy_of / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        load_vae(copy_of)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"block_out_channels": [16, 32, 48, 64]}, id="another size"),
        pytest.param({"layers_per_block": 2}, id="missing"),
        pytest.param({"block_out_channels": [16, 32, 48], "down_block_types": 3 * ["CogVideoXDownBlock3D"],
                      "up_block_types": 3 * ["CogVideoXUpBlock3D"]}, id="not known"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(copy_of, changes):
    change_config(copy_of, **changes)
    with pytest.raises(InvalidInput, match=f"weights {copy_of}") as caught:
        load_vae(copy_of)
    assert "\n" not in str(caught.value)
