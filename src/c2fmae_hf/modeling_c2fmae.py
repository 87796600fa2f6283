"""PyTorch C2FMAE: encoder, cascaded decoder, losses, downstream heads, backbone."""

# No `from __future__ import annotations` here: transformers looks for `TransformersKwargs` in forward's annotations.
import copy
import inspect
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import CONFIG_NAME, ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_c2fmae import C2FMAEConfig, known_names
from .constants import IGNORE_INDEX
from .input_checks import check_labels, check_pixel_values, count_masked
from .losses import image_loss, in_chunks, instance_loss, semantic_loss
from .targets import patchify


logger = logging.get_logger(__name__)


def sincos_position_table(width: int, grid_size: tuple[int, int]) -> torch.Tensor:
    """
    Fixed 2D sine-cosine positions (Vaswani et al. 2017, in two dimensions as in MAE).

    Args:
        width (`int`): Channels; the first half encodes the row, the second half the column. A multiple of 4.
        grid_size (`tuple[int, int]`): Patches per column and per row.

    Returns:
        `torch.FloatTensor` of shape `(1, num_patches, width)`, row-major.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    axes = [torch.arange(side, dtype=torch.float64)[:, None] * frequencies for side in grid_size]
    rows, columns = (torch.cat([axis.sin(), axis.cos()], dim=1) for axis in axes)
    table = torch.cat([rows[:, None].expand(-1, grid_size[1], -1), columns[None].expand(grid_size[0], -1, -1)], dim=2)
    return table.flatten(0, 1)[None].to(torch.get_default_dtype())


def resize_position_table(table: torch.Tensor, old_size: tuple[int, int], new_size: tuple[int, int]) -> torch.Tensor:
    """
    Resample the positions `(1, num_patches, width)` of one grid to another. Antialiased bicubic, like timm, so that
    both give the same features at every image size.
    """
    if old_size == new_size:
        return table
    maps = table.float().reshape(1, *old_size, -1).permute(0, 3, 1, 2)
    maps = nn.functional.interpolate(maps, size=new_size, mode="bicubic", antialias=True)
    return maps.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)


@dataclass
class C2FMAEForPreTrainingOutput(ModelOutput):
    """
    Output of [`C2FMAEForPreTraining`]. B is the batch size, M the number of decoded patches.

    Args:
        loss (`torch.FloatTensor` of shape `()`): Weighted sum of the losses for which there are targets.
        semantic_loss, instance_loss, image_loss (`torch.FloatTensor` of shape `()`, *optional*): Unweighted losses.
        semantic_logits (`torch.FloatTensor` of shape `(B, M, cells, num_semantic_classes)`, *optional*): Class scores
            of the label cells of each decoded patch, cells row-major.
        instance_logits (`torch.FloatTensor` of shape `(B, M, cells, 3)`, *optional*): Offset down and right to the
            instance's centre, in units of the image's height and width, and the foreground logit.
        image_logits (`torch.FloatTensor` of shape `(B, M', patch_size ** 2, num_channels)`, *optional*): Pixels of the
            first M' <= M patches of `patch_ids`, normalised per patch if `config.norm_pix_loss`. Visible patches have
            no pixel prediction.
        patch_ids (`torch.LongTensor` of shape `(B, M)`): Row-major indices of the decoded patches.
        hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*): The encoder's, for visible tokens.
    """

    loss: torch.Tensor | None = None
    semantic_loss: torch.Tensor | None = None
    instance_loss: torch.Tensor | None = None
    image_loss: torch.Tensor | None = None
    semantic_logits: torch.Tensor | None = None
    instance_logits: torch.Tensor | None = None
    image_logits: torch.Tensor | None = None
    patch_ids: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


# Patches


def split_patches(bool_masked_pos: torch.Tensor, num_masked: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Indices of the visible and of the masked patches.

    Args:
        bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`): `True` = masked.
        num_masked (`int`): Masked patches in each row.

    Returns:
        `visible_ids` `(batch_size, num_patches - num_masked)` and `masked_ids` `(batch_size, num_masked)`, int64, each
        in raster order.
    """
    order = bool_masked_pos.to(torch.uint8).argsort(dim=1, stable=True)
    num_visible = bool_masked_pos.shape[1] - num_masked
    return order[:, :num_visible], order[:, num_visible:]


def gather_patches(values: torch.Tensor, patch_ids: torch.Tensor) -> torch.Tensor:
    """Select patches: `(B, N, ...)` and `(B, K)` to `(B, K, ...)`; `values` of batch size 1 serve every row."""
    values = values.expand(patch_ids.shape[0], *values.shape[1:])
    index = patch_ids.reshape(*patch_ids.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)


class C2FMAEPatchProjection(nn.Conv2d):
    """Convolution over all patches or, given `patch_ids` `(B, K)`, over these only: `(B, K, hidden_size)`."""

    def forward(self, pixel_values: torch.Tensor, patch_ids: torch.Tensor | None = None) -> torch.Tensor:
        if patch_ids is None:
            return super().forward(pixel_values)
        # A convolution without overlap is a linear layer over patches; here it skips those that are masked.
        patches = gather_patches(patchify(pixel_values, self.kernel_size[0]), patch_ids)
        return nn.functional.linear(patches.flatten(2), self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)


class C2FMAEPatchEmbed(nn.Module):
    """
    Embed pixels `(B, C, H, W)` as patch tokens `(B, N, hidden_size)` or, given `patch_ids` `(B, K)`, these patches
    only, `(B, K, hidden_size)`.
    """

    def __init__(self, config: C2FMAEConfig) -> None:
        super().__init__()
        self.proj = C2FMAEPatchProjection(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: torch.Tensor, patch_ids: torch.Tensor | None = None) -> torch.Tensor:
        if patch_ids is None:
            return self.proj(pixel_values).flatten(2).transpose(1, 2)
        return self.proj(pixel_values, patch_ids)


