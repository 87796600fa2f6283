"""The study's runs on a GPU: the same crops, steps and schedule as the Trainer's, here without the graphs."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from c2fmae_hf.constants import IMAGENET_MEAN, IMAGENET_STD
from c2fmae_hf.training.trainer import C2FMAETrainer


@pytest.fixture
def scripts(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks/representation"))
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    yield
    names = ("answers", "common", "data", "fleet", "gpu_data", "pretrain", "protocols", "study", "variants")
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def rows():
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (64, 12, 12, 3), dtype=np.uint8)
    made = []
    for label, pixels in enumerate(coarse):
        ids = np.zeros((96, 96), dtype=np.uint8)
        top, left = random.integers(0, 48, 2)
        ids[top : top + 48, left : left + 40] = 1
        image = Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC)
        maps = {"semantic": Image.fromarray(ids * (1 + label % 10)), "instance": Image.fromarray(ids)}
        made.append({"image": image, **maps, "label": label % 10, "image_id": str(label)})
    return made


def test_crops_are_torchvisions(scripts, rows):
    from gpu_data import crop_images, crop_maps, draw_boxes

    images = torch.stack([tvF.pil_to_tensor(row["image"]) for row in rows])
    maps = torch.from_numpy(np.stack([np.asarray(row["semantic"]) for row in rows]))
    boxes = draw_boxes(len(rows), 96, torch.Generator().manual_seed(0))
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels, cells = crop_images(images, boxes) * std + mean, crop_maps(maps, boxes, 24)
    differences = []
    for index, box in enumerate(zip(*(values.tolist() for values in boxes))):
        top, left, height, width, flipped = box
        part = images[index, :, top : top + height, left : left + width]
        expected = tvF.resize(part, [96, 96], InterpolationMode.BICUBIC, antialias=True)
        grid = [
            start + ((np.arange(24) + 0.5) * side / 24).astype(int) for start, side in ((top, height), (left, width))
        ]
        labels = maps[index][grid[0][:, None], grid[1]]
        if flipped:
            expected, labels = expected.flip(-1), labels.flip(-1)
        differences.append((pixels[index] - expected).abs())
        assert torch.equal(cells[index], labels.long())
    found = torch.stack(differences)
    assert found.max() < 2.01
    assert (found > 0.5).float().mean() < 0.03


def test_boxes_are_spread_as_torchvisions(scripts):
    from gpu_data import draw_boxes
    from torchvision.transforms import v2

    torch.manual_seed(0)
    crop, image = v2.RandomResizedCrop((96, 96), (0.2, 1.0), (3 / 4, 4 / 3)), Image.new("RGB", (96, 96))
    expected = [crop.make_params([image]) for _ in range(2000)]
    found = draw_boxes(20000, 96, torch.Generator().manual_seed(0))
    for name in ("top", "left", "height", "width"):
        theirs, ours = np.array([box[name] for box in expected]), getattr(found, name).numpy()
        error = theirs.std() / len(theirs) ** 0.5
        assert abs(theirs.mean() - ours.mean()) < 4 * error
        assert ours.std() == pytest.approx(theirs.std(), rel=0.08)
    assert found.flipped.float().mean() == pytest.approx(0.5, abs=0.02)


def test_maps_of_variants(scripts, rows):
    from pretrain import with_maps

    from c2fmae_hf.data.dataset import C2FMAEDataset
    from c2fmae_hf.data.transforms import evaluation_transform

    assert with_maps(rows, "annotated") == rows
    unlabelled = {**rows[0], "semantic": Image.fromarray(np.array([[0, 7, 254, 255]], dtype=np.uint8))}
    (objects,) = with_maps([unlabelled], "objects")
    assert np.asarray(objects["semantic"]).tolist() == [[0, 1, 1, 255]]
    (objects,) = {frozenset(np.unique(row["semantic"])) for row in with_maps(rows, "objects")}
    assert objects == {0, 1}
    classical = with_maps(rows, "classical")
    sample = C2FMAEDataset(classical, evaluation_transform((96, 96)), num_semantic_classes=32)[3]
    assert sample["semantic"].min() >= 0
    assert len(sample["semantic"].unique()) > 1  # classes of colour, whatever was annotated
    assert len({value for row in classical for value in np.unique(row["semantic"])}) == 32


@pytest.mark.parametrize(
    "name", ["curriculum", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mae", "supervised"))]
)
def test_a_run_is_the_trainers(scripts, rows, tmp_path, name, monkeypatch):
    import fleet
    import variants
    from gpu_data import Photographs
    from pretrain import build_model, make_arguments
    from transformers import Trainer, default_data_collator
    from variants import VARIANTS

    # The two draw the patches to decode from other generators.
    monkeypatch.setitem(variants.ENCODERS["small"], "decoder_prediction_ratio", 1.0)
    steps = 4  # two epochs of two batches
    photographs = [Photographs(rows, seed, 24, torch.device("cpu")) for seed in (0, 1)]
    ensemble = fleet.Ensemble([(name, 0), (name, 1)], photographs, steps, "small", tmp_path)
    seen = []
    draw = ensemble.batch

    def remember():
        batch = draw()
        seen.append({key: value[0].clone() for key, value in batch.items()})
        return batch

    ensemble.batch = remember
    assert fleet.train([ensemble]) == 2 * steps
    assert len(seen) == steps
    assert not torch.equal(seen[0]["pixel_values"], seen[2]["pixel_values"])

    samples = [{key: value[row] for key, value in batch.items()} for batch in seen for row in range(32)]
    args = make_arguments(
        VARIANTS[name], 0, steps, tmp_path, 0, use_cpu=True, train_sampling_strategy="sequential", logging_steps=1
    )
    args.disable_tqdm = True
    trainer_class = Trainer if name == "supervised" else C2FMAETrainer
    model = build_model(VARIANTS[name], 0)
    trainer = trainer_class(model, args, data_collator=default_data_collator, train_dataset=samples)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    np.testing.assert_allclose(ensemble.losses[:, 0].tolist(), losses, rtol=1e-4)
    for key, value in trainer.model.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(ensemble.parameters[key][0], value, rtol=1e-3, atol=5e-5)
    encoders = list(ensemble.encoders())
    assert [entry[:2] for entry in encoders] == [(name, 0), (name, 1)]
    weight = encoders[0][2].blocks[3].mlp.fc1.weight
    expected = {key: value for key, value in trainer.model.named_parameters() if value.shape == weight.shape}
    assert any(torch.allclose(weight, value, rtol=1e-3, atol=5e-5) for value in expected.values())


SLOW = ("mae", "visible", "no_feedback", "class_token", "feeds_memory", "shared_blocks", "self_attention")


@pytest.mark.parametrize(
    "name",
    [
        *("all_inputs", "supervised"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_models_side_by_side_are_each_alone(scripts, rows, tmp_path, monkeypatch, name):
    import fleet
    import variants
    from gpu_data import Photographs

    from c2fmae_hf import modeling_c2fmae

    monkeypatch.setitem(variants.ENCODERS["small"], "decoder_prediction_ratio", 1.0)
    photographs = [Photographs(rows, seed, 24, torch.device("cpu")) for seed in (0, 1)]
    ensemble = fleet.Ensemble([(name, 0), (name, 1)], photographs, 4, "small", tmp_path)
    ensemble.draw_masks(0)
    batch = ensemble.batch()
    alone = [ensemble.loss_of(*ensemble.one(index, batch)) for index in range(2)]
    torch.stack(alone).sum().backward()
    gradients = [weights.grad.clone() for weights in ensemble.weights]
    for weights in ensemble.weights:
        weights.grad.zero_()
    # Models look at inputs that lie on the CPU, where they may not be looked at side by side.
    monkeypatch.setattr(modeling_c2fmae, "check_labels", lambda *args: None)
    monkeypatch.setattr(modeling_c2fmae, "count_masked", lambda config, mask, rows, patches, number: number)
    losses = torch.vmap(ensemble.loss_of, randomness="different")(ensemble.parameters, batch)
    losses.sum().backward()
    torch.testing.assert_close(losses, torch.stack(alone))
    for weights, expected in zip(ensemble.weights, gradients):
        torch.testing.assert_close(weights.grad, expected, rtol=1e-3, atol=1e-5)
        assert expected.abs().max() > 0


def test_models_side_by_side_decode_parts_of_their_own(scripts, rows, tmp_path, monkeypatch):
    import fleet
    from gpu_data import Photographs

    from c2fmae_hf import modeling_c2fmae

    photographs = [Photographs(rows, 0, 24, torch.device("cpu"))] * 2
    ensemble = fleet.Ensemble([("curriculum", 0), ("cascade", 0)], photographs, 4, "small", tmp_path)
    ensemble.draw_masks(0)
    monkeypatch.setattr(modeling_c2fmae, "check_labels", lambda *args: None)
    monkeypatch.setattr(modeling_c2fmae, "count_masked", lambda config, mask, rows, patches, number: number)
    draw, chosen = modeling_c2fmae.random_part, []

    def remember(ids, ratio):
        part = draw(ids, ratio)
        chosen.append(part.shape)
        return part

    monkeypatch.setattr(modeling_c2fmae, "random_part", remember)
    batch = ensemble.batch()
    batch = {name: value[:1].expand_as(value) for name, value in batch.items()}
    weights = {name: value[:1].expand_as(value) for name, value in ensemble.parameters.items()}
    one, other = torch.vmap(ensemble.loss_of, randomness="different")(weights, batch)
    assert chosen == [(32, 12)]  # a quarter of 48 masked patches, as in study.py
    assert one != other


def test_what_the_fleet_trains(scripts, repository, tmp_path, capsys, monkeypatch):
    """A step costs what was measured, and variants that the fleet cannot train are refused."""
    import fleet
    from variants import Variant

    times = json.loads((repository / "benchmarks/representation/results/calibration-small.json").read_text())
    times = times["times_mae"]
    args = fleet.parse(["--data", str(tmp_path), "--output", str(tmp_path)])
    assert set(args.variants) == {*fleet.MAIN} - {"curriculum_area"}
    assert fleet.cost_of_step(args, "mae") == 1
    lighter = (times["labels_less"] + times["curriculum_labels_less"]) / 2
    assert fleet.cost_of_step(args, "labels_less") == fleet.cost_of_step(args, "curriculum_labels_less")
    assert fleet.cost_of_step(args, "labels_less") == pytest.approx(lighter)
    newer = dataclasses.make_dataclass("Variant", [("new", int, 0)], bases=(Variant,), frozen=True)
    monkeypatch.setattr(fleet, "Variant", newer)
    assert fleet.can_train(newer("the others"))
    assert not fleet.can_train(newer("one that differs in something new", new=1))
    monkeypatch.undo()
    assert not fleet.can_train(Variant("one that decays more", training={"weight_decay": 0.3}))
    for name in ("curriculum_area", "losses_follow", "repeated_masks", "label_a_patch"):
        with pytest.raises(SystemExit):
            fleet.parse(["--data", str(tmp_path), "--variants", "mae", name])
        assert f"--variants {name}: only study.py trains it" in capsys.readouterr().err


def test_runs_at_equal_steps_are_not_added_to(scripts, tmp_path):
    import fleet

    path = tmp_path / "fleet-stl10-small-1.json"
    path.write_text(json.dumps([{"runs": [{"variant": "mae", "seed": 0, "equal": "steps"}]}]))
    with pytest.raises(SystemExit, match=r"expected runs at equal compute, found some at equal steps"):
        fleet.main(["--data", str(tmp_path), "--output", str(tmp_path), "--epochs", "1"])


def test_only_models_of_one_kind_are_trained_as_one(scripts):
    from fleet import signature

    assert signature("cascade") == signature("curriculum") == signature("reversed")
    different = ("mae", "cascade", "class_token", "labels_less", "cascade_slow", "shared_blocks", "feeds_memory")
    assert len({signature(name) for name in different}) == len(different)


def test_the_peers_untrained_model_knows_positions(scripts):
    from pretrain import build_model
    from variants import VARIANTS

    model = build_model(VARIANTS["mae"], 0).eval()
    pixels, noise = torch.randn(1, 3, 96, 96), torch.linspace(0, 1, 64)[None]
    with torch.no_grad():
        logits = model(pixel_values=pixels, noise=noise).logits
    hidden = logits[0, 16:]  # masked patches
    assert (hidden - hidden[:1]).abs().amax(dim=1)[1:].min() > 1e-4
