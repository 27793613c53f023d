"""Latents for training: what an item is, its noise, batches of equal shapes, workers and processes."""

import importlib.util
import math
import multiprocessing
import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from causalvae_kernels.core.errors import InvalidInput
from causalvae_kernels.data import LatentDataset, ShapeBatches
from causalvae_kernels.demo.vae import WEIGHTS
from tests.support.datasets import encode
from tests.support.video_files import make_video

pytest.importorskip("av")
pytest.importorskip("diffusers")
safetensors_torch = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def latents(weights, tmp_path_factory):
    """Seven clips of two shapes, and a broken one, in shards of three."""
    folder = tmp_path_factory.mktemp("latents")
    clips = folder / "clips"
    clips.mkdir()
    for index, frames in enumerate((5, 9, 5, 9, 5, 7, 5)):
        make_video(clips / f"{index}.mp4", frames, (24, 16), seed=index)
    (clips / "broken.mp4").write_bytes(b"")
    encode(clips, "--weights", weights, "--output", folder / "out", "--clips-per-shard", "3")
    encode(clips, "--weights", weights, "--output", folder / "mean", "--mode")
    return folder / "out"


def moments(folder, entry):
    tensors = safetensors_torch.load_file(folder / entry["shard"])
    return tensors[f"{entry['key']}.mean"], tensors[f"{entry['key']}.logvar"]


def test_an_item_is_the_posterior_and_its_count(latents):
    dataset = LatentDataset(latents, draw="mean")
    assert [entry["source"] for entry in dataset.entries] == [f"{i}.mp4" for i in range(7)]
    for index in (6, 0, 3, -1):
        item = dataset[index]
        assert torch.equal(item["latents"], moments(latents, dataset.entries[index])[0])
        assert item["num_frames"] == dataset.entries[index]["num_frames"] and item["fps"] == 24
    assert [dataset[i]["num_frames"] for i in range(7)] == [5, 9, 5, 9, 5, 7, 5]
    assert [shape[1] for shape in dataset.shapes] == [2, 3, 2, 3, 2, 3, 2]
    assert LatentDataset(latents, dtype=torch.bfloat16)[0]["latents"].dtype == torch.bfloat16


def test_noise_is_fresh_and_has_the_variance_of_the_posterior(latents):
    dataset = LatentDataset(latents, generator=torch.Generator().manual_seed(1))
    mean, logvar = moments(latents, dataset.entries[2])
    draws = torch.stack([dataset[2]["latents"] for _ in range(300)])
    assert not torch.equal(draws[0], draws[1])
    standard = (draws - mean) / (logvar / 2).exp()
    # 300 draws of each of `numel` elements: six standard errors of a mean and of a variance.
    count = standard.numel()
    assert abs(standard.mean()) < 6 / math.sqrt(count)
    assert abs(standard.var() - 1) < 6 * math.sqrt(2 / count)
    again = LatentDataset(latents, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again[2]["latents"], draws[0])


def collected(dataset, workers, seed=0, **options):
    loader = DataLoader(
        dataset, num_workers=workers, generator=torch.Generator().manual_seed(seed), batch_size=1, **options
    )
    epochs = [[(int(item["index"]), item["latents"][0]) for item in loader] for _ in range(2)]
    return epochs


def _noise_of_workers(latents, queue):
    torch.manual_seed(0)
    dataset = LatentDataset(latents, generator=torch.Generator().manual_seed(1))
    dataset[0]  # files that are open in this process are not shared with the workers
    again = LatentDataset(latents, generator=torch.Generator().manual_seed(1))
    forked = {"multiprocessing_context": "fork"}
    epochs = [*collected(dataset, 2, **forked), collected(again, 2, **forked)[0]]
    queue.put([[(index, drawn.numpy()) for index, drawn in epoch] for epoch in epochs])


