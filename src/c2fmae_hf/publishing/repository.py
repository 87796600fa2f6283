"""
Saving a model as a repository that transformers and timm both load.

`model.safetensors` holds the encoder and a classifier's head, under the names of timm's `VisionTransformer`. Weights
that timm does not know are in further files (`decoder.safetensors`, ...); an index lists all of them for transformers.
So one repository serves `AutoModel`, the model's own class and `timm.create_model("hf-hub:...")`, and no weight is
stored twice. `save_pretrained` writes the same names into one file, from which a Trainer resumes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from ..configuration_c2fmae import C2FMAEConfig
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..modeling_c2fmae import (
    BEYOND_TIMM,
    C2FMAEBackbone,
    C2FMAEForImageClassification,
    C2FMAEForPreTraining,
    C2FMAEForSemanticSegmentation,
    C2FMAEModel,
    C2FMAEPreTrainedModel,
)
from ..timm_c2fmae import convert_processor_to_timm, effective_statistics
from ..utils.files import read_json
from .licences import own_license


ENCODER_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"

# Classes that a repository's own code offers to transformers where this package is not installed.
AUTO_CLASSES = {
    "AutoModel": C2FMAEModel,
    "AutoModelForPreTraining": C2FMAEForPreTraining,
    "AutoModelForImageClassification": C2FMAEForImageClassification,
    "AutoModelForSemanticSegmentation": C2FMAEForSemanticSegmentation,
    "AutoBackbone": C2FMAEBackbone,
}

# Classes that are registered with the Auto classes.
MAPPINGS = (
    transformers.MODEL_MAPPING,
    transformers.MODEL_FOR_PRETRAINING_MAPPING,
    transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    transformers.MODEL_FOR_OBJECT_DETECTION_MAPPING,
    transformers.MODEL_FOR_BACKBONE_MAPPING,
)


def check_saved(name: str) -> None:
    """
    Report mistyped paths, which the libraries would take for names on the Hub, and damaged files, some of which they
    would ignore.

    Args:
        name (`str`): A folder of a saved model, or a name on the Hub.

    Raises:
        `FileNotFoundError`: if it can be neither.
        `ValueError`: naming a file that is not a JSON object or not a safetensors file.
    """
    path = Path(name)
    if path.exists() and not (path / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{path / CONFIG_FILE}: expected a saved model, found nothing")
    for file in (path / CONFIG_FILE, path / PROCESSOR_FILE):
        if file.is_file() and not read_json(file):
            raise ValueError(f"{file}: expected fields, got an empty JSON object")
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else ():
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{file}: expected a whole safetensors file, got one that is damaged ({error}); save or download it "
                "again"
            ) from None
    if not path.exists():
        try:
            validate_repo_id(name)
        except HFValidationError:
            raise FileNotFoundError(f"{name}: expected a folder or a name on the Hub, found no such folder") from None


def not_found(name: str, error: Exception) -> str:
    """A message for a model that is neither a folder nor could be loaded from the Hub."""
    reason = str(error).strip().partition("\n")[0]
    return f"model: found no folder {name!r} here, and could not load it from the Hub: {reason}"


def load_saved(name: str | os.PathLike) -> tuple[PreTrainedModel, Any]:
    """
    Load a model and its image processor from what `save_pretrained` or a command wrote. `config.json` names the
    model's class.

    Args:
        name: A folder, or a name on the Hub.

    Returns:
        The model, and the processor or `None`.

    Raises:
        `FileNotFoundError`: if there is no `config.json`.
        `ValueError`: if it names no known class, or weights of the class are missing, which would be random.
    """
    check_saved(str(name))
    try:
        config = AutoConfig.from_pretrained(name)
        architecture = str((config.architectures or [None])[0])
    except (OSError, ValueError, AttributeError, TypeError, StrictDataclassError) as error:  # no JSON, no object, ...
        if not Path(name).exists():
            raise FileNotFoundError(not_found(str(name), error)) from error
        raise ValueError(f"{name}/{CONFIG_FILE}: expected a model's configuration, {error}") from None
    model_class = _class_of(type(config), architecture)
    if model_class is None:
        raise ValueError(
            f"{name}/{CONFIG_FILE}, architectures: expected the name of a model of c2fmae_hf or transformers, got "
            f"{architecture!r}"
        )
    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except OSError:  # there is none
        processor = None
    try:
        loaded: Any = model_class.from_pretrained(name, output_loading_info=True)
    except SafetensorError as error:
        raise ValueError(
            f"{name}: expected whole safetensors files, got one that is damaged ({error}); save or download it again"
        ) from error
    model, info = loaded
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            names = sorted(str(name) for name in info[kind])
            raise ValueError(
                f"{name}: expected all weights of {type(model).__name__}, {kind.replace('_keys', '')}: {names[:5]}"
                f"{' ...' if len(names) > 5 else ''} ({len(names)}); save the model again"
            )
    return model, processor


def _class_of(config_class: type, name: str) -> type[PreTrainedModel] | None:
    """The model class of that name, from the Auto classes or transformers itself."""
    registered = (mapping.get(config_class, None) for mapping in MAPPINGS)
    known = [found for one in registered for found in (one if isinstance(one, tuple) else (one,))]
    model_class = next((found for found in known if found is not None and found.__name__ == name), None)
    model_class = model_class or getattr(transformers, name, None)
    is_model = isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)
    return model_class if is_model else None


def save_repository(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    processor: Any = None,
    *,
    custom_code: bool = True,
    license_text: str | None = None,
) -> list[str]:
    """
    Write weights, configuration, image processor, licence and, for use without this package, code.

    Args:
        model: A C2FMAE model, or another one that is built on it (UperNet, Mask2Former, Mask R-CNN), which is written
            as `save_pretrained` does.
        folder: Empty or not there yet.
        processor (*optional*): The image processor. Its mean, standard deviation and crop become timm's too.
        custom_code (`bool`, defaults to `True`): Whether to add the modules that transformers loads with
            `trust_remote_code=True` where this package is not installed. Only for C2FMAE's own classes.
        license_text (*optional*): Content of the file `LICENSE`; by default this package's Apache-2.0.

    Returns:
        The names of the files.

    Raises:
        `FileExistsError`: if the folder is not empty.
        `ValueError`: if the processor's patch size, crop or channels are not the model's.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: expected an empty folder, got one with files")
    folder.mkdir(parents=True, exist_ok=True)
    is_own = isinstance(model, C2FMAEPreTrainedModel)
    if processor is not None:
        if isinstance(model, C2FMAEPreTrainedModel):
            # Segmenters and backbones take any size.
            is_fixed_size = not isinstance(model, (C2FMAEForSemanticSegmentation, C2FMAEBackbone))
            _check_processor(model.config, processor, is_fixed_size)
        processor.save_pretrained(folder)
    timm_keys = None
    if isinstance(model, C2FMAEPreTrainedModel):
        classes = model.config.num_labels if isinstance(model, C2FMAEForImageClassification) else 0
        timm_keys = model.config.timm_keys(classes or 0)
    changes: dict[str, Any] = {}
    if timm_keys is None:
        model.save_pretrained(folder)
    else:
        model.config.architectures = [type(model).__name__]
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        model.config.save_pretrained(folder)
        if isinstance(processor, C2FMAEImageProcessor):
            timm_keys["pretrained_cfg"].update(convert_processor_to_timm(processor))
        changes = {**timm_keys, **_save_weights(model, folder)}
        if isinstance(processor, C2FMAEImageProcessor):
            changes.update(zip(("image_mean", "image_std"), effective_statistics(processor)))
    if is_own and custom_code:
        changes["auto_map"] = _save_code(model, folder, processor)
    _update_json(folder / CONFIG_FILE, changes)
    (folder / "LICENSE").write_text(license_text or own_license(), encoding="utf-8")
    return sorted(file.name for file in folder.iterdir())


