"""C2FMAE's configuration, the table of sizes, and the keys of `config.json` that timm reads."""

# No `from __future__ import annotations` here: `@strict` checks the fields against their annotations' real types.
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from huggingface_hub.dataclasses import strict, validated_field
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .constants import GRANULARITIES, IMAGENET_MEAN, IMAGENET_STD


# Weights of the losses by default.
LOSS_WEIGHTS = {"semantic": 1 / 3, "instance": 1 / 3, "image": 1.0}

# The only table of sizes. Encoders follow DeiT (tiny, small) and MAE (base, large, huge). The decoder's width and
# depth are our choice: two 512-wide blocks per stage for base and larger, less below.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "patch_size": 16,
        "label_stride": 4,
        "decoder_hidden_size": 192,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 6,
        "decoder_intermediate_size": 768,
    },
    "small": {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "patch_size": 16,
        "label_stride": 4,
        "decoder_hidden_size": 256,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 8,
        "decoder_intermediate_size": 1024,
    },
    "base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "patch_size": 16,
        "label_stride": 4,
        "decoder_hidden_size": 512,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 16,
        "decoder_intermediate_size": 2048,
    },
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "patch_size": 16,
        "label_stride": 4,
        "decoder_hidden_size": 512,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 16,
        "decoder_intermediate_size": 2048,
    },
    # A 14-pixel patch is not divisible by the usual label stride of 4; 7 gives 2 x 2 label cells per patch.
    "huge": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "intermediate_size": 5120,
        "patch_size": 14,
        "label_stride": 7,
        "decoder_hidden_size": 512,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 16,
        "decoder_intermediate_size": 2048,
    },
}

# Keys that timm reads from `config.json`. They are derived from the fields below whenever an encoder is saved, and
# dropped when a configuration is read, so that they can never go stale.
TIMM_KEYS = (
    "architecture",
    "num_classes",
    "num_features",
    "global_pool",
    "label_names",
    "pretrained_cfg",
    "model_args",
)

# Larger values are a mistake or an attack: such a model would exhaust the memory before any error is raised.
_MAX_LENGTH = 4096
_MAX_PIXELS = 1 << 16
_MAX_CHANNELS = 1 << 20

# timm's `VisionTransformer` loads all weights that these two classes save.
_ENCODER_CLASS = "C2FMAEModel"
_CLASSIFIER_CLASS = "C2FMAEForImageClassification"


def resize_before_crop(side: int, crop_pct: float = 0.875) -> int:
    """
    Pixels to which an image's shorter side is resized before a central crop of `side` pixels: about `side / crop_pct`,
    with an even margin, because libraries split odd margins differently.
    """
    return side + 2 * round(side * (1 / crop_pct - 1) / 2)


def crop_share(crop: int, resized: int) -> float:
    """timm's `crop_pct` for a crop from a shorter side of `resized`; timm resizes to `floor(crop / crop_pct)`."""
    share = round(crop / resized, 4)
    return share if math.floor(crop / share) == resized else crop / (resized + 0.5)


@contextmanager
def known_names(name: Any) -> Iterator[None]:
    """Add the available weights to the error for a name that is neither a folder nor a repository."""
    try:
        yield
    except OSError as error:
        is_explained = str(error).startswith(f"{name}: ")  # by loading the configuration of a model
        if name is None or is_explained or os.path.exists(name) or "/" in str(name):
            raise
        raise OSError(
            f"{name}: expected a folder or a repository on the Hub, found neither. This package's weights, "
            "c2fmae-vit-tiny-stl10, load from the folder model_cards/c2fmae-vit-tiny-stl10 of its repository; "
            f"C2FMAEConfig.from_size builds the architectures {', '.join(SIZES)} with random weights. "
            f"({str(error).splitlines()[0]})"
        ) from error


def check_decoder_type(value: Any) -> None:
    """Check `decoder_type`; runs whenever the field is set."""
    hint = ""
    if value == "simmim":  # set by transformers' run_mim.py
        hint = "; to pre-train this model: c2fmae pretrain, or C2FMAETrainer in Python"
    if value not in ("cascaded", "parallel"):
        raise ValueError(f"C2FMAEConfig.decoder_type: expected 'cascaded' or 'parallel', got {value!r}{hint}")


