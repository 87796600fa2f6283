"""Labelling jobs: checks, the engine, and the files around the shards."""

from __future__ import annotations

import collections
import itertools
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.info import DatasetInfosDict
from filelock import FileLock, Timeout
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image
from tqdm.auto import tqdm

from ..utils.files import check_writable, file_sha256, read_json, replace_file, write_json
from ..utils.packages import require
from .contents import check_unchanged
from .engine import LabellingTask, map_ahead, run_local
from .labellers.base import Labeller
from .ray_engine import run_ray
from .records import OutputOptions, Reject, prepare_image
from .shards import ShardInfo, ShardStore, dataset_features, write_lines
from .sources.base import ImageSource


logger = logging.getLogger(__name__)

# Records how a split is made, in its folder below `.labelling`.
JOB_FILE = "job.json"


@dataclass
class LabellingSummary:
    """Contents of a split after a job."""

    records: int
    rows: int
    rejects: int
    shards: int
    image_bytes: int
    map_bytes: int
    labelled_now: int
    """Images labelled in this run."""
    seconds: float
    """Duration of this run."""

    def __str__(self) -> str:
        if self.rows == 0:
            return f"{self.records} images, all rejected"
        now = "nothing was left to do"
        if self.labelled_now:
            speed = self.labelled_now / self.seconds
            now = f"this run: {self.labelled_now} images in {self.seconds:.1f} s ({speed:.2f} images/s)"
        return (
            f"{self.rows} of {self.records} images labelled in {self.shards} shard{'s' * (self.shards != 1)}, "
            f"{self.rejects} rejected\n"
            f"{(self.image_bytes + self.map_bytes) / self.rows:.0f} bytes per image, of which maps "
            f"{self.map_bytes / self.rows:.0f}: they add {self.map_bytes / self.image_bytes:.1%}\n{now}"
        )


def describe_maps(dataset: str | None, split: str) -> str | None:
    """Source and quality of the label maps of a split, if the dataset is a folder that [`label_images`] wrote."""
    path = Path(dataset or "").expanduser() / ".labelling" / split / JOB_FILE
    return read_json(path)["summary"] if path.is_file() else None


def label_images(
    source: ImageSource,
    labeller: Labeller,
    output_dir: str | Path,
    split: str = "train",
    options: OutputOptions | None = None,
    engine: str = "local",
    num_workers: int = 1,
    num_threads: int = 2,
    max_reject_share: float = 0.5,
    overwrite: bool = False,
    ray_options: dict[str, Any] | None = None,
) -> LabellingSummary:
    """
    Label a source and write it as one split of a multi-granular dataset. After an interruption, call it again with the
    same arguments: it continues after the last finished shard of every part, and the result has the same bytes.

    Args:
        source: Images.
        labeller: Makes the maps.
        output_dir: The dataset's folder; other splits in it stay.
        split (`str`): Name of the split.
        options: How images and maps are stored.
        engine (`str`): `local`, or `ray` for a cluster.
        num_workers (`int`): Processes (local) or actors (Ray), each with its own labeller.
        num_threads (`int`): Threads per process that decode and encode.
        max_reject_share (`float`): The job stops if a larger share of a shard's images fails.
        overwrite (`bool`): Delete the split first, if it exists and nothing refuses the job.
        ray_options: Further arguments of [`~c2fmae_hf.labelling.ray_engine.run_ray`].

    Raises:
        `ImportError`: if Ray is not installed.
        `ValueError`: if an argument is wrong, the folder holds files of others that the job would replace, or the
            split was begun with another source, labeller or options, or images or annotations have changed since.
        `RuntimeError`: if another process is writing this dataset, or most images of a shard fail.
    """
    options = options or OutputOptions()
    root = Path(output_dir)
    if engine not in ("local", "ray"):
        raise ValueError(f"engine: expected 'local' or 'ray', got {engine!r}")
    if engine == "ray":
        require("ray", 'engine="ray"', extra="ray")
    if not split.replace("_", "").isalnum():
        raise ValueError(f"split: expected letters, digits and underscores, got {split!r}")
    for name, value in (("num_workers", num_workers), ("num_threads", num_threads)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    store = ShardStore(root, split)
    if not any(root.glob(f".labelling/*/{JOB_FILE}")):
        names = ("README.md", "manifest.jsonl", "rejects.jsonl", "labeller", "data/*.parquet")
        if foreign := [path.name for name in names for path in root.glob(name)]:
            raise ValueError(
                f"output_dir: expected a new folder, or one that a labelling job has begun, got {root} with "
                f"{', '.join(foreign[:5])}, which it would replace"
            )
    check_writable(root / ".labelling")
    try:
        lock = FileLock(root / ".labelling" / "lock").acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"output_dir: another process is writing {root}; wait for it or end it") from None
    with lock:
        own = store.state / JOB_FILE
        others = [path for path in sorted(store.state.parent.glob(f"*/{JOB_FILE}")) if path != own]
        jobs = [*others, own] if own.is_file() and not overwrite else others
        identity = _identity(source, labeller, options)
        _check_identity(store, jobs, identity)
        _check_fitted(store, jobs)
        if overwrite:  # nothing refuses the job from here on
            store.remove()
            if not others:
                shutil.rmtree(root / "labeller", ignore_errors=True)  # fitted to the images that are labelled no more
        store.create_folders()
        store.remove_leftovers()
        if overwrite or not own.is_file():
            write_json(own, identity)
        features = dataset_features(labeller.id2label, source.label_feature)
        task = LabellingTask(source, labeller, store, features, options, num_threads, max_reject_share)
        _check_contents(task)
        labeller.prepare(_sample_images(source, options), root / "labeller")
        write_json(own, {**read_json(own), "fitted": _fitted_files(root)})
        return _run(task, engine, num_workers, ray_options or {})


