"""Write features of photographs to Parquet files, shard by shard, so that an interrupted job can continue."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..images import open_image, to_rgb
from ..labelling.contents import check_unchanged, load_record
from ..labelling.engine import map_ahead
from ..labelling.records import SourceRecord
from ..labelling.sources.base import ImageSource, Part
from ..utils.files import file_sha256, read_json, replace_file, write_json
from .encoders import encode_images, patch_size_of, pool_tokens


logger = logging.getLogger(__name__)

#: Kinds of features: the class token, the mean of the patch tokens, or all patch tokens.
KINDS = ("cls", "mean", "patches")
#: In the folder of shards; `datasets` ignores names that start with a dot.
STATE, SETTINGS_FILE = ".embedding", "settings.json"


def embed_images(
    model: PreTrainedModel,
    processor: Any,
    source: ImageSource,
    output: str | Path,
    kind: str = "mean",
    batch_size: int = 32,
    rows_per_shard: int = 4096,
    num_threads: int = 2,
    half: bool = False,
    settings: dict[str, Any] | None = None,
) -> tuple[int, list[str]]:
    """
    Write the features of every image of a source. With the same model, source and settings, finished shards are kept
    and not computed again.

    Args:
        model: From [`~c2fmae_hf.transfer.encoders.load_encoder`], on the device to use.
        processor: Its image processor.
        source: From [`~c2fmae_hf.labelling.sources.open.open_source`].
        output: A `.parquet` file, which appears once it is complete, or a folder of shards. Columns: `image_id`
            (string), `label` (int64, if the source has classes), `features`: a list of `width` numbers or, for
            `patches`, one such list per patch, row-major.
        kind (`str`): One of `cls`, `mean`, `patches`.
        batch_size (`int`): Images per forward pass.
        rows_per_shard (`int`): Images per shard.
        num_threads (`int`): Threads that decode images.
        half (`bool`): Whether to store float16 instead of float32.
        settings (*optional*): Everything else that determines the features; stored beside the shards and in the files'
            metadata.

    Returns:
        The number of rows, and a message for each image that could not be used.

    Raises:
        `ValueError`: for an unknown kind, `cls` without a class token, or an output begun with other settings.
    """
    if kind not in KINDS:
        raise ValueError(f"features: expected one of {KINDS}, got {kind!r}")
    for name, number in (("batch_size", batch_size), ("rows_per_shard", rows_per_shard), ("num_threads", num_threads)):
        if number < 1:
            raise ValueError(f"{name}: expected at least 1, got {number}")
    output = Path(output)
    is_file = output.suffix == ".parquet"
    folder = output.with_name(f".{output.name}.parts") if is_file else output
    described = {**(settings or {}), "features": kind, "half": half, "rows_per_shard": rows_per_shard}
    described = json.loads(json.dumps({**described, "source": source.fingerprint()}, default=str))
    _begin(folder, output, described)

    parts = source.parts(rows_per_shard)
    rejected: list[str] = []
    files: list[Path] = []
    rows = 0
    with (
        torch.inference_mode(),
        ThreadPoolExecutor(num_threads) as pool,
        tqdm(total=source.num_records(rows_per_shard), desc="Embedding", unit=" images", mininterval=1) as bar,
    ):
        model.eval()
        embedder = _Embedder(model, processor, kind, batch_size, half, pool)
        for part in parts:
            path, done = folder / f"part-{part.index:05d}.parquet", folder / STATE / f"part-{part.index:05d}.json"
            state = _finished(path, done)
            if state is not None:
                if source.origin is None:
                    now = map_ahead(pool, load_record, source.read(part), batch_size)
                    check_unchanged(state["contents"], now, str(path))
                bar.update(state["rows"] + len(state["rejected"]))
            else:
                table, missed, contents = embedder.table(source, part, bar)
                write_json(folder / STATE / SETTINGS_FILE, described)
                if table is not None:
                    with replace_file(path) as temporary:
                        pq.write_table(table.replace_schema_metadata({"c2fmae": json.dumps(described)}), temporary)
                state = {
                    "rows": 0 if table is None else table.num_rows,
                    "sha256": None if table is None else file_sha256(path),
                    "rejected": missed,
                    "contents": contents,
                }
                write_json(done, state)
            rejected += state["rejected"]
            rows += state["rows"]
            files += [path] if state["rows"] else []
    if not rows:
        raise ValueError(f"{output}: expected at least one image that can be read, got none")
    if is_file:
        _join(files, output)
        shutil.rmtree(folder)
    return rows, rejected


def _begin(folder: Path, output: Path, described: dict[str, Any]) -> None:
    """
    Raises:
        `FileExistsError`: if the output file exists or the folder holds other files.
        `ValueError`: if the output was begun with other settings.
    """
    if output.suffix == ".parquet" and output.exists():
        raise FileExistsError(f"{output}: expected a new file, but it exists; remove it or choose another name")
    path = folder / STATE / SETTINGS_FILE
    if path.is_file():
        before = read_json(path, f". Remove {folder} to begin again")
        changed = sorted(name for name in {*before, *described} if before.get(name) != described.get(name))
        if changed:
            raise ValueError(
                f"{folder}: begun with other settings ({', '.join(changed)}); remove it or choose another output"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: expected a new or empty folder, got one with other files")


def _finished(path: Path, record: Path) -> dict[str, Any] | None:
    """The recorded state of a finished part; `None` if the record or the part is missing or damaged."""
    if not record.is_file():
        return None
    try:
        state = read_json(record)
        rows, rejected, contents = state["rows"], list(state["rejected"]), list(state["contents"])
        is_sound = rows + len(rejected) == len(contents)
        is_sound = is_sound and (rows == 0 or (path.is_file() and file_sha256(path) == state["sha256"]))
    except (ValueError, KeyError, TypeError):
        is_sound = False
    if is_sound:
        return state
    logger.warning("%s or its record is damaged; it is computed again.", path)
    return None


class _Embedder:
    """Computes the table of a part."""

    def __init__(
        self, model: PreTrainedModel, processor: Any, kind: str, batch_size: int, half: bool, pool: ThreadPoolExecutor
    ) -> None:
        self.model, self.processor, self.kind = model, processor, kind
        self.batch_size, self.pool = batch_size, pool
        self.patch_size = patch_size_of(model)
        self.device = next(model.parameters()).device
        self.dtype = np.float16 if half else np.float32

    def table(self, source: ImageSource, part: Part, bar: tqdm) -> tuple[pa.Table | None, list[str], list[str]]:
        """Rows of a part (`None` if no image can be read), messages for unreadable images, and checksums of all."""
        ids: list[str] = []
        labels: list[int | None] = []
        features: list[np.ndarray] = []
        missed: list[str] = []
        contents: list[str] = []
        records = iter(source.read(part))
        while batch := list(islice(records, self.batch_size)):
            images = []
            for record, (image, checksum) in zip(batch, self.pool.map(_decode, batch)):
                contents.append(checksum)
                if isinstance(image, ValueError):
                    missed.append(f"{record.location}: {image}")
                    logger.warning("Left out: %s: %s", record.location, image)
                    continue
                images.append(image)
                ids.append(record.image_id)
                labels.append(record.label)
            if images:
                features.append(self._features(images))
            bar.update(len(batch))
        if not features:
            return None, missed, contents
        columns: dict[str, Any] = {"image_id": pa.array(ids, pa.string())}
        if source.label_feature is not None:
            columns["label"] = pa.array(labels, pa.int64())
        columns["features"] = _lists(np.concatenate(features))
        return pa.table(columns), missed, contents

    def _features(self, images: Sequence[Any]) -> np.ndarray:
        """Features `(B, width)`, or for patches `(B, N, width)`."""
        values = [torch.as_tensor(image) for image in self.processor(images)["pixel_values"]]
        sizes = [tuple(image.shape) for image in values]
        if len(set(sizes)) == 1:
            return self._features_of_one_size(torch.stack(values))
        if self.kind == "patches":
            raise ValueError(
                f"features: expected photographs of one size from the image processor, got {sorted(set(sizes))[:3]}; "
                "pass --image_size, or choose features other than patches"
            )
        features: list[Any] = [None] * len(values)
        for size in dict.fromkeys(sizes):
            places = [place for place, one in enumerate(sizes) if one == size]
            found = self._features_of_one_size(torch.stack([values[place] for place in places]))
            for place, feature in zip(places, found):
                features[place] = feature
        return np.stack(features)

    def _features_of_one_size(self, pixel_values: torch.Tensor) -> np.ndarray:
        tokens = encode_images(self.model, pixel_values.to(self.device, self.model.dtype)).float()
        num_patches = (pixel_values.shape[2] // self.patch_size) * (pixel_values.shape[3] // self.patch_size)
        if self.kind == "patches":
            values = tokens[:, tokens.shape[1] - num_patches :]
        else:
            values = pool_tokens(tokens, num_patches, self.kind)
        features = values.cpu().numpy().astype(self.dtype)
        if not np.isfinite(features).all():
            raise ValueError(
                f"features: expected finite numbers, got others in {features.dtype}. Check the weights and the image "
                "processor's mean and standard deviation; float16 (half) cannot hold numbers above 65504"
            )
        return features


def _decode(record: SourceRecord) -> tuple[Any, str]:
    """The RGB image or the error, and the record's checksum."""
    record, checksum = load_record(record)
    try:
        if record.error is not None:
            raise ValueError(record.error)
        return to_rgb(open_image(record.value)), checksum
    except ValueError as error:
        return error, checksum


def _lists(values: np.ndarray) -> pa.Array:
    """Convert an array `(rows, ...)` to nested lists of fixed size."""
    array = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _join(files: Sequence[Path], output: Path) -> None:
    """Join shards into one file, with one shard in memory at a time."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(output) as temporary, pq.ParquetWriter(temporary, pq.read_schema(files[0])) as writer:
        for file in files:
            writer.write_table(pq.read_table(file))
