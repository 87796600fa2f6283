"""
Write the model cards of every size and of the weights in this folder, and the table of sizes in README.md.

    python model_cards/build.py

The card of a size comes from its configuration and from the records in `runs/<size>/<run>/` beside this script, if
there are any: folders or files that a command wrote. Pre-training runs must have that size's architecture, and
evaluations must have used their encoders. Weights are folders that `c2fmae push --preview` wrote. Their card comes
from the files in the folder and from `card.yaml`, which holds the fields of [`CardFacts`] that no record knows. Do not
edit cards: a test compares them with the output of this script.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from c2fmae_hf import SIZES, C2FMAEConfig
from c2fmae_hf.publishing.model_card import CardFacts, build_card
from c2fmae_hf.publishing.records import Run, architecture_of, load_run, run_of_weights
from c2fmae_hf.publishing.repository import load_saved
from c2fmae_hf.utils.files import replace_file


FACTS = CardFacts(
    data="There are no weights yet, so there is no training data to describe, and the licence is that of the code. "
    "The card of published weights says what they were trained on, where the label maps come from, and both licences."
)
TABLE = "| size | card | weights | records of runs |\n| --- | --- | --- | --- |\n"


def find_runs(size: str, folder: Path) -> list[Run]:
    """
    The records in `runs/<size>/` of the folder with their roles: pre-training first, then evaluations of its encoders.

    Raises:
        `ValueError`: naming a run with another architecture, or with an encoder that none of these runs trained.
    """
    paths = sorted((folder / "runs" / size).iterdir()) if (folder / "runs" / size).is_dir() else []
    runs = [load_run(path, f"{size}/{path.stem}") for path in paths]
    expected = architecture_of(C2FMAEConfig.from_size(size))
    trained = [replace(run, role="made") for run in runs if run.record.get("task") == "pretraining"]
    others = [replace(run, role="transferred") for run in runs if run.record.get("task") != "pretraining"]
    for run in trained:
        if (found := run.record.get("architecture")) != expected:
            raise ValueError(f"{run.folder}: expected a run of the architecture {expected}, got one of {found}")
    encoders = {run.record.get("encoder") for run in trained}
    for run in others:
        if run.record.get("starting_encoder") not in encoders:
            folders = [one.folder for one in trained]
            raise ValueError(f"{run.folder}: expected a run that started from an encoder of {folders}, got another's")
    return [*trained, *others]


def build(size: str, folder: Path) -> ModelCard:
    """
    The card of a size without published weights.

    Args:
        size (`str`): Of `SIZES`.
        folder: Holds the size's records in `runs/<size>/`.
    """
    config = C2FMAEConfig.from_size(size)
    name = f"c2fmae-vit-{size}"
    return build_card(name, config, "C2FMAEForPreTraining", runs=find_runs(size, folder), facts=FACTS)


def build_of_weights(folder: Path) -> ModelCard:
    """
    The card of weights in this repository.

    Args:
        folder: Laid out as a repository on the Hub, plus `card.yaml`. Its name is the name of the weights.

    Raises:
        `ValueError`: naming a record that belongs to other weights.
    """
    model, _ = load_saved(folder)
    runs = []
    for path in sorted((folder / "runs").iterdir()):
        run = run_of_weights(load_run(path, path.name), model)
        if run is None:
            raise ValueError(f"{path}: expected the record of a run of {folder.name}, found one of other weights")
        runs.append(run)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    facts = yaml.safe_load((folder / "card.yaml").read_text(encoding="utf-8"))
    return build_card(
        *(folder.name, C2FMAEConfig.from_pretrained(folder), type(model).__name__),
        files=files,
        runs=sorted(runs, key=lambda run: not run.is_training),
        facts=CardFacts(**{**facts, "tags": tuple(facts.get("tags", ()))}),
        folder=f"model_cards/{folder.name}",
    )


def write_table(folder: Path) -> None:
    """Replace the table of sizes in the folder's `README.md`."""
    rows = []
    for size in SIZES:
        number = len(find_runs(size, folder))
        rows.append(f"| {size} | [c2fmae-vit-{size}](c2fmae-vit-{size}.md) | none yet | {number or 'none yet'} |\n")
    path = folder / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(TABLE)
    if not rest:
        raise ValueError(f"{path}: expected the table {TABLE.splitlines()[0]!r}, found none")
    lines = rest.splitlines(keepends=True)
    while lines and lines[0].startswith("|"):
        lines.pop(0)
    with replace_file(path) as temporary:
        temporary.write_text(before + TABLE + "".join(rows + lines), encoding="utf-8")


def main(args: list[str] | None = None) -> list[Path]:
    """Return the paths of the cards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent, help="by default this one")
    folder = parser.parse_args(args).folder
    paths = []
    for size in SIZES:
        paths.append(folder / f"c2fmae-vit-{size}.md")
        build(size, folder).save(paths[-1])
    for config in sorted(folder.glob("*/config.json")):
        paths.append(config.with_name("README.md"))
        build_of_weights(config.parent).save(paths[-1])
    write_table(folder)
    return paths


if __name__ == "__main__":
    main()