def _identity(source: ImageSource, labeller: Labeller, options: OutputOptions) -> dict[str, Any]:
    """How a split is made, as JSON values."""
    names = [labeller.id2label[index] for index in range(len(labeller.id2label))]
    identity = {
        "labeller": {"name": labeller.name, "settings": labeller.settings(), "id2label": names},
        "label_feature": repr(source.label_feature),
        "output": asdict(options),
        "source": source.fingerprint(),
        "versions": labeller.versions(),
        "summary": labeller.summary,
    }
    return json.loads(json.dumps(identity))


def _check_identity(store: ShardStore, jobs: Sequence[Path], identity: dict[str, Any]) -> None:
    """Raise if one of these jobs, of splits in the dataset, made its labels differently."""
    for path in jobs:
        advice = ". Choose another output_dir, or overwrite"
        other = read_json(path, advice)
        if missing := sorted(identity.keys() - other.keys()):
            raise ValueError(f"{path}: expected the fields {missing}, got {sorted(other)}{advice}")
        is_own = path.parent == store.state
        fields = ("labeller", "label_feature", "output", "source") if is_own else ("labeller", "label_feature")
        different = [
            f"{field} ({', '.join(_differences(other[field], identity[field]))})"
            for field in fields
            if other[field] != identity[field]
        ]
        if different:
            raise ValueError(
                f"output_dir: split {path.parent.name!r} of {store.root} was made with another "
                f"{'; another '.join(different)}. Choose another output_dir"
                + (", the same settings, or overwrite" if is_own else " or the same settings")
            )
        if is_own and other["versions"] != identity["versions"]:
            logger.warning(
                "The split was begun with other versions: %s. The remaining labels may differ a little.",
                ", ".join(_differences(other["versions"], identity["versions"])),
            )


def _fitted_files(root: Path) -> dict[str, str]:
    """Checksums of the files with a fitted labeller, by name."""
    return {path.name: file_sha256(path) for path in sorted((root / "labeller").glob("*"))}


def _check_fitted(store: ShardStore, jobs: Sequence[Path]) -> None:
    """
    Check the files with the fitted labeller.

    Raises:
        `ValueError`: if a file that one of these jobs used is missing or has changed.
    """
    now = _fitted_files(store.root)
    for path in jobs:
        for name, checksum in read_json(path).get("fitted", {}).items():
            if now.get(name) != checksum:
                found = "another file" if name in now else "none"
                raise ValueError(
                    f"{store.root / 'labeller' / name}: expected what split {path.parent.name!r} was labelled with, "
                    f"got {found}. Put it back, or label all splits into another output_dir"
                )


def _check_contents(task: LabellingTask) -> None:
    """Raise if images of finished shards have changed; mark damaged shards to be labelled again."""
    store, size, lookahead = task.store, task.options.rows_per_shard, 4 * task.num_threads
    finished = {(shard.part, shard.chunk): shard for shard in store.finished()}
    if not finished or task.source.origin is not None:
        return
    total = sum(shard.records for shard in finished.values())
    chunks = {part: max(chunk for other, chunk in finished if other == part) for part, _ in finished}
    with (
        tqdm(total=total, unit=" images", desc="Checking images labelled before", mininterval=1, leave=False) as bar,
        ThreadPoolExecutor(task.num_threads) as pool,
    ):
        for part in task.source.parts(size):
            records = task.source.read(part)
            for chunk in range(chunks.get(part.index, -1) + 1):
                chosen, shard = itertools.islice(records, size), finished.get((part.index, chunk))
                if shard is None:
                    collections.deque(chosen, maxlen=0)
                    continue
                check_unchanged(shard.contents, map_ahead(pool, task.load, chosen, lookahead), f"shard {shard.name}")
                bar.update(shard.records)
                if shard.rows > 0 and file_sha256(store.shard_path(shard.name)) != shard.sha256:
                    logger.warning("%s is damaged: it is made again.", store.shard_path(shard.name))
                    store.drop(shard)


def _differences(old: Any, new: Any) -> Iterator[str]:
    if not isinstance(old, dict) or not isinstance(new, dict):
        yield f"{str(old)[:80]} then, {str(new)[:80]} now"
        return
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield from (f"{key}: {difference}" for difference in _differences(old.get(key), new.get(key)))


