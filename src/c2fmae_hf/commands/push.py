"""
Publish a saved model on the Hub: an encoder, a pre-training checkpoint or a fine-tuned model.

    c2fmae push runs/demo/c2fmae-vit-tiny-pretraining me/c2fmae-vit-tiny --preview runs/demo/preview
    c2fmae push runs/demo/c2fmae-vit-tiny-pretraining me/c2fmae-vit-tiny --private
    c2fmae push runs/1 me/flowers --results runs/2/results.json --license cc0-1.0 --license_file CC0

One commit holds the weights in the layout that transformers and timm both load, configuration, image processor, model
card, the records of the runs that the card's results come from, licence, and code for use without this package. The
card is made of the records beside the model (`run.json`, `trainer_state.json`, `results.json`, or `runs/` of a model
that was published) and of `--results`. `--picture` adds the run's picture of predictions; its photographs are then
public.

Look first: `--preview` writes all of it to a new folder instead. Publishing needs a token with write access, from
`hf auth login` or in HF_TOKEN. After an interruption run the command again; files that arrived are not sent twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime
from itertools import count
from pathlib import Path

from transformers import PreTrainedModel

from ..images import open_image
from ..publishing.hub import push_to_hub, write_repository
from ..publishing.model_card import DEFAULT_LICENSE, CardFacts
from ..publishing.records import RESULTS_FILE, RUN_FILE, Run, load_run, run_of_weights, runs_of_weights
from ..publishing.repository import load_saved
from ..utils.files import check_writable
from .arguments import CommandParser
from .console import model_in_words, print_results, type_in


# Pictures of predictions that `c2fmae pretrain`, `segment`, `detect` and an earlier `push` write.
PICTURES = ("reconstruction.png", "predictions.png", "detections.png")


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = CommandParser("push", __doc__)
    parser.add_argument("model", type=Path, help="folder of a saved model")
    parser.add_argument("repo_id", help="name, or owner/name")
    parser.add_argument("--preview", type=Path, help="write the repository to this new folder, and publish nothing")
    parser.add_argument("--run_folder", type=Path, help="records of the training; by default beside the model")
    parser.add_argument(
        "--pretraining_run", type=Path, help="records of the run that made the encoder it started from"
    )
    parser.add_argument("--results", type=Path, nargs="*", default=[], help="results.json of further evaluations")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch; by default main")
    parser.add_argument("--subfolder", help="folder within the repository")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request")
    parser.add_argument("--commit_message", help="first line of the commit's message")
    parser.add_argument("--no_custom_code", action="store_true", help="leave out the code for trust_remote_code")
    parser.add_argument(
        "--license",
        help="licence of the weights, as the Hub names it; by default apache-2.0, of converted weights none",
    )
    parser.add_argument("--license_name", help="short name of a licence that the Hub calls 'other'")
    parser.add_argument("--license_file", type=Path, help="its text; needed for all but apache-2.0")
    parser.add_argument("--datasets", nargs="*", default=[], help="names on the Hub of the training data")
    parser.add_argument("--base_model", help="name on the Hub of the model that was fine-tuned")
    parser.add_argument("--data", default=CardFacts.data, help="the card's words on data, labels and their licences")
    parser.add_argument("--limits", help="the card's words on limits")
    parser.add_argument("--caption", default=CardFacts.caption, help="the card's words below the picture")
    parser.add_argument(
        "--picture",
        nargs="?",
        type=Path,
        const=Path(),
        help="show a picture of predictions on the card: this PNG, or without a path the one that the run left",
    )
    options = parser.parse_args(args)
    if options.license not in (None, DEFAULT_LICENSE) and options.license_file is None:
        parser.error(f"--license {options.license} needs --license_file")
    if options.license_name is not None and options.license != "other":
        parser.error("--license_name goes with --license other")
    if options.subfolder and ".." in Path(options.subfolder).parts:
        parser.error(f"--subfolder: expected a folder of the repository, got {options.subfolder}")
    return options


def find_runs(model: PreTrainedModel, options: argparse.Namespace) -> list[Run]:
    """The runs that trained the encoder and the model, and those that evaluated it."""
    folder = options.model
    if options.run_folder is not None:
        runs = [load_run(options.run_folder, "training")]
    else:
        runs = published_runs(folder, model) or own_runs(folder, model)
    if options.pretraining_run is not None:
        runs.insert(0, load_run(options.pretraining_run, "pretraining"))
    taken = {run.folder for run in runs}
    names = (name for name in map("evaluation-{}".format, count(1)) if f"runs/{name}" not in taken)
    return runs + [load_run(path, name) for path, name in zip(options.results, names)]


def published_runs(folder: Path, model: PreTrainedModel) -> list[Run]:
    """The records in a folder with the layout of a published repository, as far as they match its weights."""
    folders = sorted({path.parent for name in (RUN_FILE, RESULTS_FILE) for path in folder.glob(f"runs/*/{name}")})
    runs = [load_run(path, path.name) for path in folders]
    try:
        return runs_of_weights(runs, model)
    except ValueError:
        for path, run in zip(folders, runs):
            if run_of_weights(run, model) is None:
                print(f"{path} is left out: it is the record of other weights.")
        return [run for run in runs if run_of_weights(run, model) is not None]


def own_runs(folder: Path, model: PreTrainedModel) -> list[Run]:
    """The record in a model's folder or its parent, if it matches the weights."""
    for candidate in (folder, folder.parent):
        if (candidate / RUN_FILE).is_file() or (candidate / RESULTS_FILE).is_file():
            run = load_run(candidate, "training")
            if run_of_weights(run, model) is not None:
                return [run]
            print(f"{candidate} has the record of a run of other weights, which is left out.")
    return []


