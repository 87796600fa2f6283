"""The study's command on a few steps: what it measures is no evidence, that it runs and resumes is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import TrainerControl, TrainerState

from c2fmae_hf import C2FMAEConfig
from c2fmae_hf.modeling_c2fmae import C2FMAEDecoderBlock


@pytest.fixture
def scripts(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks/representation"))
    yield
    for name in ("answers", "data", "pretrain", "summarise", "variants"):
        sys.modules.pop(name, None)


def test_intervals_over_photographs_are_wider(scripts):
    from answers import pack_answers, unpack_answers
    from summarise import CLASSED, compare, summarise, table_by_class

    random = np.random.default_rng(0)
    runs = []
    for variant, share in (("mae", 0.3), ("cascade", 0.8)):
        for seed in range(3):
            right = random.random(101) < share
            scores = dict.fromkeys(CLASSED, right.mean()) | {f"{metric}_balanced": share for metric in CLASSED}
            packed = pack_answers(right)
            assert (unpack_answers(json.loads(json.dumps(packed))) == right).all()
            others = {"patch_mean_iou": right.mean(), "attention_in_object": 0.4 + seed / 10}
            run = {"variant": variant, "seed": seed, "images": 32, "answers": dict.fromkeys(CLASSED, packed)}
            runs.append(run | {"results": scores | others})
    rows = summarise(runs, {})
    line = compare(runs, rows).splitlines()[-1].split(" | ")
    assert line[:2] == ["| cascade with random masks vs MAE", "3"]
    # Mean IoU, the sixth score, has no answers by photograph: the same difference, a narrower interval.
    wide, narrow = (cell.strip("*").split(" ± ") for cell in (line[2], line[6]))
    assert narrow[0] == wide[0]
    assert 3 < float(narrow[1]) < float(wide[1]) < 30
    accuracies = np.array([[run["results"]["knn"] for run in runs if run["variant"] == v] for v in ("cascade", "mae")])
    over_seeds = 2.776 * (accuracies.var(axis=1, ddof=1).mean() * 2 / 3) ** 0.5  # Student's t with 4 degrees
    assert float(narrow[1]) == pytest.approx(100 * over_seeds, abs=0.06)
    assert "| 30.0 ± 0.0 | 30.0 ± 0.0 |" in table_by_class(rows)


def test_differences_of_few_seeds(scripts):
    """A difference is of the seeds that both variants have; one seed has a wider interval than three."""
    from summarise import compare, summarise

    runs = [
        {
            "variant": variant,
            "seed": seed,
            "images": 32,
            "results": dict.fromkeys(("knn", "attention_in_object"), score),
        }
        for variant, scores in (("mae", (0.40, 0.41, 0.42)), ("cascade", (0.50, 0.52, 0.54)), ("curriculum", (0.60,)))
        for seed, score in enumerate(scores)
    ]
    one, three = compare(runs, summarise(runs, {})).splitlines()[2:4]
    # Seed 0 alone, 0.60 - 0.40. The pooled deviation is 0.0158, Student's t with 4 degrees of freedom 2.776.
    assert one == "| cascade with curriculum vs MAE | 1 | **+20.0 ± 6.2** | +20.0 |"
    # Attention has Welch's interval, here with 2.94 degrees of freedom, since its deviations are unequal.
    assert three == "| cascade with random masks vs MAE | 3 | **+11.0 ± 3.6** | **+11.0 ± 4.2** |"


def test_twins_are_paired_by_group_and_seed(scripts):
    """Mean difference and Student's interval over pairs; a run without its twin does not count."""
    from summarise import CLASSED, compare_twins

    def run(variant, seed, score):
        return {"variant": variant, "seed": seed, "results": dict.fromkeys((*CLASSED, "patch_mean_iou"), score)}

    groups = [
        [run("curriculum", 0, 0.50), run("curriculum_labels_less", 0, 0.52), run("curriculum_labels_less", 1, 0.9)],
        [run("curriculum", 0, 0.30), run("curriculum_labels_less", 0, 0.29), run("cascade", 0, 0.1)],
        [run("labels_less", 1, 0.44), run("cascade", 1, 0.40), run("mae", 1, 0.1)],
    ]
    difference, ahead = (line.split(" | ") for line in compare_twins(groups).splitlines()[2:])
    # 2, -1 and 4 points: the mean is 1.7, the deviation 2.52, Student's t with 2 degrees of freedom 4.303.
    assert difference[1] == "+1.7 ± 6.3"
    assert ahead[1] == "2 of 3"
    same = [[run("labels_less", 0, score + 0.03), run("cascade", 0, score)] for score in (0.1, 0.2, 0.31)]
    assert "**+3.0 ± 0.0**" in compare_twins(same)


def test_variants_without_weights_of_their_own_weigh_losses_equally(scripts):
    """The records of most variants are older than the package's default."""
    from pretrain import build_model
    from variants import VARIANTS

    weights = {name: build_model(VARIANTS[name], 0).config.loss_weights for name in ("curriculum", "image")}
    assert weights == {"curriculum": {"semantic": 1.0, "instance": 1.0, "image": 1.0}, "image": {"image": 1.0}}
    default = build_model(VARIANTS["curriculum_labels_less"], 0).config
    assert default.loss_weights == C2FMAEConfig().loss_weights == {"semantic": 1 / 3, "instance": 1 / 3, "image": 1.0}