def test_workers_draw_other_noise_from_each_other_and_from_epoch_to_epoch(latents):
    # In a process of its own: workers that were forked from this one, with all that other tests have
    # started in it, hung once in three runs.
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_noise_of_workers, args=(latents, queue))
    process.start()
    epochs = queue.get(timeout=120)
    process.join()
    first, second, again = ([(i, torch.from_numpy(drawn)) for i, drawn in epoch] for epoch in epochs)
    assert [index for index, _ in first] == list(range(7))
    mean = [moments(latents, entry) for entry in LatentDataset(latents).entries]
    noise = [((drawn - mean[i][0]) / (mean[i][1] / 2).exp()).flatten()[:50] for i, drawn in (*first, *second)]
    for i, one in enumerate(noise):
        for other in noise[:i]:
            assert not torch.allclose(one, other, atol=1e-3)
    for (_, one), (_, other) in zip(first, again, strict=True):
        assert torch.equal(one, other)


def test_it_travels_to_processes_that_are_spawned(latents):
    dataset = LatentDataset(latents, draw="mean", generator=torch.Generator())
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[4]["latents"], dataset[4]["latents"])
    drawing = LatentDataset(latents, generator=torch.Generator().manual_seed(3))
    copy = pickle.loads(pickle.dumps(drawing))
    assert torch.equal(copy[2]["latents"], drawing[2]["latents"])
    (one, _) = collected(copy, 1, multiprocessing_context="spawn")
    assert [index for index, _ in one] == list(range(7))


def test_batches_have_one_shape_and_hold_every_clip(latents):
    dataset = LatentDataset(latents)
    batches = ShapeBatches(dataset, 2)
    loader = DataLoader(dataset, batch_sampler=batches)
    orders = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        found = [batch["index"].tolist() for batch in loader]
        assert sorted(sum(found, [])) == list(range(7)) and len(found) == len(batches) == 4
        assert all(len({dataset.shapes[i] for i in batch}) == 1 for batch in found)
        orders.append(found)
    assert orders[0] != orders[1] or orders[1] != orders[2]
    dropped = list(ShapeBatches(dataset, 2, drop_last=True))
    assert sorted(map(len, dropped)) == [2, 2, 2]
    assert list(ShapeBatches(dataset, 3, shuffle=False)) == [[0, 2, 4], [6], [1, 3, 5]]


@pytest.mark.parametrize("replicas", [2, 3])
def test_every_process_gets_as_many_batches_of_the_same_shapes(latents, replicas):
    dataset = LatentDataset(latents)
    parts = [list(ShapeBatches(dataset, 2, rank=r, num_replicas=replicas)) for r in range(replicas)]
    shapes = [[(len(batch), dataset.shapes[batch[0]]) for batch in part] for part in parts]
    assert all(part == shapes[0] for part in shapes)
    assert {i for part in parts for batch in part for i in batch} == set(range(7))


def test_distributed_sampler(latents):
    dataset = LatentDataset(latents, draw="mean")
    seen = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=False)
        seen += [int(item["index"]) for item in DataLoader(dataset, sampler=sampler, batch_size=1)]
    assert set(seen) == set(range(7))


def test_what_cannot_be_read_is_refused(latents, weights, tmp_path):
    with pytest.raises(InvalidInput, match="holds no dataset.json"):
        LatentDataset(tmp_path)
    with pytest.raises(InvalidInput, match="draw is 'mode'"):
        LatentDataset(latents, draw="mode")
    with pytest.raises(InvalidInput, match="expected draw='mean'"):
        LatentDataset(latents.parent / "mean")
    assert len(LatentDataset(latents.parent / "mean", draw="mean")) == 7
    with pytest.raises(InvalidInput, match="batch_size 0"):
        ShapeBatches(LatentDataset(latents), 0)
    encode(
        *(latents.parent / "clips" / "0.mp4", "--weights", weights, "--output", tmp_path / "tar"),
        *("--format", "webdataset"),
    )
    with pytest.raises(InvalidInput, match="the form webdataset"):
        LatentDataset(tmp_path / "tar")


def test_the_example_learns(latents, tmp_path):
    # With random weights a posterior is nothing but noise, of which there is nothing to learn.
    encode(latents.parent / "clips", "--weights", WEIGHTS, "--output", tmp_path / "trained")
    path = Path(__file__).parents[2] / "examples" / "train_latents.py"
    spec = importlib.util.spec_from_file_location("train_latents", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    losses = example.train(tmp_path / "trained", seconds=300, steps=300)
    assert len(losses) == 300 and sum(losses[-30:]) < 0.8 * sum(losses[:30])