@strict
class C2FMAEConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a C2FMAE model. The defaults are those of `C2FMAEConfig.from_size("base")`.

    Encoder (names as in ViT and ViTMAE):

    Args:
        hidden_size (`int`, defaults to 768): Width of the encoder.
        num_hidden_layers (`int`, defaults to 12): Number of encoder blocks.
        num_attention_heads (`int`, defaults to 12): Attention heads of an encoder block.
        intermediate_size (`int`, defaults to 3072): Width of the encoder's MLP.
        hidden_act (`str`, defaults to `"gelu"`): Activation of every MLP.
        hidden_dropout_prob (`float`, defaults to 0.0): Dropout after the embeddings and in every MLP.
        attention_probs_dropout_prob (`float`, defaults to 0.0): Dropout on attention weights.
        drop_path_rate (`float`, defaults to 0.0): Stochastic depth of the last encoder block; it grows linearly
            from 0 at the first.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the tokens' initialisation. Projections
            are Xavier-uniform, as in MAE.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of every layer norm (timm's and MAE's value).
        image_size (`int` or `(height, width)`, defaults to 224): Input size in pixels.
        patch_size (`int`, defaults to 16): Side of a patch in pixels.
        num_channels (`int`, defaults to 3): Input channels.
        image_mean, image_std (`list[float]`, *optional*): Mean and standard deviation of each channel, for pixels in
            [0, 1]. The image processor and timm normalise with them. Defaults to ImageNet's for three channels, else
            to 0.5.
        qkv_bias (`bool`, defaults to `True`): Whether the query, key and value projections have a bias.
        pooling (`"mean"` or `"cls"`, defaults to `"mean"`): Whether `pooler_output` is the mean of the patch tokens or
            the class token, both after the final norm.

    Pre-training. The paper fixes the three granularities, the cascade and the curriculum; the values are our choice:

    Args:
        granularities (`list[str]`): Decoder stages, a non-empty part of `("semantic", "instance", "image")` in that
            order. `("image",)` with random masking is MAE.
        input_granularities (`list[str]`, defaults to `("image",)`): Inputs of the encoder in pre-training.
        decoder_type (`"cascaded"` or `"parallel"`): Whether a stage depends on the one before it, or every stage
            starts from the same queries (the ablation).
        num_semantic_classes (`int`, defaults to 134): Number of classes of the semantic targets. The default holds
            the ids of COCO panoptic.
        semantic_id2label (`dict[int, str]`, *optional*): Names of those classes. `id2label` holds the labels of a
            downstream head, as in transformers.
        label_stride (`int`, defaults to 4): Pixels per cell of the label grid, on which semantic and instance targets
            live.
        decoder_hidden_size (`int`, defaults to 512): Width of the decoder.
        decoder_num_hidden_layers (`int`, defaults to 2): Cross-attention blocks of each stage.
        decoder_num_attention_heads (`int`, defaults to 16): Attention heads of a decoder block.
        decoder_intermediate_size (`int`, defaults to 2048): Width of the decoder's MLP.
        decoder_prediction_ratio (`float`, defaults to 0.25): Share of the masked patches that are decoded in a
            training step, drawn anew in each; the loss is an unbiased estimate of the loss over all masked patches.
            Evaluation decodes all of them.
        mask_ratio (`float`, defaults to 0.75): Share of the patches that are masked, in (0, 1).
        norm_pix_loss (`bool`, defaults to `True`): Whether pixel targets are normalised by the mean and the variance
            of their patch.
        loss_weights (`dict[str, float]`, *optional*): Weight of each granularity's loss. Its keys must be exactly
            `granularities`. Defaults to 1 for the image and a third for semantics and instances (ours;
            docs/evidence.md compares it with 1 for each).
        instance_offset_weight (`float`, defaults to 4.0): Weight of the offset term within the instance loss; the
            foreground term has weight 1. Offsets are in units of the image side and so an order of magnitude smaller.
        supervise_visible_labels (`bool`, defaults to `False`): Whether semantic and instance losses also cover
            visible patches. Requires `input_granularities=("image",)`: any other encoder sees these labels.

    Downstream:

    Args:
        semantic_loss_ignore_index (`int`, defaults to 255): Label that `C2FMAEForSemanticSegmentation` ignores.
        segmentation_head_channels (`int`, defaults to 256): Width of that model's head.
        apply_layernorm (`bool`, defaults to `True`): Whether `C2FMAEBackbone` applies the final norm to every
            feature map.
        reshape_hidden_states (`bool`, defaults to `True`): Whether `C2FMAEBackbone` returns maps
            `(batch, channels, height, width)` rather than sequences.
        add_fpn (`bool`, defaults to `False`): Whether `C2FMAEBackbone` makes a feature pyramid of its one (ViTDet) or
            four (BEiT) `out_features`, at 4, 2, 1 and 1/2 times the patch grid's resolution.

    Origin:

    Args:
        converted_from (`str`, *optional*): Name of another library's model from which these weights were converted,
            before any further training. Its licence applies to them, and the model card names it.

    Raises:
        `huggingface_hub.errors.StrictDataclassFieldValidationError`: for a value of the wrong type.
        `ValueError`: for a value out of range, naming the field, what was expected and what came.
    """

    model_type = "c2fmae"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 16
    num_channels: int = 3
    image_mean: list[float | int] | tuple[float | int, ...] | None = None
    image_std: list[float | int] | tuple[float | int, ...] | None = None
    qkv_bias: bool = True
    pooling: Literal["mean", "cls"] = "mean"

    granularities: list[str] | tuple[str, ...] = GRANULARITIES
    input_granularities: list[str] | tuple[str, ...] = ("image",)
    decoder_type: str = validated_field(check_decoder_type, default="cascaded")
    num_semantic_classes: int = 134
    semantic_id2label: dict[int, str] | dict[str, str] | None = None
    label_stride: int = 4
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 2
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    decoder_prediction_ratio: float | int = 0.25
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True
    loss_weights: dict[str, float | int] | None = None
    instance_offset_weight: float | int = 4.0
    supervise_visible_labels: bool = False

    semantic_loss_ignore_index: int = 255
    segmentation_head_channels: int = 256
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    add_fpn: bool = False

    converted_from: str | None = None

    def __post_init__(self, **kwargs):
        for key in TIMM_KEYS:
            kwargs.pop(key, None)
        # JSON has neither tuples nor integer keys: hold what a saved and loaded configuration would hold.
        self.granularities = list(self.granularities)
        self.input_granularities = list(self.input_granularities)
        if isinstance(self.image_size, tuple):
            self.image_size = list(self.image_size)
        for field in ("num_channels", "num_hidden_layers", "decoder_num_hidden_layers"):  # lengths of lists
            value = getattr(self, field)
            if not isinstance(value, int) or value > _MAX_LENGTH:
                raise ValueError(f"C2FMAEConfig.{field}: expected an integer up to {_MAX_LENGTH}, got {value!r}")
        is_colour = self.num_channels == len(IMAGENET_MEAN)
        gray = [0.5] * self.num_channels
        self.image_mean = list(self.image_mean or (IMAGENET_MEAN if is_colour else gray))
        self.image_std = list(self.image_std or (IMAGENET_STD if is_colour else gray))
        if self.loss_weights is None:
            self.loss_weights = {name: LOSS_WEIGHTS.get(name, 1.0) for name in self.granularities}
        if self.semantic_id2label is not None:
            self.semantic_id2label = {int(key): name for key, name in self.semantic_id2label.items()}
        self.check_values()

        kwargs.pop("stage_names", None)  # saved ones; the number of blocks may have changed
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> Any:
        """
        Build a configuration from a mapping, as in transformers.

        Raises:
            `ValueError`: if it is not a mapping, or if a field has a wrong type or a value out of range.
        """
        if not isinstance(config_dict, dict):
            raise ValueError(f"C2FMAEConfig: expected a mapping, got {type(config_dict).__name__}")
        try:
            return super().from_dict(config_dict, **kwargs)
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
            # Fields are read before their types are checked.
            raise ValueError(
                f"C2FMAEConfig: expected fields of other types, {type(error).__name__}: {error}"
            ) from error

    @classmethod
    def from_size(cls, size: str, **overrides) -> "C2FMAEConfig":
        """
        Build the configuration of a size in `SIZES`.

        Args:
            size (`str`): One of `"tiny"`, `"small"`, `"base"`, `"large"`, `"huge"`.
            overrides: Fields that differ from the table.

        Raises:
            `ValueError`: for an unknown size.
        """
        if size not in SIZES:
            raise ValueError(f"size: expected one of {list(SIZES)}, got {size!r}")
        return cls(**{**SIZES[size], **overrides})

    @property
    def image_height_width(self) -> tuple[int, int]:
        """Input size in pixels, `(height, width)`."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        return self.image_size[0], self.image_size[1]

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches per column and per row, `(height, width)`."""
        height, width = self.image_height_width
        return height // self.patch_size, width // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid_size[0] * self.grid_size[1]

    @property
    def label_cells_per_side(self) -> int:
        """Label cells along one side of a patch."""
        return self.patch_size // self.label_stride

    def num_masked_patches(self, num_patches: int) -> int:
        """Number of masked patches out of `num_patches`; at least one patch is masked and one stays visible."""
        return min(max(round(self.mask_ratio * num_patches), 1), max(num_patches - 1, 1))

    def number_labels(self) -> None:
        """Convert class ids to integers: scripts may set them as in JSON, `{"0": "cat"}`."""
        if self.id2label:
            self.id2label = {int(index): name for index, name in self.id2label.items()}
        if self.label2id:
            self.label2id = {name: int(index) for name, index in self.label2id.items()}

    def check_values(self) -> None:
        """
        Check every field; runs at construction and again when a model is built.

        Raises:
            `ValueError`: for a value out of range.
        """
        self.validate_encoder()
        self.validate_images()
        self.validate_granularities()
        self.validate_semantic_classes()
        self.validate_decoder()
        self.validate_losses()
        self.validate_segmentation_head()

    # transformers also runs these methods whenever a configuration is saved.

    def validate_encoder(self) -> None:
        for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            self._expect_positive(field)
        self._expect_heads_fit("num_attention_heads", "hidden_size")
        for field in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            self._expect(0 <= getattr(self, field) < 1, field, "a number in [0, 1)")
        for field in ("initializer_range", "layer_norm_eps"):
            self._expect(0 < getattr(self, field) < math.inf, field, "a positive number")

    def validate_images(self) -> None:
        self._expect_positive("patch_size")
        is_size = isinstance(self.image_size, int) or len(self.image_size) == 2
        self._expect(is_size, "image_size", "an integer or (height, width)")
        fits = all(side >= self.patch_size and side % self.patch_size == 0 for side in self.image_height_width)
        self._expect(fits, "image_size", f"multiples of patch_size={self.patch_size}")
        self._expect(max(self.image_height_width) <= _MAX_PIXELS, "image_size", f"at most {_MAX_PIXELS} pixels")
        self._expect_positive("num_channels")
        for field in ("image_mean", "image_std"):
            values = getattr(self, field)
            is_complete = len(values) == self.num_channels and all(map(math.isfinite, values))
            self._expect(is_complete, field, f"a finite number for each of {self.num_channels} channels")
        self._expect(all(value > 0 for value in self.image_std or ()), "image_std", "numbers > 0")

    def validate_granularities(self) -> None:
        for field in ("granularities", "input_granularities"):
            value = getattr(self, field)
            is_part = len(value) > 0 and list(value) == [name for name in GRANULARITIES if name in value]
            self._expect(is_part, field, f"a non-empty part of {GRANULARITIES} in that order")
        self._expect("image" in self.input_granularities, "input_granularities", "'image' among them")

    def validate_semantic_classes(self) -> None:
        self._expect_positive("num_semantic_classes")
        ids = sorted(int(key) for key in self.semantic_id2label or ())
        if ids and not 0 <= ids[0] <= ids[-1] < self.num_semantic_classes:
            expected = f"class ids in [0, num_semantic_classes={self.num_semantic_classes})"
            raise ValueError(f"C2FMAEConfig.semantic_id2label: expected {expected}, got {ids}")

    def validate_decoder(self) -> None:
        self._expect_positive("label_stride")
        divides = self.patch_size % self.label_stride == 0
        self._expect(divides, "label_stride", f"a divisor of patch_size={self.patch_size}")
        for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            self._expect_positive(f"decoder_{field}")
        self._expect_heads_fit("decoder_num_attention_heads", "decoder_hidden_size")
        self._expect(0 < self.decoder_prediction_ratio <= 1, "decoder_prediction_ratio", "a number in (0, 1]")
        self._expect(0 < self.mask_ratio < 1, "mask_ratio", "a number in (0, 1)")

    def validate_losses(self) -> None:
        weights = self.loss_weights or {}
        are_weights = all(0 <= weight < math.inf for weight in weights.values())
        is_complete = set(weights) == set(self.granularities) and are_weights
        expected = f"a finite weight >= 0 for each of {self.granularities}"
        if set(weights) > set(self.granularities):  # as when a checkpoint is loaded with fewer granularities
            expected += (
                " (to continue pre-training with other granularities: c2fmae pretrain --model_name_or_path, or "
                "c2fmae_hf.interop.starting_point in Python)"
            )
        self._expect(is_complete, "loss_weights", expected)
        self._expect(0 <= self.instance_offset_weight < math.inf, "instance_offset_weight", "a finite number >= 0")
        fits = not self.supervise_visible_labels or list(self.input_granularities) == ["image"]
        expected = f"False if labels are among the encoder's inputs (input_granularities={self.input_granularities})"
        self._expect(fits, "supervise_visible_labels", expected)

    def validate_segmentation_head(self) -> None:
        self._expect_positive("segmentation_head_channels")

    def _expect(self, holds: bool, field: str, expected: str) -> None:
        if not holds:
            raise ValueError(f"C2FMAEConfig.{field}: expected {expected}, got {getattr(self, field)!r}")

    def _expect_positive(self, field: str) -> None:
        self._expect(getattr(self, field) > 0, field, "a positive integer")
        self._expect(getattr(self, field) <= _MAX_CHANNELS, field, f"an integer up to {_MAX_CHANNELS}")

    def _expect_heads_fit(self, heads: str, width: str) -> None:
        value = getattr(self, width)
        self._expect(value % getattr(self, heads) == 0, heads, f"a divisor of {width}={value}")
        # Half of a position's channels encode its row, half its column; each half is sines and cosines.
        self._expect(value % 4 == 0, width, "a multiple of 4")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """As in transformers; the error for an unknown name lists the available weights."""
        with known_names(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def timm_keys(self, num_classes: int = 0) -> dict[str, Any] | None:
        """
        Keys of `config.json` from which timm builds this encoder as its own `VisionTransformer`, so that
        `timm.create_model("local-dir:...")` and `"hf-hub:..."` work without this package. `None` if timm's class
        cannot express the encoder: extra input granularities, another activation or epsilon of the layer norms.

        Args:
            num_classes (`int`, defaults to 0): Classes of the saved classifier, named by `id2label`.
        """
        if list(self.input_granularities) != ["image"] or self.hidden_act != "gelu" or self.layer_norm_eps != 1e-6:
            return None
        size = next((name for name, fields in SIZES.items() if fields["hidden_size"] == self.hidden_size), "base")
        patch_size = SIZES[size]["patch_size"]
        global_pool = "avg" if self.pooling == "mean" else "token"
        labels = {int(index): name for index, name in (self.id2label or {}).items()}
        names = [labels.get(index, f"LABEL_{index}") for index in range(num_classes)]
        side = max(self.image_height_width)
        mlp_ratio = self.intermediate_size / self.hidden_size
        if int(self.hidden_size * mlp_ratio) < self.intermediate_size:  # as timm computes the width
            mlp_ratio = math.nextafter(mlp_ratio, math.inf)
        return {
            "architecture": f"vit_{size}_patch{patch_size}_224",
            "num_classes": num_classes,
            "num_features": self.hidden_size,
            "global_pool": global_pool,  # for information; timm builds from `model_args`
            # timm reads them from `pretrained_cfg`, transformers' timm wrapper from here. Without them the wrapper
            # takes any 1000 classes for ImageNet's.
            **({"label_names": names} if names else {}),
            "model_args": {
                "img_size": list(self.image_height_width),
                "patch_size": self.patch_size,
                "in_chans": self.num_channels,
                "embed_dim": self.hidden_size,
                "depth": self.num_hidden_layers,
                "num_heads": self.num_attention_heads,
                "mlp_ratio": mlp_ratio,
                "qkv_bias": self.qkv_bias,
                "global_pool": global_pool,
                # Norm before pooling, as in this package.
                "fc_norm": False,
            },
            "pretrained_cfg": {
                "tag": "c2fmae",
                "custom_load": False,
                "input_size": [self.num_channels, *self.image_height_width],
                "fixed_input_size": True,
                "pool_size": None,
                "crop_pct": crop_share(side, resize_before_crop(side)),
                "crop_mode": "center",
                "interpolation": "bicubic",
                "mean": self.image_mean,
                "std": self.image_std,
                "num_classes": num_classes,
                "first_conv": "patch_embed.proj",
                "classifier": "head",
                **({"label_names": names} if names else {}),
            },
        }

    def to_json_file(
        self, json_file_path: str | os.PathLike, use_diff: bool = True, with_timm_keys: bool = True
    ) -> None:
        """Write the configuration with timm's keys: timm loads a classifier whole, of other models the encoder."""
        self.number_labels()
        content = json.loads(self.to_json_string(use_diff=use_diff))
        model_class = (self.architectures or [""])[0]
        if model_class.startswith("C2FMAE") and with_timm_keys:
            keys = self.timm_keys((self.num_labels or 0) if model_class == _CLASSIFIER_CLASS else 0)
            if keys is not None and model_class not in (_ENCODER_CLASS, _CLASSIFIER_CLASS):
                keys["model_args"]["pretrained_strict"] = False  # the file also has weights that timm does not know
            content.update(keys or {})
        with open(json_file_path, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2, sort_keys=True) + "\n")


__all__ = ["SIZES", "C2FMAEConfig"]