def find_picture(folder: Path, runs: Sequence[Run], model: PreTrainedModel) -> Path | None:
    """
    The picture of predictions that the run which made the weights left: in its folder, or in that of the model, where
    an earlier publication puts it. A picture that is older than the run is another run's.
    """
    for run in runs_of_weights(runs, model):
        if run.role not in ("made", "made_encoder") or "started" not in run.record:
            continue
        started = datetime.fromisoformat(run.record["started"]).timestamp()
        for candidate in (*(source.parent for source in run.sources.values()), folder):
            for picture in (candidate / name for name in PICTURES):
                if picture.is_file() and picture.stat().st_mtime >= started:
                    return picture
    return None


def publish(options: argparse.Namespace) -> str:
    if not options.model.is_dir():
        raise FileNotFoundError(f"{options.model}: expected the folder of a saved model, found none")
    if options.preview is not None:
        check_writable(options.preview.parent, "--preview")
    model, processor = load_saved(options.model)
    runs = find_runs(model, options)
    left = find_picture(options.model, runs, model)
    picture = left if options.picture == Path() else options.picture
    if options.picture is not None and (picture is None or not picture.is_file()):
        raise FileNotFoundError(f"--picture: expected a PNG, got {picture or 'a run that left none'}")
    if picture is not None and open_image(str(picture)).format != "PNG":
        raise ValueError(f"--picture: expected a PNG, got {picture} in another format")
    if picture is None and left is not None:
        print(f"To show {left} on the card, pass --picture. Its photographs are published with it.")
    common = {
        "processor": processor,
        "runs": runs,
        "facts": CardFacts(
            license=options.license,
            datasets=tuple(options.datasets),
            base_model=options.base_model,
            data=options.data,
            limits=options.limits,
            license_name=options.license_name,
            caption=options.caption,
        ),
        "custom_code": not options.no_custom_code,
        "license_text": options.license_file.read_text(encoding="utf-8") if options.license_file else None,
        "revision": options.revision,
        "subfolder": options.subfolder,
        "picture": picture,
    }
    what = f"{model_in_words(options.model, model)} as {options.repo_id}"
    if options.preview is not None:
        print(f"Preview of {what}. Output folder: {options.preview}. Nothing is published.", flush=True)
        write_repository(model, options.preview, options.repo_id, **common)
        words = ["push", options.model, options.repo_id]
        print_results(
            [f"{options.preview}: a preview, nothing was published"],
            [f"look at {options.preview / 'README.md'}", f"{type_in(*words)}, with the same options as the preview"],
        )
        return str(options.preview)
    print(f"Publishing {what}.", flush=True)
    commit = push_to_hub(
        model,
        options.repo_id,
        private=options.private,
        create_pr=options.create_pr,
        commit_message=options.commit_message,
        **common,
    )
    print_results([commit.pr_url or commit.commit_url])
    return str(commit.pr_url or commit.commit_url)


def main(args: list[str] | None = None) -> str:
    """Returns the address of the commit, or of the preview."""
    return publish(parse(args))
