"""
The table of the study's variants. All have the same encoder, data, crops and optimiser, and losses of weight 1 unless
they name others (most runs are older than the package's default weights).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any, Literal

from data import SOURCES

from c2fmae_hf.configuration_c2fmae import LOSS_WEIGHTS


# ViTs for 96 x 96 pixels. The small one has 8 blocks and 64 patches of 12 pixels: two cores train it in minutes.
# The tiny one is a ViT-Ti with the same patches.
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
ENCODERS["small224"] = {**ENCODERS["small"], "image_size": 224, "patch_size": 16}
DEFAULT_ENCODERS = {"stl10": "small", "scenes": "small224"}
DECODER = {
    "decoder_hidden_size": 128,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 512,
}
RANDOM = {"curriculum": "constant", "curriculum_weights": [0.0, 0.0, 1.0]}
LINEAR: dict[str, Any] = {}  # the default curriculum


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
        shares_by_area (`bool`): Whether guided masks show regions by area instead of equally.
        blocks_twice (`bool`): Whether a stage applies its blocks twice, with the same weights.
        feeds_memory (`bool`): Whether visible patches are predicted, too, and their predictions added to what the next
            stage attends to.
        class_token_predicts (`bool`): Whether the class token is to predict the semantic classes' shares of the image.
        label_a_patch (`bool`): Whether labels are one per patch instead of one per cell of the encoder's label stride.
        losses_follow (`bool`): Whether a loss weighs a half plus one and a half times the present share of its masks.
    """

    words: str
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    kind: Literal["c2fmae", "vit_mae", "supervised"] = "c2fmae"
    maps: Literal["annotated", "objects", "classical"] = "annotated"
    feedback: Literal["gradient", "detached", "none"] = "gradient"
    self_attention: tuple[str, ...] = ()
    masks_per_crop: int = 1
    shares_by_area: bool = False
    blocks_twice: bool = False
    feeds_memory: bool = False
    class_token_predicts: bool = False
    label_a_patch: bool = False
    losses_follow: bool = False


VARIANTS = {
    "mae": Variant("MAE (transformers' ViTMAE)", kind="vit_mae"),
    "parallel": Variant("parallel decoders, random masks", {"decoder_type": "parallel"}, RANDOM),
    "parallel_curriculum": Variant("parallel decoders, curriculum", {"decoder_type": "parallel"}, LINEAR),
    "cascade": Variant("cascade, random masks", training=RANDOM),
    "curriculum": Variant("cascade, curriculum", training=LINEAR),
    "curriculum_area": Variant("cascade, curriculum, shares by area", training=LINEAR, shares_by_area=True),
    "curriculum_whole": Variant("cascade, curriculum, whole regions hidden", training={"region_masking": "whole"}),
    "reversed": Variant(
        "cascade, curriculum reversed", training={**LINEAR, "curriculum_order": ["random", "instance", "semantic"]}
    ),
    # What the decoder predicts, and for how many patches.
    "image": Variant("our decoder, pixels only", {"granularities": ["image"]}, RANDOM),
    "no_instance": Variant("cascade, no instance stage", {"granularities": ["semantic", "image"]}, RANDOM),
    "half_decoded": Variant("cascade, half of the masked patches decoded", {"decoder_prediction_ratio": 0.5}, RANDOM),
    "eighth_decoded": Variant(
        "cascade, an eighth of the masked patches decoded", {"decoder_prediction_ratio": 0.125}, RANDOM
    ),
    "repeated_masks": Variant("cascade, two masks per crop, half as many crops", training=RANDOM, masks_per_crop=2),
    "visible": Variant("cascade, labels of visible patches too", {"supervise_visible_labels": True}, RANDOM),
    "all_inputs": Variant(
        "cascade, encoder sees all granularities",
        {"input_granularities": ["semantic", "instance", "image"]},
        RANDOM,
    ),
    # How stages depend on each other.
    "detached": Variant("cascade, predictions fed on without gradient", training=RANDOM, feedback="detached"),
    "no_feedback": Variant("cascade, predictions not fed on", training=RANDOM, feedback="none"),
    "self_attention": Variant(
        "cascade, label queries attend to each other", training=RANDOM, self_attention=("semantic", "instance")
    ),
    "deep_stages": Variant("cascade, two blocks per stage", {"decoder_num_hidden_layers": 2}, RANDOM),
    "shared_blocks": Variant("cascade, curriculum, blocks applied twice", training=LINEAR, blocks_twice=True),
    "feeds_memory": Variant(
        "cascade, curriculum, predictions of visible patches fed on too", training=LINEAR, feeds_memory=True
    ),
    "class_token": Variant(
        "cascade, curriculum, class token predicts the classes' shares", training=LINEAR, class_token_predicts=True
    ),
    "label_a_patch": Variant("cascade, curriculum, one label per patch", training=LINEAR, label_a_patch=True),
    # Losses and learning rates.
    "labels_less": Variant("cascade, random masks, label losses weighted 1/3", {"loss_weights": LOSS_WEIGHTS}, RANDOM),
    "labels_more": Variant(
        "cascade, label losses weighted 3", {"loss_weights": {"semantic": 3.0, "instance": 3.0, "image": 1.0}}, RANDOM
    ),
    "curriculum_labels_less": Variant(
        "cascade, curriculum, label losses weighted 1/3 (default)", {"loss_weights": LOSS_WEIGHTS}, LINEAR
    ),
    "losses_follow": Variant("cascade, curriculum, loss weights follow it", training=LINEAR, losses_follow=True),
    "curriculum_slow": Variant(
        "cascade, curriculum, half the learning rate", training={**LINEAR, "base_learning_rate": 2e-3}
    ),
    "cascade_slow": Variant("cascade, half the learning rate", training={**RANDOM, "base_learning_rate": 2e-3}),
    "cascade_fast": Variant("cascade, twice the learning rate", training={**RANDOM, "base_learning_rate": 8e-3}),
    "mae_slow": Variant("MAE, half the learning rate", training={"base_learning_rate": 2e-3}, kind="vit_mae"),
    "mae_fast": Variant("MAE, twice the learning rate", training={"base_learning_rate": 8e-3}, kind="vit_mae"),
    "mae_deep": Variant("MAE, decoder of five blocks", {"decoder_num_hidden_layers": 5}, kind="vit_mae"),
    # Other labels.
    "objects": Variant("cascade, maps without classes", training=RANDOM, maps="objects"),
    "classical": Variant("cascade, maps of the classical labeller", training=RANDOM, maps="classical"),
    "classical_curriculum": Variant(
        "cascade, curriculum, maps of the classical labeller", training=LINEAR, maps="classical"
    ),
    "classical_labels_less": Variant(
        "cascade, curriculum, maps of the classical labeller, label losses weighted 1/3",
        {"loss_weights": LOSS_WEIGHTS},
        LINEAR,
        maps="classical",
    ),
    "supervised": Variant("supervised by the class of the photograph", kind="supervised"),
}
MAIN = (
    "mae",
    "parallel",
    "parallel_curriculum",
    "cascade",
    "curriculum",
    "labels_less",
    "curriculum_labels_less",
    "curriculum_area",
    "curriculum_whole",
    "reversed",
    "classical_labels_less",
)


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