def _check_processor(config: C2FMAEConfig, processor: Any, is_fixed_size: bool) -> None:
    patch_size = getattr(processor, "patch_size", config.patch_size)
    if patch_size != config.patch_size:
        raise ValueError(f"processor.patch_size: expected the model's {config.patch_size}, got {patch_size}")
    if is_fixed_size and getattr(processor, "do_center_crop", False) and processor.crop_size is not None:
        size = (processor.crop_size["height"], processor.crop_size["width"])
        if size != config.image_height_width:
            raise ValueError(
                f"processor.crop_size: expected the model's {config.image_height_width}, (height, width), got {size}"
            )
    mean = getattr(processor, "image_mean", None)
    if mean is not None and len(mean) != config.num_channels:
        raise ValueError(
            f"processor.image_mean: expected a number for each of {config.num_channels} channels, got {list(mean)}"
        )


def _save_weights(model: Any, folder: Path) -> dict[str, Any]:
    """Write the files of weights; return the fields for the configuration."""
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in model.state_dict().items():
        name = model.saved_name(name)
        first = name.partition(".")[0]
        file = f"{first}.safetensors" if first in BEYOND_TIMM else ENCODER_FILE
        files.setdefault(file, {})[name] = value.detach().cpu().contiguous()
    for file, tensors in files.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(files) == 1:
        return {}
    tensors_and_files = [(name, value, file) for file, tensors in files.items() for name, value in tensors.items()]
    index = {
        "metadata": {"total_size": sum(value.nbytes for _, value, _ in tensors_and_files)},
        "weight_map": {name: file for name, _, file in sorted(tensors_and_files, key=lambda entry: entry[0])},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return {"transformers_weights": INDEX_FILE}


def _save_code(model: PreTrainedModel, folder: Path, processor: Any) -> dict[str, str]:
    """Write modules of this package with transformers' own function; return the `auto_map`."""

    def reference(of: type) -> str:
        return f"{of.__module__.rpartition('.')[2]}.{of.__name__}"

    offered = {"AutoConfig": C2FMAEConfig, **AUTO_CLASSES}
    custom_object_save(model, folder)
    if isinstance(processor, C2FMAEImageProcessor):
        custom_object_save(processor, folder)
        offered["AutoImageProcessor"] = C2FMAEImageProcessor
        # Only in config.json: given a name or code in the processor's own file, pipelines expect code for videos and
        # ask at the terminal whether to run it.
        _update_json(folder / PROCESSOR_FILE, {}, without="image_processor_type")
    return {name: reference(of) for name, of in offered.items()}


def _update_json(path: Path, changes: dict[str, Any], without: str | None = None) -> None:
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    content.pop(without, None)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