def _sample_images(source: ImageSource, options: OutputOptions) -> Iterator[Image.Image]:
    """A sample of a source's images, to fit a labeller."""
    for record in source.sample(options.rows_per_shard):
        prepared = prepare_image(record, options)
        if not isinstance(prepared, Reject):
            yield prepared.image


def _run(task: LabellingTask, engine: str, num_workers: int, ray_options: dict[str, Any]) -> LabellingSummary:
    store, size = task.store, task.options.rows_per_shard
    done = store.finished()
    already = sum(shard.records for shard in done)
    rejected = sum(len(shard.rejects) for shard in done)
    chunks: dict[int, set[int]] = collections.defaultdict(set)
    for shard in done:
        chunks[shard.part].add(shard.chunk)
    complete = {shard.part for shard in done if shard.is_last and len(chunks[shard.part]) == shard.chunk + 1}
    remaining = [part for part in task.source.parts(size) if part.index not in complete]
    total = task.source.num_records(size)
    started = time.perf_counter()
    labelled_now = 0
    try:
        with tqdm(total=total, initial=already, unit=" images", desc=f"Labelling {store.split}", mininterval=1) as bar:
            shards: Iterator[ShardInfo] = iter(())
            if remaining and engine == "ray":
                shards = run_ray(task, remaining, num_workers, bar.update, **ray_options)
            elif remaining:
                shards = run_local(task, remaining, num_workers, bar.update)
            for shard in shards:
                labelled_now += shard.records
                rejected += len(shard.rejects)
                bar.set_postfix(rejected=rejected, refresh=False)
    finally:
        # Also for a job that stops: its rejects may explain why.
        splits = _finished_shards(store.root)
        _write_lists(store.root, splits)
    seconds = time.perf_counter() - started
    store.remove_leftovers()  # of actors that died and were replaced
    _write_card(task, splits)
    return LabellingSummary(**_totals(splits[store.split]), labelled_now=labelled_now, seconds=seconds)


def _finished_shards(root: Path) -> dict[str, list[ShardInfo]]:
    """Shards by split, `train` first."""
    names = [path.parent.name for path in (root / ".labelling").glob(f"*/{JOB_FILE}")]
    names.sort(key=lambda name: (name != "train", name))
    return {name: ShardStore(root, name).finished() for name in names}


def _totals(shards: list[ShardInfo]) -> dict[str, int]:
    return {
        "records": sum(shard.records for shard in shards),
        "rows": sum(shard.rows for shard in shards),
        "rejects": sum(len(shard.rejects) for shard in shards),
        "shards": sum(shard.rows > 0 for shard in shards),
        "image_bytes": sum(shard.image_bytes for shard in shards),
        "map_bytes": sum(shard.map_bytes for shard in shards),
    }


def _write_lists(root: Path, splits: dict[str, list[ShardInfo]]) -> None:
    """Write `manifest.jsonl` and `rejects.jsonl` of all splits."""
    manifest, rejects = [], []
    for split, shards in splits.items():
        for shard in shards:
            if shard.rows > 0:
                entry = {name: getattr(shard, name) for name in ("rows", "bytes", "sha256")}
                manifest.append(json.dumps({"file": f"data/{shard.name}.parquet", "split": split, **entry}))
            rejects += [json.dumps({"split": split, **asdict(reject)}, ensure_ascii=False) for reject in shard.rejects]
    write_lines(root / "manifest.jsonl", manifest)
    write_lines(root / "rejects.jsonl", rejects)


def _write_card(task: LabellingTask, finished: dict[str, list[ShardInfo]]) -> None:
    root = task.store.root
    splits = [
        {"name": name, "bytes": sum(shard.bytes for shard in shards), **_totals(shards)}
        for name, shards in finished.items()
        if any(shard.rows for shard in shards)
    ]
    if not splits:
        return
    job = read_json(task.store.state / JOB_FILE)
    card_data = DatasetCardData(
        pretty_name=root.resolve().name,
        task_categories=["image-segmentation"],
        tags=["c2fmae", "multi-granular", "panoptic-segmentation"],
        configs=[
            {
                "config_name": "default",
                "data_files": [
                    {"split": split["name"], "path": f"data/{split['name']}-*.parquet"} for split in splits
                ],
            }
        ],
    )
    # `datasets` caches a folder by its name and a checksum of this metadata. The sizes tell it apart from another
    # dataset in a folder of the same name.
    size = sum(split["bytes"] for split in splits)
    info = datasets.DatasetInfo(
        features=task.features,
        splits={
            split["name"]: {"name": split["name"], "num_bytes": split["bytes"], "num_examples": split["rows"]}
            for split in splits
        },
        download_size=size,
        dataset_size=size,
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(card_data)
    card = DatasetCard.from_template(
        card_data,
        template_path=str(Path(__file__).with_name("dataset_card_template.md")),
        folder=root.resolve().name,
        splits=splits,
        job=job,
        has_labels=task.source.label_feature is not None,
        settings=json.dumps(
            {"labeller": job["labeller"]["settings"], "output": job["output"], "versions": job["versions"]}, indent=1
        ),
    )
    with replace_file(root / "README.md") as temporary:
        temporary.write_text(str(card), encoding="utf-8")
