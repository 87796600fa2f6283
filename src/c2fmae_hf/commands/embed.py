"""
Write features of photographs to Parquet: for each image its id and one vector, or one vector per patch.

    c2fmae embed runs/mine/c2fmae-vit-tiny photos --output features.parquet
    c2fmae embed runs/mine/c2fmae-vit-tiny photos --output features.parquet --features patches --half
    c2fmae embed google/vit-base-patch16-224-in21k "data/*.parquet" --output features

MODEL is whatever AutoModel loads (C2FMAE, ViT, DINOv2, timm/...). IMAGES is a folder and its subfolders, tar or
Parquet files (wildcards in quotes), a folder written by save_to_disk, or a dataset on the Hub. An output that does not
end in .parquet is a folder of shards. After an interruption, run the same command again: it continues.

Read the features with datasets.load_dataset("parquet", data_files="features.parquet") or pandas.read_parquet.
Exit code: 3 if some images could not be read.
"""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor

from ..configuration_c2fmae import C2FMAEConfig
from ..labelling.sources.open import open_source
from ..publishing.fingerprints import weights_fingerprint
from ..publishing.repository import check_saved
from ..training.log_lines import counted
from ..transfer.embedding import KINDS, embed_images
from ..transfer.encoders import build_processor, load_encoder, own_image_size
from ..utils.files import check_writable
from .arguments import CommandParser, pick_device
from .console import model_in_words, print_results


logger = logging.getLogger(__name__)


def main(args: list[str] | None = None) -> list[str]:
    """Returns a line for each image that could not be used."""
    parser = CommandParser("embed", __doc__)
    parser.add_argument("model", help="folder or Hub name of an encoder")
    parser.add_argument("images", help="photographs: folder, files or dataset")
    parser.add_argument("--output", required=True, help="a .parquet file, or a folder of shards")
    parser.add_argument(
        "--features", choices=KINDS, default="mean", help="class token, mean of the patches, or all patches"
    )
    parser.add_argument("--half", action="store_true", help="store float16 instead of float32")
    parser.add_argument(
        "--image_size", type=int, help="side of a square input; by default the model's image processor decides"
    )
    parser.add_argument("--split", help="split of a dataset; by default its only one, or train")
    parser.add_argument("--class_folders", action="store_true", help="folders below IMAGES are classes")
    parser.add_argument("--batch_size", type=int, default=32, help="images of a forward pass")
    parser.add_argument(
        "--rows_per_shard", type=int, default=4096, help="images of a shard, which is kept once computed"
    )
    parser.add_argument("--num_threads", type=int, default=2, help="threads that decode images")
    parser.add_argument("--device", help="by default a GPU if there is one, else the CPU")
    options = parser.parse_args(args)
    check_writable(Path(options.output).parent, "output")
    source = open_source(options.images, options.split, class_folders=options.class_folders)
    check_saved(options.model)
    model = load_encoder(options.model).to(pick_device(options.device))
    processor = None
    if options.image_size is None or isinstance(model.config, C2FMAEConfig):
        size = {} if options.image_size is None else {"size": options.image_size}  # the crop follows
        try:
            processor = AutoImageProcessor.from_pretrained(options.model, **size)
        except (OSError, ValueError):
            logger.warning(
                "%s has no image processor: images are resized to its input, as in ImageNet.", options.model
            )
    if processor is None:
        image_size = options.image_size or own_image_size(AutoConfig.from_pretrained(options.model))
        processor = build_processor(options.model, model.config, image_size)
    number = source.num_records(1000)
    images = "the images" if number is None else counted(number, "image")
    kind = {"cls": "the class token", "mean": "the mean of the patches", "patches": "all patches"}[options.features]
    print(
        f"Embedding {images} of {options.images} with {model_in_words(options.model, model)} on {model.device}. "
        f"Features: {kind}, {'float16' if options.half else 'float32'}. Output: {options.output}.",
        flush=True,
    )
    settings = {"model": weights_fingerprint(model), "processor": processor.to_json_string()}
    rows, rejected = embed_images(
        model,
        processor,
        source,
        options.output,
        kind=options.features,
        batch_size=options.batch_size,
        rows_per_shard=options.rows_per_shard,
        num_threads=options.num_threads,
        half=options.half,
        settings=settings,
    )
    left_out = f", {len(rejected)} left out" if rejected else ""
    print_results(
        [f"{options.output}: features of {counted(rows, 'image')}{left_out}"],
        [shlex.join(["python", "-c", f'import pandas; print(pandas.read_parquet("{options.output}"))'])],
    )
    return rejected


def exit_code(rejected: list[str]) -> int:
    return 3 if rejected else 0
