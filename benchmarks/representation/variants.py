"""The table of the study's variants. All have the same encoder, data, crops and optimiser."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any, Literal

from data import SOURCES


# ViTs for 96 x 96 pixels. The small one has 8 blocks and 64 patches of 12 pixels: two cores train it in minutes.
# The tiny one is a ViT-Ti with the same patches, the large one a ViT-Ti with 256 patches of 6 pixels.
# For scenes there is the small one for 224 x 224 pixels, with 196 patches of 16.
ENCODERS = {
    "small": {
        "image_size": 96,
        "patch_size": 12,
        "hidden_size": 192,
        "num_hidden_layers": 8,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "label_stride": 4,
        "num_semantic_classes": 11,
    },
}
ENCODERS["tiny"] = {**ENCODERS["small"], "num_hidden_layers": 12}
ENCODERS["large"] = {**ENCODERS["tiny"], "patch_size": 6, "label_stride": 3}
ENCODERS["small224"] = {**ENCODERS["small"], "image_size": 224, "patch_size": 16}
DEFAULT_ENCODERS = {"stl10": "small", "scenes": "small224"}
DECODER = {
    "decoder_hidden_size": 128,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 512,
}
RANDOM = {"curriculum": "constant", "curriculum_weights": [0.0, 0.0, 1.0]}
# The default curriculum, and the one that hides whole regions. The runs of `results` were made with the latter and
# decoded all masked patches; those of `results/defaults` are the variants of this table.
LINEAR: dict[str, Any] = {}
WHOLE = {"region_masking": "whole"}


@dataclass(frozen=True)
class Variant:
    """
    Args:
        words: Name in tables.
        config: Fields of [`C2FMAEConfig`], or of `ViTMAEConfig`, that differ from the study's.
        training: Fields of [`C2FMAETrainingArguments`] that differ.
        kind: `c2fmae`; `vit_mae`, transformers' model with its own decoder; or `supervised`, a classifier.
        maps: Annotated label maps, maps of objects without classes, or maps of the classical labeller.
        feedback: Whether a stage's prediction is passed to the next with its gradient, without it, or not at all
            (only the refined queries are).
        self_attention (`tuple[str, ...]`): Stages whose queries also attend to each other.
        masks_per_crop (`int`): Masks of every crop in a step, which has as many fewer crops.
    """

    words: str
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    kind: Literal["c2fmae", "vit_mae", "supervised"] = "c2fmae"
    maps: Literal["annotated", "objects", "classical"] = "annotated"
    feedback: Literal["gradient", "detached", "none"] = "gradient"
    self_attention: tuple[str, ...] = ()
    masks_per_crop: int = 1


VARIANTS = {
    "mae": Variant("MAE (transformers' ViTMAE)", kind="vit_mae"),
    "mae_deep": Variant("MAE, five blocks of decoder", {"decoder_num_hidden_layers": 5}, kind="vit_mae"),
    "image": Variant("image alone, our decoder", {"granularities": ["image"]}, RANDOM),
    "parallel": Variant("three granularities, parallel decoders", {"decoder_type": "parallel"}, RANDOM),
    "cascade": Variant("three granularities, cascade", training=RANDOM),
    "cascade_semantic": Variant(
        "cascade, semantic-guided masks",
        training={**RANDOM, "curriculum_weights": [1.0, 0.0, 0.0], "region_masking": "whole"},
    ),
    "cascade_instance": Variant(
        "cascade, instance-guided masks",
        training={**RANDOM, "curriculum_weights": [0.0, 1.0, 0.0], "region_masking": "whole"},
    ),
    "curriculum": Variant("cascade, curriculum from coarse to fine", training=LINEAR),
    "reversed": Variant(
        "cascade, curriculum from fine to coarse",
        training={**LINEAR, "curriculum_order": ["random", "instance", "semantic"]},
    ),
    "parallel_curriculum": Variant("parallel decoders, curriculum", {"decoder_type": "parallel"}, LINEAR),
    "all_inputs": Variant(
        "cascade, encoder shown all granularities",
        {"input_granularities": ["semantic", "instance", "image"]},
        RANDOM,
    ),
    "visible": Variant("cascade, labels of visible patches too", {"supervise_visible_labels": True}, RANDOM),
    "visible_curriculum": Variant(
        "cascade, curriculum, labels of visible patches too", {"supervise_visible_labels": True}, LINEAR
    ),
    "no_instance": Variant("cascade without instances", {"granularities": ["semantic", "image"]}, RANDOM),
    "labels_less": Variant(
        "cascade, labels weigh a third", {"loss_weights": {"semantic": 1 / 3, "instance": 1 / 3, "image": 1.0}}, RANDOM
    ),
    "labels_more": Variant(
        "cascade, labels weigh three times", {"loss_weights": {"semantic": 3.0, "instance": 3.0, "image": 1.0}}, RANDOM
    ),
    "detached": Variant("cascade, predictions fed on without gradient", training=RANDOM, feedback="detached"),
    "no_feedback": Variant("cascade, no prediction fed on", training=RANDOM, feedback="none"),
    "curriculum_step": Variant("cascade, curriculum in three steps", training={**LINEAR, "curriculum": "step"}),
    "curriculum_short": Variant(
        "cascade, curriculum in the first half", training={**LINEAR, "curriculum_length": 0.5}
    ),
    "curriculum_whole": Variant("cascade, curriculum, whole regions", training=WHOLE),
    "all_decoded": Variant("cascade, all masked patches decoded", {"decoder_prediction_ratio": 1.0}, RANDOM),
    "half_decoded": Variant("cascade, half of the masked patches decoded", {"decoder_prediction_ratio": 0.5}, RANDOM),
    "eighth_decoded": Variant(
        "cascade, an eighth of the masked patches decoded", {"decoder_prediction_ratio": 0.125}, RANDOM
    ),
    "repeated_masks": Variant(
        "cascade, two masks of every crop, half as many crops", training=RANDOM, masks_per_crop=2
    ),
    "mae_slow": Variant("MAE, half the learning rate", training={"base_learning_rate": 2e-3}, kind="vit_mae"),
    "mae_fast": Variant("MAE, twice the learning rate", training={"base_learning_rate": 8e-3}, kind="vit_mae"),
    "cascade_slow": Variant("cascade, half the learning rate", training={**RANDOM, "base_learning_rate": 2e-3}),
    "cascade_fast": Variant("cascade, twice the learning rate", training={**RANDOM, "base_learning_rate": 8e-3}),
    "self_attention": Variant(
        "cascade, queries of semantics and instances attend to each other",
        training=RANDOM,
        self_attention=("semantic", "instance"),
    ),
    "deep_stages": Variant("cascade, two blocks a stage", {"decoder_num_hidden_layers": 2}, RANDOM),
    "objects": Variant("cascade, maps without classes", training=RANDOM, maps="objects"),
    "classical": Variant("cascade, maps of the classical labeller", training=RANDOM, maps="classical"),
    "classical_curriculum": Variant(
        "cascade, maps of the classical labeller, curriculum", training=LINEAR, maps="classical"
    ),
    "supervised": Variant("supervised by the class alone", kind="supervised"),
}
MAIN = ("mae", "image", "parallel", "cascade", "curriculum", "reversed")


def check_source(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what `--source` cannot have: an encoder of another size, classes of photographs that have none."""
    side, encoder = SOURCES[options.source].image_size, ENCODERS[options.encoder]
    if encoder["image_size"] != side:
        parser.error(
            f"--encoder {options.encoder}: expected one of {side} pixels for --source {options.source}, such as "
            f"{DEFAULT_ENCODERS[options.source]}, got {encoder['image_size']} pixels"
        )
    if options.source == "scenes" and "supervised" in (options.variants or ()):
        parser.error("--variants supervised: the photographs of --source scenes have no class")
    if options.source == "scenes" and options.fine_tune:
        parser.error("--fine_tune: expected --source stl10; scenes score frozen encoders only")
