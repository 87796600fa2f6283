"""
A backbone with a feature pyramid around any plain vision transformer that `AutoModel` or timm builds, so that other
encoders can be compared with C2FMAE under the same heads. C2FMAE itself uses `C2FMAEBackbone`.
"""

# No `from __future__ import annotations` here: `@strict` checks fields against their annotations' real types.

import inspect
from typing import Any

import timm
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperModel,
)
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

from ..configuration_c2fmae import C2FMAEConfig
from ..modeling_c2fmae import C2FMAEBackbone, FeaturePyramid
from .encoders import check_channels, encoder_config, load_with_new_parts, patch_size_of


# Names of the last norm in the vision transformers of transformers.
_FINAL_NORMS = ("layernorm", "norm", "post_layernorm", "layer_norm")


@strict
class EncoderBackboneConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of [`EncoderBackbone`].

    Args:
        encoder_config: Configuration of the vision transformer, of any type that `AutoModel` knows.
        num_hidden_layers (`int`): Number of its blocks.
        hidden_size (`int`): Its width.
        patch_size (`int`): Side of its patches in pixels.
        add_fpn (`bool`): Whether to build a feature pyramid from the one or four `out_features`.
    """

    model_type = "encoder_backbone"
    sub_configs = {"encoder_config": AutoConfig}  # type: ignore[assignment]

    encoder_config: dict | PreTrainedConfig | None = None
    num_hidden_layers: int = 12
    hidden_size: int = 768
    patch_size: int = 16
    add_fpn: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.encoder_config, dict):
            options = dict(self.encoder_config)
            self.encoder_config = AutoConfig.for_model(options.pop("model_type"), **options)
        kwargs.pop("stage_names", None)
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)


class EncoderBackbone(BackboneMixin, PreTrainedModel):
    """
    Backbone that returns the feature maps of the blocks in `out_features`, after the encoder's final norm, or a
    [`FeaturePyramid`] of them. Use [`build_backbone`] to create one.
    """

    config_class = EncoderBackboneConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True  # if the encoder does
    _no_split_modules = []

    def __init__(self, config: EncoderBackboneConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder_config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.fpn = FeaturePyramid(config.hidden_size) if config.add_fpn else None
        self.is_timm = isinstance(self.encoder, TimmWrapperModel)
        self.takes_any_size = "interpolate_pos_encoding" in inspect.signature(self.encoder.forward).parameters
        norms = [name for name in _FINAL_NORMS if hasattr(self.encoder, name)]
        self.final_norm = norms[0] if norms else None
        self.post_init()

    @property
    def channels(self) -> list[int]:
        """Channels of each feature map."""
        return [self.config.hidden_size] * (4 if self.fpn is not None else len(self.out_features))

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self, pixel_values: torch.Tensor, output_attentions: bool | None = None, **kwargs: Any
    ) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): Sides must be multiples of
                the patch size.
            output_attentions, output_hidden_states (`bool`, *optional*): Whether to return the encoder's attentions
                and hidden states. timm's encoders return neither.

        Returns:
            [`~transformers.modeling_outputs.BackboneOutput`]: The same as `C2FMAEBackbone` returns.
        """
        hidden_states = attentions = None
        size = self.config.patch_size
        grid = (pixel_values.shape[2] // size, pixel_values.shape[3] // size)
        chosen = [index for index, name in enumerate(self.stage_names) if name in self.out_features]
        if self.is_timm:
            # timm counts maps from the first block, and returns them as maps, not tokens.
            indices = [index - 1 for index in chosen]
            maps = list(self.encoder(pixel_values, output_hidden_states=indices, do_pooling=False, norm=True)[-1])
        else:
            options = {"interpolate_pos_encoding": True} if self.takes_any_size else {}
            if output_attentions is None:
                output_attentions = self.config.output_attentions
            if output_attentions:
                options["output_attentions"] = True
            outputs = self.encoder(pixel_values, output_hidden_states=True, **options)
            hidden_states, attentions = outputs.hidden_states, outputs.attentions
            norm = getattr(self.encoder, self.final_norm) if self.final_norm else nn.Identity()
            maps = [self._as_map(norm(hidden_states[index]), grid) for index in chosen]
        if self.fpn is not None:
            maps = self.fpn(maps)
        return BackboneOutput(feature_maps=tuple(maps), hidden_states=hidden_states, attentions=attentions)

    @staticmethod
    def _as_map(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Reshape patch tokens, which follow class and register tokens, to a map `(B, width, rows, columns)`."""
        return tokens[:, tokens.shape[1] - grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid).contiguous()


def build_backbone(
    name: str,
    from_scratch: bool = False,
    out_indices: list[int] | None = None,
    image_size: int | None = None,
    drop_path_rate: float = 0.0,
) -> PreTrainedModel:
    """
    Build a backbone with a feature pyramid on any encoder.

    Args:
        name (`str`): As for [`~c2fmae_hf.transfer.encoders.load_encoder`]. C2FMAE checkpoints, including
            pre-training ones, become a `C2FMAEBackbone`, everything else an [`EncoderBackbone`].
        from_scratch (`bool`): Random weights instead of the saved ones.
        out_indices (*optional*): One block (ViTDet) or four (BEiT), counted from 1, or from the end with -1. By
            default four evenly spaced ones, including the last.
        image_size (`int`, *optional*): Side of the training images, for the bare name of a timm architecture.
        drop_path_rate (`float`): Stochastic depth, if the model supports it.

    Raises:
        `ValueError`: for the bare name of a timm architecture without `from_scratch`, a model that is not a plain
            vision transformer, or `out_indices` out of range.
    """
    config: Any = encoder_config(name, from_scratch, image_size, drop_path_rate)
    check_channels(config)
    if isinstance(config, TimmWrapperConfig):
        with torch.device("meta"):
            blocks = getattr(timm.create_model(config.architecture, **(config.model_args or {})), "blocks", None)
        if blocks is None:
            raise ValueError(f"model: expected a plain vision transformer, got {config.architecture!r}")
        depth = len(blocks)
    else:
        depth = config.num_hidden_layers
    out_indices = out_indices or [depth * quarter // 4 for quarter in range(1, 5)]
    out_indices = [index + depth + 1 if index < 0 else index for index in out_indices]
    if len(out_indices) not in (1, 4) or not all(0 < index <= depth for index in out_indices):
        raise ValueError(f"out_indices: expected one block or four in [1, {depth}], got {out_indices}")
    if isinstance(config, C2FMAEConfig):
        dtype = config.dtype
        config = AutoConfig.from_pretrained(name, add_fpn=True, out_indices=out_indices, out_features=None)
        config.drop_path_rate, config.dtype = drop_path_rate, dtype
        if from_scratch:
            return C2FMAEBackbone(config)
        return load_with_new_parts(C2FMAEBackbone, name, new=["fpn."], config=config)
    encoder = AutoModel.from_config(config) if from_scratch else AutoModel.from_pretrained(name, config=config)
    hidden_size = encoder.timm_model.embed_dim if isinstance(encoder, TimmWrapperModel) else config.hidden_size
    backbone = EncoderBackbone(
        EncoderBackboneConfig(
            encoder_config=encoder.config,
            num_hidden_layers=depth,
            hidden_size=hidden_size,
            patch_size=patch_size_of(encoder),
            out_indices=out_indices,  # type: ignore[call-arg]
        )
    )
    backbone.encoder.load_state_dict(encoder.state_dict())
    return backbone