class C2FMAELabelEmbed(nn.Module):
    """
    Embed the label cells of each patch `(B, M, cells, channels)` as one vector `(B, M, width)`: a small embedding per
    cell, then a projection of all cells together. It feeds visible labels to the encoder, and a decoder stage's
    prediction to the next stage.
    """

    def __init__(self, cells: int, channels: int, width: int) -> None:
        super().__init__()
        cell_width = max(width // cells, 8)
        self.cell = nn.Linear(channels, cell_width, bias=False)
        self.proj = nn.Linear(cells * cell_width, width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.proj(self.cell(values).flatten(2))


class C2FMAEPredictor(nn.Linear):
    """A linear layer that makes predictions. Small initial weights start them near zero."""


# Attention and blocks


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of `(B, heads, L, head_dim)` without a fused kernel: the backend that can return its weights."""
    weights = (query @ key.transpose(-2, -1)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class C2FMAEAttentionBase(nn.Module):
    """Attention over given queries, keys and values by transformers' attention interface."""

    is_causal = False

    def __init__(self, config: C2FMAEConfig, width: int, num_heads: int) -> None:
        super().__init__()
        self.config = config
        self.head_dim = width // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob

    def split_heads(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, L, width)` to `(B, heads, L, head_dim)`."""
        return hidden_states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if query.shape[2] == 0:  # nothing is masked; transformers' backends reject empty queries
            return query.transpose(1, 2).flatten(2), None
        interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, weights = interface(
            self,
            query,
            key,
            value,
            attention_mask=None,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
            **kwargs,
        )
        return context.flatten(2), weights


class C2FMAEAttention(C2FMAEAttentionBase):
    """Self-attention of the encoder, with timm's fused `qkv`."""

    def __init__(self, config: C2FMAEConfig) -> None:
        super().__init__(config, config.hidden_size, config.num_attention_heads)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (self.split_heads(part) for part in self.qkv(hidden_states).chunk(3, dim=-1))
        context, weights = self.attend(query, key, value, **kwargs)
        return self.proj(context), weights


class C2FMAECrossAttention(C2FMAEAttentionBase):
    """Attention of the decoder's queries to the encoder's visible tokens."""

    def __init__(self, config: C2FMAEConfig) -> None:
        width = config.decoder_hidden_size
        super().__init__(config, width, config.decoder_num_attention_heads)
        self.q = nn.Linear(width, width, bias=config.qkv_bias)
        self.kv = nn.Linear(width, 2 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(
        self, queries: torch.Tensor, memory: torch.Tensor, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        key, value = (self.split_heads(part) for part in self.kv(memory).chunk(2, dim=-1))
        context, weights = self.attend(self.split_heads(self.q(queries)), key, value, **kwargs)
        return self.proj(context), weights


class C2FMAEMLP(nn.Module):
    def __init__(self, config: C2FMAEConfig, width: int, intermediate_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, width)
        self.drop = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc2(self.act(self.fc1(hidden_states))))


class C2FMAEBlock(GradientCheckpointingLayer):
    """Pre-norm encoder block."""

    def __init__(self, config: C2FMAEConfig, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = C2FMAEAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = C2FMAEMLP(config, config.hidden_size, config.intermediate_size)
        self.drop_path = StochasticDepth(drop_path_rate, mode="row")

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(self.attn(self.norm1(hidden_states), **kwargs)[0])
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states)))


class C2FMAEDecoderBlock(GradientCheckpointingLayer):
    """
    Pre-norm block of cross-attention and MLP. Queries do not attend to each other: CrossMAE (arXiv 2401.14391) shows
    that masked tokens need not.
    """

    def __init__(self, config: C2FMAEConfig) -> None:
        super().__init__()
        width = config.decoder_hidden_size
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attn = C2FMAECrossAttention(config)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = C2FMAEMLP(config, width, config.decoder_intermediate_size)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor, **kwargs) -> torch.Tensor:
        queries = queries + self.attn(self.norm1(queries), memory, **kwargs)[0]
        return queries + self.mlp(self.norm2(queries))


# The encoder


# Weights that classes save besides the encoder's, by their prefix; a saved classifier has timm's prefix, `head`.
_OTHER_CLASSES = {
    "decoder": r"^decoder\.",
    "classifier": r"^classifier\.",
    "head": r"^head\.",
    "decode_head": r"^decode_head\.",
    "fpn": r"^fpn\.",
}


def _others(*own: str) -> list[str]:
    return [pattern for name, pattern in _OTHER_CLASSES.items() if name not in own]


# The encoder's weights, by their prefix. A saved file has them at its root, where timm looks for them.
_ENCODER_PARTS = ("patch_embed", "cls_token", "pos_embed", "blocks", "norm", "label_embed")
# Parts of a saved file that timm's model does not have.
BEYOND_TIMM = ("decoder", "decode_head", "fpn", "label_embed")


def take_saved_names(module: Any, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Hook before `load_state_dict`, with which a Trainer resumes: rename saved weights to the class's own names."""
    own = {module.saved_name(name): name for name, _ in module.named_parameters()}
    for saved in [name for name in state_dict if name.removeprefix(prefix) in own]:
        state_dict[prefix + own[saved.removeprefix(prefix)]] = state_dict.pop(saved)


def take_image_size(name: Any, options: dict[str, Any]) -> Any:
    """
    Return the image size that options of `from_pretrained` ask for, if it is not the checkpoint's. The options are
    changed to the checkpoint's size, so that its positions load.
    """
    config, given = options.get("config"), options.pop("image_size", None)
    if name is None or not isinstance(config, C2FMAEConfig):
        return given
    where = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
    saved, _ = C2FMAEConfig.get_config_dict(name, **{key: options[key] for key in where if key in options})
    own, wanted = saved.get("image_size", C2FMAEConfig.image_size), given or config.image_size
    if saved.get("model_type") != C2FMAEConfig.model_type or own == wanted:
        return None
    options["config"] = copy.deepcopy(config)
    options["config"].image_size = own
    return wanted


class C2FMAEPreTrainedModel(PreTrainedModel):
    """Base class: initialisation, loading, saving and publishing."""

    config: C2FMAEConfig
    config_class = C2FMAEConfig
    base_model_prefix = "c2fmae"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ["C2FMAEBlock", "C2FMAEDecoderBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": C2FMAEBlock, "attentions": C2FMAEAttention}
    _input_embed_layer = "patch_embed"
    # Losses are means over the batch; the Trainer divides them by the accumulation steps itself.
    accepts_loss_kwargs = False
    # Weights of other C2FMAE classes, which loading ignores; and prefixes of weights that a checkpoint may lack.
    _keys_to_ignore_on_load_unexpected: set[str] | list[str] | None = _others()
    _may_be_new: tuple[str, ...] = ()
    # From names in a saved file, which are timm's, to names in this class.
    _timm_names: dict[str, str] | None = None
    # Text of the licence file found with the loaded weights.
    license_text: str | None = None
    # Set by the package: a function of the model, `repo_id` and options that publishes the model, and functions that
    # read the licence in the folder that a model is loaded from and write it to the folder that it is saved to.
    _publish: Any = None
    _loaded_from: Any = None
    _saved_to: Any = None

    def __init__(self, config: C2FMAEConfig, *args, **kwargs) -> None:
        # `from_pretrained` sets overridden fields on the finished configuration, past its checks.
        config.check_values()
        if config.hidden_act not in ACT2FN:
            raise ValueError(f"C2FMAEConfig.hidden_act: expected one of {sorted(ACT2FN)}, got {config.hidden_act!r}")
        config.number_labels()
        super().__init__(config, *args, **kwargs)

    def post_init(self) -> None:
        super().post_init()
        # transformers adds the encoder's patterns to those of this class, which would then ignore surplus weights of
        # its own.
        self._keys_to_ignore_on_load_unexpected = set(type(self)._keys_to_ignore_on_load_unexpected or ())
        if self.base_model is not self:
            self._check_names()
            self.register_load_state_dict_pre_hook(take_saved_names)

    def _check_names(self) -> None:
        """
        Check that the names of a subclass's own modules do not clash with others in a saved file.

        Raises:
            `ValueError`: if one has a name of the encoder's or the classifier's weights.
        """
        reserved = {*_ENCODER_PARTS, *(["head"] if self._timm_names else [])}
        taken = sorted(reserved & {name.partition(".")[0] for name, _ in self.named_parameters()})
        if taken:
            raise ValueError(
                f"{type(self).__name__}: expected modules with other names than {taken}, under which a saved file has "
                "the encoder's and the classifier's weights"
            )

    def saved_name(self, name: str) -> str:
        """Name of a weight in a saved file: timm's name if timm has the weight."""
        name = name.removeprefix(f"{self.base_model_prefix}.")
        return re.sub(r"^classifier\.", "head.", name) if self._timm_names else name

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info=False, **kwargs):
        """
        As in transformers, except: missing weights (other than a downstream head's) and unknown weights are an error
        rather than a warning; and an `image_size`, given alone or in `config`, that is not the checkpoint's resamples
        its positions (see [`~C2FMAEPreTrainedModel.resize_positions`]).

        Raises:
            `ValueError`: naming the missing and the unexpected weights.
        """
        if cls._timm_names is not None:
            kwargs["key_mapping"] = {**(kwargs.get("key_mapping") or {}), **cls._timm_names}
        with known_names(pretrained_model_name_or_path):
            image_size = take_image_size(pretrained_model_name_or_path, kwargs)
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        model, info = loaded
        model._weight_conversions = None  # otherwise it would be saved under the names in the file
        missing = sorted(name for name in info["missing_keys"] if not name.startswith(cls._may_be_new or ("\0",)))
        unexpected = sorted(info["unexpected_keys"])
        if missing or unexpected:
            hint = ""
            if any(name.startswith("decoder.") for name in missing):
                hint = (
                    " It has no decoder, so it is not a pre-training checkpoint. To pre-train from an encoder: "
                    "c2fmae pretrain ... --model_name_or_path, or c2fmae_hf.interop.starting_point in Python."
                )
            elif any(name.startswith("decoder.") for name in unexpected):
                hint = (
                    " Its decoder predicts other granularities. To continue pre-training with others: c2fmae pretrain "
                    "... --model_name_or_path, or c2fmae_hf.interop.starting_point in Python."
                )
            raise ValueError(
                f"{pretrained_model_name_or_path}: expected the weights of {cls.__name__}; missing "
                f"{missing[:5]}{' ...' if len(missing) > 5 else ''} ({len(missing)}), unexpected "
                f"{unexpected[:5]}{' ...' if len(unexpected) > 5 else ''} ({len(unexpected)}).{hint}"
            )
        if model._loaded_from is not None and pretrained_model_name_or_path is not None:
            options = {name: kwargs[name] for name in ("revision", "cache_dir", "token") if name in kwargs}
            model._loaded_from(pretrained_model_name_or_path, kwargs.get("subfolder") or "", **options)
        if image_size is not None:
            model.resize_positions(image_size)
        return (model, info) if output_loading_info else model

    def _check_in_memory(self, what: str) -> None:
        if any(parameter.is_meta for parameter in self.parameters()):
            raise ValueError(f"device_map: expected weights in memory to {what}, got offloaded ones; load without it")

    @torch.no_grad()
    def resize_positions(self, image_size: int | tuple[int, int] | list[int]) -> None:
        """
        Change the model's input size. Positions are resampled once, as `interpolate_pos_encoding` does at every call.

        Args:
            image_size (`int` or `(height, width)`): In pixels.

        Raises:
            `ValueError`: if it is no multiple of the patch size, or weights are offloaded; the model stays as it is.
        """
        self._check_in_memory("resize positions")
        former, former_grid = self.config.image_size, self.config.grid_size
        sides = [image_size] if isinstance(image_size, int) else image_size
        if not isinstance(sides, (list, tuple)) or not all(isinstance(side, int) for side in sides):
            raise ValueError(f"image_size: expected pixels, or (height, width), got {image_size!r}")
        self.config.image_size = image_size if isinstance(image_size, int) else list(image_size)
        try:
            self.config.check_values()
        except ValueError:
            self.config.image_size = former
            raise
        for module in self.modules():
            if isinstance(module, (C2FMAEModel, C2FMAEDecoder)):
                tokens = module.pos_embed.shape[1] - former_grid[0] * former_grid[1]
                positions = resize_position_table(module.pos_embed[:, tokens:], former_grid, self.config.grid_size)
                module.pos_embed = nn.Parameter(torch.cat([module.pos_embed[:, :tokens], positions], dim=1))

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        *args,
        **kwargs,
    ) -> None:
        """
        As in transformers, but with timm's names for the weights that timm has, so that
        `timm.create_model("local-dir:...")` loads the folder: a classifier, or the encoder of any other class. The
        folder gets no model card, and the licence of the weights that the model was loaded from, if they had one.

        Args:
            save_directory: The folder; its name is the default `repo_id`.
            is_main_process, state_dict: As in transformers; only the main process publishes.
            push_to_hub (`bool`): Whether to publish the model too, by [`~C2FMAEPreTrainedModel.push_to_hub`].
            args, kwargs: Passed to transformers' method and to `push_to_hub`.
        """
        saving = inspect.signature(super().save_pretrained).parameters
        for_hub = {name: kwargs.pop(name) for name in list(kwargs) if push_to_hub and name not in saving}
        if push_to_hub and "token" in kwargs:
            for_hub["token"] = kwargs.pop("token")
        is_encoder = self.base_model is self  # its names are timm's already
        if not is_encoder and not getattr(self, "_hf_peft_config_loaded", False):  # else only adapters are saved
            self._check_names()
            state_dict = {
                self.saved_name(name): load_offloaded_parameter(self, name) if value.device.type == "meta" else value
                for name, value in (self.state_dict() if state_dict is None else state_dict).items()
            }
        super().save_pretrained(save_directory, is_main_process, state_dict, False, *args, **kwargs)
        if is_main_process and any("-of-" in name for name in os.listdir(save_directory)):  # shards
            self.config.to_json_file(os.path.join(save_directory, CONFIG_NAME), with_timm_keys=False)
            logger.warning("%s: timm cannot load it, since it reads one file; raise max_shard_size.", save_directory)
        if self._saved_to is not None and is_main_process:
            self._saved_to(save_directory)
        if push_to_hub and is_main_process:
            self.push_to_hub(for_hub.pop("repo_id", os.path.basename(os.path.abspath(save_directory))), **for_hub)

    def push_to_hub(self, repo_id: str, **kwargs) -> Any:
        """
        Publish weights, configuration, image processor, model card and licence in one commit, in the layout that timm
        loads too. See [`~c2fmae_hf.publishing.hub.push_to_hub`] for the arguments; `max_shard_size` is ignored, since
        timm reads one file. Without this package installed (`trust_remote_code`), this is transformers' method.
        """
        if self._publish is None:
            return super().push_to_hub(repo_id, **kwargs)  # type: ignore[arg-type]
        return self._publish(repo_id, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier-uniform projections and normal tokens, as in MAE; the fixed tables by their formula."""
        if isinstance(module, nn.Linear):
            if isinstance(module, C2FMAEPredictor):
                init.normal_(module.weight, std=self.config.initializer_range)
            else:
                init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            # The patch projection is a linear layer over a flattened patch, and is initialised as one.
            fan_out, fan_in = module.weight.shape[0], module.weight[0].numel()
            bound = (6 / (fan_in + fan_out)) ** 0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, C2FMAEModel):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.copy_(module.pos_embed, module.position_table())
        elif isinstance(module, C2FMAEDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
            init.copy_(module.pos_embed, module.position_table())


class FixedPositions(nn.Module):
    """
    A module with a frozen `pos_embed`. It is a parameter, as in timm, so that `device_map` can place it. It is frozen
    whenever it is set, because loading makes every parameter trainable. Unfreezing all parameters makes it trainable.
    """

    pos_embed: nn.Parameter

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "pos_embed" and param is not None:
            param.requires_grad_(False)
        super().register_parameter(name, param)


class C2FMAEModel(FixedPositions, C2FMAEPreTrainedModel):
    """
    The encoder: a plain pre-norm ViT with timm's parameter names. Without `bool_masked_pos` it is deterministic in
    evaluation and returns all patches in raster order; with it, only the visible patches are computed.

    Args:
        config ([`C2FMAEConfig`]).
        add_pooling_layer (`bool`): Whether `pooler_output` is computed, as in ViT; it has no weights.
    """

    def __init__(self, config: C2FMAEConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.is_pooled = add_pooling_layer
        self.patch_embed = C2FMAEPatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.pos_embed = nn.Parameter(self.position_table())
        self.pos_drop = nn.Dropout(config.hidden_dropout_prob)
        extra_inputs = {
            # The extra channel marks cells whose label is unknown.
            "semantic": config.num_semantic_classes + 1,
            "instance": 4,
        }
        self.label_embed = nn.ModuleDict(
            {
                name: C2FMAELabelEmbed(config.label_cells_per_side**2, channels, config.hidden_size)
                for name, channels in extra_inputs.items()
                if name in config.input_granularities
            }
        )
        rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.blocks = nn.ModuleList([C2FMAEBlock(config, rate) for rate in rates])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def position_table(self) -> torch.Tensor:
        """Initial `pos_embed`, `(1, 1 + num_patches, hidden_size)`; zeros for the class token."""
        table = sincos_position_table(self.config.hidden_size, self.config.grid_size)
        return nn.functional.pad(table, (0, 0, 1, 0))

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        semantic_labels: torch.Tensor | None = None,
        instance_labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        num_masked: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`).
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*): `True` = masked; the
                same count in every row.
            semantic_labels (`torch.LongTensor` of shape `(batch_size, height / s, width / s)`, *optional*): Inputs of
                the encoder on visible patches if `config.input_granularities` has `"semantic"`; -100 = ignore.
            instance_labels (`torch.FloatTensor` of shape `(batch_size, 3, height / s, width / s)`, *optional*):
                Likewise for `"instance"`.
            interpolate_pos_encoding (`bool`): Accept any image size that is a multiple of the patch size.
            num_masked (`int`, *optional*): Masked patches per row. Passing it avoids a device synchronisation; on an
                accelerator the mask is then not checked against it, unless the graph is compiled.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutputWithPooling`]: `last_hidden_state` of shape
            `(batch_size, 1 + tokens, hidden_size)` after the final norm, class token first, then the (visible) patches
            in raster order, then the tokens of further input granularities; `pooler_output` of shape
            `(batch_size, hidden_size)` as `config.pooling` says.

        Raises:
            `ValueError`: if the image or the mask does not fit, naming field, expected and got.
        """
        grid_size = check_pixel_values(self.config, pixel_values, interpolate_pos_encoding)
        pixel_values = pixel_values.to(self.patch_embed.proj.weight.dtype)
        num_image_tokens = grid_size[0] * grid_size[1]
        visible_ids = None
        if bool_masked_pos is not None:
            num_masked = count_masked(self.config, bool_masked_pos, len(pixel_values), num_image_tokens, num_masked)
            visible_ids, _ = split_patches(bool_masked_pos, num_masked)
            num_image_tokens -= num_masked
        tokens = self.patch_embed(pixel_values, visible_ids)
        position_table = self.pos_embed.to(tokens.dtype)  # another dtype under autocast
        cls_position, positions = position_table[:, :1], position_table[:, 1:]
        positions = resize_position_table(positions, self.config.grid_size, grid_size)
        if visible_ids is not None:
            positions = gather_patches(positions, visible_ids)
        granularities = [tokens + positions]
        for name, labels in (("semantic", semantic_labels), ("instance", instance_labels)):
            if name in self.label_embed and labels is not None:
                check_labels(self.config, name, labels, len(pixel_values), grid_size)
                values = self.encode_labels(name, labels, tokens.dtype)
                if visible_ids is not None:
                    values = gather_patches(values, visible_ids)
                granularities.append(self.label_embed[name](values) + positions)

        cls_token = (self.cls_token + cls_position).expand(pixel_values.shape[0], -1, -1)
        hidden_states = self.pos_drop(torch.cat([cls_token, *granularities], dim=1))
        for block in self.blocks:
            hidden_states = block(hidden_states, **kwargs)
        hidden_states = self.norm(hidden_states)

        if not self.is_pooled:
            pooled = None
        elif self.config.pooling == "mean" and num_image_tokens > 0:
            pooled = hidden_states[:, 1 : 1 + num_image_tokens].mean(dim=1)
        else:
            pooled = hidden_states[:, 0]
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def encode_labels(self, name: str, labels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Encode labels as the channels of `label_embed`: `(batch_size, num_patches, cells, channels)`."""
        cells_per_side = self.config.label_cells_per_side
        if name == "semantic":
            unknown = self.config.num_semantic_classes
            classes = patchify(torch.where(labels == IGNORE_INDEX, unknown, labels)[:, None], cells_per_side)
            return nn.functional.one_hot(classes[..., 0], unknown + 1).to(dtype)
        values = patchify(labels, cells_per_side)
        is_unknown = values[..., 2:] == IGNORE_INDEX
        return torch.cat([values.masked_fill(is_unknown, 0), is_unknown], dim=-1).to(dtype)


# The decoder


class C2FMAEDecoderStage(nn.Module):
    """
    Decoder stage of one granularity: blocks that refine the queries, and the head that predicts.

    Args:
        config ([`C2FMAEConfig`]).
        granularity (`str`): What the stage predicts.
        feeds_next (`bool`): Whether another stage depends on this one.
    """

    def __init__(self, config: C2FMAEConfig, granularity: str, feeds_next: bool) -> None:
        super().__init__()
        width = config.decoder_hidden_size
        cells_per_side = config.patch_size if granularity == "image" else config.label_cells_per_side
        channels = {"semantic": config.num_semantic_classes, "instance": 3, "image": config.num_channels}[granularity]
        self.granularity = granularity
        self.cells = cells_per_side**2
        self.blocks = nn.ModuleList([C2FMAEDecoderBlock(config) for _ in range(config.decoder_num_hidden_layers)])
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = C2FMAEPredictor(width, self.cells * channels)
        self.prediction_embed = C2FMAELabelEmbed(self.cells, channels, width) if feeds_next else None

    def forward(
        self, queries: torch.Tensor, memory: torch.Tensor, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            queries (`torch.FloatTensor` of shape `(B, M, width)`): One for each patch to decode.
            memory (`torch.FloatTensor` of shape `(B, L, width)`): The encoder's visible tokens.

        Returns:
            `logits` `(B, M, cells, channels)`, and the queries of the next stage `(B, M, width)`, or `None`.
        """
        for block in self.blocks:
            queries = block(queries, memory, **kwargs)
        logits = self.head(self.norm(queries)).unflatten(-1, (self.cells, -1))
        if self.prediction_embed is None:
            return logits, None
        return logits, queries + in_chunks(self.embed_prediction, logits)

    def embed_prediction(self, logits: torch.Tensor) -> torch.Tensor:
        """Embed the prediction of logits `(B, M, cells, channels)` for the next stage, `(B, M, width)`."""
        return self.prediction_embed(self.as_prediction(logits))

    def as_prediction(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits as class probabilities, or as offsets and the probability of foreground."""
        if self.granularity == "semantic":
            return logits.softmax(dim=-1, dtype=torch.float32).to(logits.dtype)
        return torch.cat([logits[..., :2], logits[..., 2:].sigmoid()], dim=-1)


class C2FMAEDecoder(FixedPositions):
    """
    Decodes semantics, then instances, then pixels. Each stage starts from the refined queries of the stage before,
    plus an embedding of that stage's prediction; gradients flow through both. With `decoder_type="parallel"` every
    stage starts from the same queries instead.
    """

    def __init__(self, config: C2FMAEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder_hidden_size
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(self.position_table())
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        cascaded = config.decoder_type == "cascaded"
        self.stages = nn.ModuleDict(
            {
                name: C2FMAEDecoderStage(config, name, feeds_next=cascaded and name != config.granularities[-1])
                for name in config.granularities
            }
        )

    def position_table(self) -> torch.Tensor:
        """Initial `pos_embed`, `(1, num_patches, decoder_hidden_size)`."""
        return sincos_position_table(self.config.decoder_hidden_size, self.config.grid_size)

    def forward(
        self,
        encoder_tokens: torch.Tensor,
        visible_ids: torch.Tensor,
        query_ids: torch.Tensor,
        num_image_queries: int,
        grid_size: tuple[int, int],
        **kwargs,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            encoder_tokens (`torch.FloatTensor` of shape `(B, 1 + k * V, hidden_size)`): Class token and V visible
                patches of k input granularities.
            visible_ids (`torch.LongTensor` of shape `(B, V)`).
            query_ids (`torch.LongTensor` of shape `(B, M)`): Patches to decode.
            num_image_queries (`int`): The image stage decodes only this many of them, the first.
            grid_size (`tuple[int, int]`): Patches per column and per row.

        Returns:
            The logits of each granularity, `(B, M, cells, channels)`.
        """
        memory = self.embed(encoder_tokens)
        positions = resize_position_table(self.pos_embed.to(memory.dtype), self.config.grid_size, grid_size)
        visible_positions = gather_patches(positions, visible_ids)
        copies = (memory.shape[1] - 1) // max(visible_ids.shape[1], 1)
        visible_positions = visible_positions.repeat(1, copies, 1)
        memory = self.norm(memory + nn.functional.pad(visible_positions, (0, 0, 1, 0)))

        first_queries = self.mask_token + gather_patches(positions, query_ids)
        queries, logits = first_queries, {}
        for name, stage in self.stages.items():
            if name == "image":
                queries = queries[:, :num_image_queries]
            logits[name], next_queries = stage(queries, memory, **kwargs)
            queries = first_queries if next_queries is None else next_queries
        return logits


class Queries(NamedTuple):
    """
    Patches to decode. B is the batch size, M the number of decoded patches, N the number of candidates.

    Args:
        ids: `(B, M)` int64.
        num_image: The image stage decodes only this many, the first.
        candidate_ids: `(B, N)` int64, `None` if all are decoded.
        weights: `(M,)` how many candidates each decoded patch stands for, `None` if all are decoded.
    """

    ids: torch.Tensor
    num_image: int
    candidate_ids: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    def gather(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Select from `(B, num_patches, ...)` the decoded patches and, if not all are decoded, the candidates."""
        all_values = None if self.candidate_ids is None else gather_patches(values, self.candidate_ids)
        return gather_patches(values, self.ids), all_values


class C2FMAEForPreTraining(C2FMAEPreTrainedModel):
    """The encoder with a decoder of the masked patches."""

    _keys_to_ignore_on_load_unexpected = None

    def __init__(self, config: C2FMAEConfig) -> None:
        super().__init__(config)
        self.c2fmae = C2FMAEModel(config)
        self.decoder = C2FMAEDecoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        semantic_labels: torch.Tensor | None = None,
        instance_labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        num_masked: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> C2FMAEForPreTrainingOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`).
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*): `True` = masked; the
                same count in every row. Random masking at `config.mask_ratio`, from torch's generator, if omitted.
            semantic_labels (`torch.LongTensor` of shape `(batch_size, height / s, width / s)`, *optional*): Class ids,
                -100 = ignore. Required in training if the decoder has a semantic stage.
            instance_labels (`torch.FloatTensor` of shape `(batch_size, 3, height / s, width / s)`, *optional*): See
                [`instance_labels_from_map`]. Required in training if the decoder has an instance stage.
            interpolate_pos_encoding (`bool`): Accept any image size that is a multiple of the patch size.
            num_masked (`int`, *optional*): Masked patches per row. Passing it avoids a device synchronisation; on an
                accelerator the mask is then not checked against it, unless the graph is compiled.

        Raises:
            `ValueError`: if inputs are missing or do not fit, naming field, expected and got.
        """
        grid_size = check_pixel_values(self.config, pixel_values, interpolate_pos_encoding)
        self.check_targets("semantic", semantic_labels, len(pixel_values), grid_size)
        self.check_targets("instance", instance_labels, len(pixel_values), grid_size)
        num_patches = grid_size[0] * grid_size[1]
        if bool_masked_pos is None:
            num_masked = self.config.num_masked_patches(num_patches)
            noise = torch.rand(pixel_values.shape[0], num_patches, device=pixel_values.device)
            bool_masked_pos = noise.argsort(dim=1).argsort(dim=1) >= num_patches - num_masked
        else:
            num_masked = count_masked(self.config, bool_masked_pos, len(pixel_values), num_patches, num_masked)
        visible_ids, masked_ids = split_patches(bool_masked_pos, num_masked)

        encoded = self.c2fmae(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            semantic_labels=semantic_labels,
            instance_labels=instance_labels,
            interpolate_pos_encoding=interpolate_pos_encoding,
            num_masked=num_masked,
            **kwargs,
        )
        queries = self.choose_queries(masked_ids, visible_ids)
        # The `output_...` flags concern only the encoder.
        attention_kwargs = {name: value for name, value in kwargs.items() if not name.startswith("output_")}
        logits = self.decoder(
            encoded.last_hidden_state, visible_ids, queries.ids, queries.num_image, grid_size, **attention_kwargs
        )
        losses = self.compute_losses(logits, queries, pixel_values, semantic_labels, instance_labels)

        weights = self.config.loss_weights or {}
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum() if losses else None
        return C2FMAEForPreTrainingOutput(
            loss=loss,
            semantic_loss=losses.get("semantic"),
            instance_loss=losses.get("instance"),
            image_loss=losses.get("image"),
            semantic_logits=logits.get("semantic"),
            instance_logits=logits.get("instance"),
            image_logits=logits.get("image"),
            patch_ids=queries.ids,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def check_targets(
        self, granularity: str, labels: torch.Tensor | None, batch_size: int, grid_size: tuple[int, int]
    ) -> None:
        """
        Check the labels of a granularity.

        Raises:
            `ValueError`: if they do not fit, or are missing in training although a stage needs them.
        """
        if labels is not None:
            check_labels(self.config, granularity, labels, batch_size, grid_size)
        elif self.training and granularity in self.config.granularities:
            raise ValueError(
                f"{granularity}_labels: expected labels to train the {granularity} stage of granularities="
                f"{self.config.granularities}, got None"
            )

    def choose_queries(self, masked_ids: torch.Tensor, visible_ids: torch.Tensor) -> Queries:
        """
        Choose the patches that are decoded: the masked ones and, with `supervise_visible_labels`, the visible ones; in
        training with `decoder_prediction_ratio` a random part of each.
        """
        candidates = [masked_ids, visible_ids] if self.config.supervise_visible_labels else [masked_ids]
        ratio = self.config.decoder_prediction_ratio
        if not self.training or ratio == 1:
            return Queries(torch.cat(candidates, dim=1), masked_ids.shape[1])
        chosen = [random_part(ids, ratio) for ids in candidates]
        stands_for = [
            torch.full((part.shape[1],), ids.shape[1] / max(part.shape[1], 1), device=ids.device)
            for ids, part in zip(candidates, chosen)
        ]
        return Queries(
            torch.cat(chosen, dim=1), chosen[0].shape[1], torch.cat(candidates, dim=1), torch.cat(stands_for)
        )

    def compute_losses(
        self,
        logits: dict[str, torch.Tensor],
        queries: Queries,
        pixel_values: torch.Tensor,
        semantic_labels: torch.Tensor | None,
        instance_labels: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """The loss of every granularity that has a prediction and a target, `()` each."""
        config, cells, losses = self.config, self.config.label_cells_per_side, {}
        if "semantic" in logits and semantic_labels is not None:
            targets, all_targets = queries.gather(patchify(semantic_labels[:, None], cells))
            losses["semantic"] = semantic_loss(logits["semantic"], targets, queries.weights, all_targets)
        if "instance" in logits and instance_labels is not None:
            targets, all_targets = queries.gather(patchify(instance_labels, cells))
            losses["instance"] = instance_loss(
                logits["instance"], targets, config.instance_offset_weight, queries.weights, all_targets
            )
        if "image" in logits:
            image_ids = queries.ids[:, : queries.num_image]
            pixels = gather_patches(patchify(pixel_values, config.patch_size), image_ids)
            losses["image"] = image_loss(logits["image"], pixels, config.norm_pix_loss)
        return losses

    def image_encoder(self) -> C2FMAEModel:
        """
        The encoder for transfer, which takes only images. It shares this model's weights, without the embeddings of
        other input granularities. `image_encoder().save_pretrained(folder)` writes a folder that
        `AutoModel.from_pretrained` and `timm.create_model("local-dir:...")` both load.
        """
        self._check_in_memory("take the encoder")
        config = copy.deepcopy(self.config)
        config.input_granularities = ["image"]
        with torch.device("meta"):  # allocates no weights and draws no random numbers
            encoder = C2FMAEModel(config)
        state = {
            name: value for name, value in self.c2fmae.state_dict().items() if not name.startswith("label_embed.")
        }
        encoder.load_state_dict(state, assign=True)
        encoder.license_text = self.license_text
        return encoder.train(self.training)


def random_part(ids: torch.Tensor, ratio: float) -> torch.Tensor:
    """A random share of each row of `ids` `(B, K)`, at least one id if there are any: `(B, count)`."""
    count = min(max(round(ratio * ids.shape[1]), 1), ids.shape[1])
    order = torch.rand(ids.shape, device=ids.device).argsort(dim=1)
    return ids.gather(1, order[:, :count])


# Downstream


class C2FMAEForImageClassification(C2FMAEPreTrainedModel):
    """The encoder with a linear classifier on its pooled output."""

    _keys_to_ignore_on_load_unexpected = [*_others("classifier", "head"), r"label_embed\."]
    _may_be_new = ("classifier.",)
    _timm_names = {r"^head\.": "classifier."}

    def __init__(self, config: C2FMAEConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.c2fmae = C2FMAEModel(config)
        self.classifier = (
            C2FMAEPredictor(config.hidden_size, self.num_labels) if self.num_labels > 0 else nn.Identity()
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`).
            labels (`torch.Tensor` of shape `(batch_size,)`, *optional*): Classes (or values, for a regression); the
                loss follows `config.problem_type`.
            interpolate_pos_encoding (`bool`): Accept any image size that is a multiple of the patch size.

        Returns:
            [`~transformers.modeling_outputs.ImageClassifierOutput`]: `logits` of shape `(batch_size, num_labels)`.
        """
        outputs = self.c2fmae(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits.float(), self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class C2FMAESegmentationHead(nn.Module):
    """Patch maps `(B, hidden_size, h, w)` to class scores `(B, num_labels, 4h, 4w)`: two up-sampling convolutions."""

    def __init__(self, config: C2FMAEConfig) -> None:
        super().__init__()
        channels = config.segmentation_head_channels
        self.upsample1 = nn.ConvTranspose2d(config.hidden_size, channels, 2, stride=2)
        self.norm = nn.GroupNorm(1, channels)
        self.act = ACT2FN[config.hidden_act]
        self.upsample2 = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.classifier = nn.Conv2d(channels, config.num_labels or 0, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = self.act(self.norm(self.upsample1(maps)))
        return self.classifier(self.act(self.upsample2(maps)))


class C2FMAEForSemanticSegmentation(C2FMAEPreTrainedModel):
    """The encoder with a light convolutional head."""

    _keys_to_ignore_on_load_unexpected = [*_others("decode_head"), r"label_embed\."]
    _may_be_new = ("decode_head.",)

    def __init__(self, config: C2FMAEConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.c2fmae = C2FMAEModel(config)
        self.decode_head = C2FMAESegmentationHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`).
            labels (`torch.LongTensor` of shape `(batch_size, label_height, label_width)`, *optional*): Classes;
                `config.semantic_loss_ignore_index` and -100 are ignored. The loss resizes logits to the labels' size.
            interpolate_pos_encoding (`bool`): Accept any image size that is a multiple of the patch size; on by
                default, because images to segment vary in size.

        Returns:
            [`~transformers.modeling_outputs.SemanticSegmenterOutput`]: `logits` of shape
            `(batch_size, num_labels, 4 * height / patch_size, 4 * width / patch_size)`.

        Raises:
            `ValueError`: if labels are given and the model has a single class, or the ignored label is a class.
        """
        ignore_index, num_labels = self.config.semantic_loss_ignore_index, self.config.num_labels
        if labels is not None and num_labels == 1:
            raise ValueError("num_labels: expected at least 2 to compute the loss, got 1")
        if labels is not None and 0 <= ignore_index < (num_labels or 0):
            raise ValueError(
                f"semantic_loss_ignore_index: expected no label of the {num_labels} classes, got {ignore_index}"
            )
        grid_size = check_pixel_values(self.config, pixel_values, interpolate_pos_encoding)
        outputs = self.c2fmae(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        logits = self.decode_head(tokens_to_map(outputs.last_hidden_state, grid_size))
        loss = None
        if labels is not None:
            resized = nn.functional.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear")
            labels = labels.masked_fill(labels == IGNORE_INDEX, ignore_index)  # the processor's ignore value
            total = nn.functional.cross_entropy(resized, labels, ignore_index=ignore_index, reduction="sum")
            loss = total / (labels != ignore_index).sum().clamp(min=1)  # 0, not NaN, if all are ignored
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def tokens_to_map(hidden_states: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Reshape the patch tokens of `(B, 1 + N, channels)` to a map `(B, channels, h, w)`, without the class token."""
    return hidden_states[:, 1:].transpose(1, 2).unflatten(2, grid_size).contiguous()


class FeaturePyramid(nn.Module):
    """
    Feature maps at 4, 2, 1 and 1/2 times the patch grid's resolution, for heads made for hierarchical networks: from
    four blocks, as in BEiT's segmentation, or from the last block, as in ViTDet's detection. With group instead of
    batch normalisation.

    Args:
        width (`int`): Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.upsample4 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.GroupNorm(1, width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        self.upsample2 = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.downsample2 = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Make four maps, of 4, 2, 1 and 1/2 times the height and width, from one or four `(B, width, h, w)`."""
        if len(maps) == 1:
            maps = maps * 4
        return [self.upsample4(maps[0]), self.upsample2(maps[1]), maps[2], self.downsample2(maps[3])]

    @staticmethod
    def strides(patch_size: int) -> tuple[float, ...]:
        """Pixels per cell of each map."""
        return patch_size / 4, patch_size / 2, patch_size, patch_size * 2


class C2FMAEBackbone(BackboneMixin, C2FMAEPreTrainedModel):
    """
    The encoder as a backbone of detectors and segmenters: feature maps of the blocks named in `out_features`; with
    `config.add_fpn` a [`FeaturePyramid`] of one or four of them.

    Raises:
        `ValueError`: if `add_fpn` is set and there are not one or four `out_features`, or they are not reshaped to
            maps.
    """

    _keys_to_ignore_on_load_unexpected = _others("fpn")
    _may_be_new = ("fpn.",)

    def __init__(self, config: C2FMAEConfig) -> None:
        super().__init__(config)
        self.c2fmae = C2FMAEModel(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.fpn: FeaturePyramid | None = None
        if config.add_fpn:
            if len(self.out_features) not in (1, 4) or not config.reshape_hidden_states:
                raise ValueError(
                    "C2FMAEConfig.add_fpn: expected one or four out_features, reshaped to maps, got "
                    f"out_features={list(self.out_features)}, reshape_hidden_states={config.reshape_hidden_states}"
                )
            self.fpn = FeaturePyramid(config.hidden_size)
        self.post_init()

    @property
    def channels(self) -> list[int]:
        """Channels of each feature map."""
        return [self.config.hidden_size] * (4 if self.fpn is not None else len(self.out_features))

    def get_input_embeddings(self) -> nn.Module:
        return self.c2fmae.get_input_embeddings()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = True, **kwargs: Unpack[TransformersKwargs]
    ) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`).
            interpolate_pos_encoding (`bool`): Accept any image size; on by default, because images to detect and
                segment in vary in size. Images are padded to whole patches with zeros, on the right and below.

        Returns:
            [`~transformers.modeling_outputs.BackboneOutput`]: `feature_maps`, one for each of `out_features`, of shape
            `(batch_size, hidden_size, height / patch_size, width / patch_size)`, rounded up. A feature pyramid has
            four, at 4, 2, 1 and 1/2 times that height and width, without cells that lie entirely in the padding.
        """
        height, width = pixel_values.shape[-2:]
        patch_size = self.config.patch_size
        if interpolate_pos_encoding and pixel_values.ndim == 4:
            pixel_values = nn.functional.pad(pixel_values, (0, -width % patch_size, 0, -height % patch_size))
        grid_size = check_pixel_values(self.config, pixel_values, interpolate_pos_encoding)
        kwargs["output_hidden_states"] = True
        outputs = self.c2fmae(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        feature_maps = []
        for name, hidden_states in zip(self.stage_names, outputs.hidden_states):
            if name not in self.out_features:
                continue
            if self.config.apply_layernorm:
                hidden_states = self.c2fmae.norm(hidden_states)
            if self.config.reshape_hidden_states:
                hidden_states = tokens_to_map(hidden_states, grid_size)
            feature_maps.append(hidden_states)
        if self.fpn is not None:
            feature_maps = [
                maps[..., : math.ceil(height / stride), : math.ceil(width / stride)]
                for maps, stride in zip(self.fpn(feature_maps), self.fpn.strides(patch_size))
            ]
        return BackboneOutput(
            feature_maps=tuple(feature_maps), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "C2FMAEBackbone",
    "C2FMAEForImageClassification",
    "C2FMAEForPreTraining",
    "C2FMAEForPreTrainingOutput",
    "C2FMAEForSemanticSegmentation",
    "C2FMAEModel",
    "C2FMAEPreTrainedModel",
]