def test_an_interval_without_photographs_is_marked(scripts):
    from answers import pack_answers
    from summarise import compare, summarise

    runs = [
        {
            "variant": variant,
            "seed": seed,
            "images": 32,
            "results": {"knn": score + seed / 100, "knn_balanced": score},
            **({} if variant == "classical" else {"answers": {"knn": pack_answers(np.arange(100) < 100 * score)}}),
        }
        for variant, score in (("mae", 0.3), ("cascade", 0.4), ("classical", 0.6))
        for seed in range(3)
    ]
    cells = [line.split(" | ")[2].strip(" |") for line in compare(runs, summarise(runs, {})).splitlines()[2:]]
    assert cells == ["**+10.0 ± 6.2**", "+20.0 ± 2.0*"]


def test_variants_of_the_decoder(scripts):
    from pretrain import build_model
    from variants import VARIANTS

    assert len(build_model(VARIANTS["mae_deep"], 0).decoder.decoder_layers) == 5
    queries, memory = torch.randn(1, 4, 128), torch.randn(1, 3, 128)
    changed = queries.clone()
    changed[:, 0] += 1
    for name, others_see_it in (("cascade", False), ("self_attention", True)):
        model = build_model(VARIANTS[name], 0).eval()
        for granularity, stage in model.decoder.stages.items():
            before, after = (stage(one, memory)[0] for one in (queries, changed))
            same = torch.equal(before[:, 1:], after[:, 1:])
            assert same != (others_see_it and granularity != "image")
            assert not torch.equal(before[:, 0], after[:, 0])
    block = build_model(VARIANTS["shared_blocks"], 0).decoder.stages["image"].blocks[0]
    once = lambda queries: C2FMAEDecoderBlock.forward(block, queries, memory)  # noqa: E731
    assert torch.equal(block(queries, memory), once(once(queries)))


def test_predictions_of_visible_patches_reach_the_next_stage(scripts):
    from pretrain import build_model
    from variants import VARIANTS

    inputs = (
        torch.randn(2, 1 + 16, 192),
        torch.arange(16).expand(2, -1),
        torch.arange(20, 32).expand(2, -1),
        12,
        (8, 8),
    )
    plain, fed = (build_model(VARIANTS[name], 0).decoder.eval() for name in ("curriculum", "feeds_memory"))
    fed.load_state_dict(plain.state_dict())
    expected, found = plain(*inputs), fed(*inputs)
    assert {name: one.shape for name, one in found.items()} == {name: one.shape for name, one in expected.items()}
    torch.testing.assert_close(found["semantic"], expected["semantic"])
    for name in ("instance", "image"):
        assert not torch.allclose(found[name], expected[name], atol=1e-3)


def test_the_class_token_learns_the_shares_of_the_classes(scripts):
    from pretrain import build_model
    from variants import VARIANTS

    plain, model = (build_model(VARIANTS[name], 0).eval() for name in ("curriculum", "class_token"))
    plain.load_state_dict({n: one for n, one in model.state_dict().items() if not n.startswith("predict_shares")})
    labels = torch.full((2, 24, 24), -100)
    labels[0, :6], labels[0, 6:12], labels[1, 0, 0] = 3, 4, 7
    inputs = {
        "pixel_values": torch.randn(2, 3, 96, 96),
        "semantic_labels": labels,
        "bool_masked_pos": torch.arange(64).expand(2, -1) >= 16,
    }
    with torch.no_grad():
        model.predict_shares.weight.zero_()
        model.predict_shares.bias.copy_(torch.arange(11))
    logs = torch.arange(11).float().log_softmax(dim=0)
    added = model(**inputs).semantic_loss - plain(**inputs).semantic_loss
    seen = model.class_token  # a later call replaces it
    tokens = model.c2fmae(inputs["pixel_values"], bool_masked_pos=inputs["bool_masked_pos"]).last_hidden_state
    torch.testing.assert_close(seen, tokens[:, 0])
    assert added.item() == pytest.approx(-((logs[3] + logs[4]) / 2 + logs[7]).item() / 2, rel=1e-4)
    model.predict_shares.weight.data.normal_()
    (gradient,) = torch.autograd.grad(model(**inputs).semantic_loss, model.c2fmae.cls_token)
    (other,) = torch.autograd.grad(plain(**inputs).semantic_loss, plain.c2fmae.cls_token)
    assert not torch.allclose(gradient, other, atol=1e-4)


def test_losses_follow_the_curriculum(scripts, tmp_path):
    from pretrain import LossesFollow, build_model, make_arguments
    from variants import VARIANTS

    variant, weights = VARIANTS["losses_follow"], build_model(VARIANTS["losses_follow"], 0).config.loss_weights
    args = make_arguments(variant, 0, 100, tmp_path, 0, use_cpu=True)
    callback, state = LossesFollow(args.get_curriculum(), weights), TrainerState(max_steps=100)
    for state.global_step, expected in ((0, [2.0, 0.5, 0.5]), (50, [0.5, 2.0, 0.5]), (75, [0.5, 1.25, 1.25])):
        callback.on_step_begin(args, state, TrainerControl())
        assert list(weights.values()) == pytest.approx(expected)


