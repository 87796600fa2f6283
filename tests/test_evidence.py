"""The tables of docs/evidence.md are those of the study's results."""

from __future__ import annotations

import json
import re
import sys


DIFFERENCE = r"[+-]\d+\.\d ± \d+\.\d"


def test_the_document_has_the_tables_of_the_results(repository, monkeypatch):
    folder = repository / "benchmarks/representation"
    monkeypatch.syspath_prepend(str(folder))
    import summarise

    text = (repository / "docs/evidence.md").read_text(encoding="utf-8")
    groups = summarise.load(folder / "results")
    ratios = summarise.step_times(folder / "results", "small")
    assert {name.partition("-")[0] for name in groups} == {"study", "fleet"}
    measured = set()
    for runs in groups.values():
        rows = summarise.summarise(runs, summarise.step_times(folder / "results", runs[0]["encoder"]))
        assert summarise.table(rows) in text
        for more in (
            summarise.compare(rows),
            summarise.compare_photographs(runs, rows),
            summarise.table_by_class(rows),
            summarise.compare_by_class(rows),
        ):
            assert more is None or more in text
            measured |= set(re.findall(DIFFERENCE, more or ""))
    # The claims, one pair of variants a row.
    metrics = ("linear_probe", "knn", "patch_mean_iou", "caltech101_linear_probe")
    for claim, one, other in (
        ("cascade with curriculum, beats MAE", "curriculum", "mae"),
        ("with *random* masks beat MAE", "cascade", "mae"),
        ("the cascade beats parallel decoders", "cascade", "parallel"),
        ("the curriculum beats random masks", "curriculum", "cascade"),
    ):
        (line,) = (line for line in text.splitlines() if line.startswith("|") and f"{claim} |" in line)
        found = [
            summarise.difference(summarise.summarise(groups[name], ratios), one, other, metric).strip("*")
            for name in ("study-stl10-small-10", "fleet-stl10-small-10")
            for metric in metrics
        ]
        assert re.findall(DIFFERENCE, line) == found
    # In prose, too, and in what others quote.
    for name in ("docs/evidence.md", "README.md", "model_cards/README.md"):
        assert set(re.findall(DIFFERENCE, (repository / name).read_text(encoding="utf-8"))) <= measured
    for path in sorted((folder / "results").glob("encoder-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        metrics = [name for name in summarise.METRICS if name in found["results"]]
        shown = " | ".join(summarise.shown({"mean": found["results"][name], "seeds": 1}) for name in metrics)
        assert f"| {found['name']} | " in text
        assert f" | {shown} |" in text
    detection = json.loads((folder / "results/detection-pennfudan.json").read_text(encoding="utf-8"))["encoders"]
    for one in detection:
        shares = [one["results"][name] for name in ("bbox_map", "bbox_map_50", "segm_map")]
        assert f"| {one['name']} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |" in text
    readme = (repository / "README.md").read_text(encoding="utf-8")
    cards = (repository / "model_cards/README.md").read_text(encoding="utf-8")
    rows = summarise.summarise(groups["study-stl10-small-10"], ratios)
    longest = summarise.summarise(groups["study-stl10-tiny-100"], {})["mae"]
    files = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "results").glob("encoder-*.json")]
    metrics = [name for name in summarise.METRICS if name in longest]
    for scores in (longest, *({name: {"mean": v, "seeds": 1} for name, v in one["results"].items()} for one in files)):
        assert f" | {' | '.join(summarise.shown(scores[name]) for name in metrics)} |" in cards
    for name in ("mae", "parallel", "cascade", "curriculum"):
        metrics = ("linear_probe", "knn", "patch_mean_iou", "caltech101_linear_probe")
        if name != "parallel":
            assert all(
                summarise.shown(rows[name][metric]) in readme for metric in metrics[: 3 + (name != "curriculum")]
            )
        metrics = ("linear_probe", "knn", "patch_mean_iou", "attention_in_object")
        scores = " | ".join(summarise.shown(rows[name][metric]) for metric in metrics)
        images, cost = f"{rows[name]['images'] / 1000:.0f} k", f"{rows[name]['step_times_mae']:.2f}"
        assert f"| {rows[name]['words']} | {images} | {cost} | {scores} |" in cards
    for name in ("summarise", "variants", "answers"):
        sys.modules.pop(name, None)