@pytest.mark.slow
def test_the_study_runs_and_goes_on(repository, shared_data, tmp_path):
    scripts = repository / "benchmarks/representation"
    results = tmp_path / "results"
    results.mkdir()
    (results / "calibration-small.json").write_text(json.dumps({"times_mae": {"mae": 1.0, "curriculum": 1.25}}))
    command = [sys.executable, scripts / "study.py", "--data", shared_data, "--variants", "mae", "curriculum"]
    command += ["--epochs", "0.05", "--num_workers", "0", "--output", results, "--work", tmp_path / "work"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=3600)
        assert done.returncode == 0, done.stderr[-3000:]
        written = {path.name: path.stat().st_mtime_ns for path in results.glob("*-0-stl10-small-0.05.json")}
        assert set(written) == {"mae-0-stl10-small-0.05.json", "curriculum-0-stl10-small-0.05.json"}
    runs = {
        name: json.loads((results / f"{name}-0-stl10-small-0.05.json").read_text()) for name in ("mae", "curriculum")
    }
    assert runs["mae"]["steps"] == 10
    assert runs["curriculum"]["steps"] == 8  # for the same compute
    for run in runs.values():
        assert all(0 <= value <= 1 for value in run["results"].values())
        assert run["results"]["linear_probe"] > 0.1
        assert run["answers"]["knn"]["photographs"] == 4525
    # The protocols give a saved encoder the scores of its run.
    command = [sys.executable, scripts / "judge.py", "--data", shared_data, "--output", results]
    command += [tmp_path / "work/curriculum-0-stl10-small-0.05/encoder"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    judged = json.loads((results / "encoder-curriculum-0-stl10-small-0.05.json").read_text())["results"]
    assert judged == pytest.approx(runs["curriculum"]["results"], abs=1e-3)
    command = [sys.executable, str(scripts / "summarise.py"), "--results", results, "--output", tmp_path / "tables"]
    table = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    assert "cascade, curriculum | 1 |" in table
    assert (tmp_path / "tables/results/study-stl10-small-0.05.png").stat().st_size > 1000


@pytest.mark.slow
def test_detection_from_saved_encoders(repository, shared_data, tmp_path):
    weights = repository / "model_cards/c2fmae-vit-tiny-stl10"
    command = [sys.executable, repository / "benchmarks/representation/judge_detection.py", "--data", shared_data]
    command += [weights, "--untrained", "--seeds", "0", "--steps", "2", "--work", tmp_path / "work"]
    command += ["--output", tmp_path]
    before = [{"name": "untrained", "seed": 7}, {"name": "another", "seed": 0}]
    (tmp_path / "detection-pennfudan.json").write_text(json.dumps({"runs": before}))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    *runs, kept = json.loads((tmp_path / "detection-pennfudan.json").read_text())["runs"]
    assert kept == before[1]
    found = [(run["name"], run["seed"], run["settings"]["from_scratch"]) for run in runs]
    assert found == [("c2fmae-vit-tiny-stl10", 0, False), ("untrained", 0, True)]
    assert all(0 <= run["results"][score] <= 1 for run in runs for score in ("bbox_map", "segm_map"))


@pytest.mark.slow
def test_the_fleet_runs_and_adds_to_its_results(repository, shared_data, tmp_path):
    scripts = repository / "benchmarks/representation"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for variants in (["mae"], ["mae", "objects"]):
        command = [sys.executable, scripts / "fleet.py", "--data", shared_data, "--variants", *variants]
        command += ["--epochs", "0.02", "--num_evaluators", "1", "--output", tmp_path, "--work", tmp_path / "work"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
    groups = json.loads((tmp_path / "fleet-stl10-small-0.02.json").read_text())
    assert [[run["variant"] for run in group["runs"]] for group in groups] == [["mae"], ["objects"]]
    for group in groups:
        (run,) = group["runs"]
        assert run["steps"] == {"mae": 4, "objects": 5}[run["variant"]]
        assert run["equal"] == "compute"
        assert run["results"]["linear_probe"] > 0.1
        assert group["photographs"] == {"train": 3735, "test": 4525, "other_test": 651}


def test_shares_by_area(scripts):
    """Guided masks show 12 and 4 patches of regions of 48 and 16; by default eight of each."""
    from pretrain import places_by_area

    from c2fmae_hf import masking

    regions = (torch.arange(64) % 4 == 0).long().expand(3, -1)
    shown = {}
    for name, places in (("equal", masking.places_in_regions), ("by area", places_by_area)):
        with mock.patch.object(masking, "places_in_regions", places):
            hidden = masking.mask_regions(regions, 48, torch.rand(3, 64), torch.rand(3, 64))
        shown[name] = (~hidden & (regions == 1)).sum(dim=1).tolist()
    assert shown == {"equal": [8, 8, 8], "by area": [4, 4, 4]}
