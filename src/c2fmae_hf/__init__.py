"""C2FMAE, a coarse-to-fine masked autoencoder (arXiv 2603.09955), for transformers and timm."""

import logging
from importlib import import_module
from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)
from transformers.models.auto import modeling_auto

from . import timm_c2fmae as timm_c2fmae  # registers the encoders with timm
from .configuration_c2fmae import SIZES, C2FMAEConfig
from .image_processing_c2fmae import C2FMAEImageProcessor
from .masking import MaskingCurriculum
from .modeling_c2fmae import (
    C2FMAEBackbone,
    C2FMAEForImageClassification,
    C2FMAEForPreTraining,
    C2FMAEForPreTrainingOutput,
    C2FMAEForSemanticSegmentation,
    C2FMAEModel,
    C2FMAEPreTrainedModel,
)
from .publishing.licences import carry_license, note_license
from .transfer.image_processing_mask_rcnn import MaskRCNNImageProcessor
from .transfer.modeling_encoder_backbone import EncoderBackbone, EncoderBackboneConfig
from .transfer.modeling_mask_rcnn import MaskRCNNConfig, MaskRCNNForObjectDetection


__version__ = "0.1.0"

# Public names that need `datasets` or the Trainer: imported on first use (PEP 562).
_LAZY = {
    "C2FMAEDataset": ".data.dataset",
    "C2FMAEIterableDataset": ".data.streaming",
    "C2FMAETrainer": ".training.trainer",
    "C2FMAETrainingArguments": ".training.training_args",
    "CurriculumCallback": ".training.callbacks",
    "DataCollatorForC2FMAE": ".data.data_collator",
    "SharedProgress": ".data.progress",
    "evaluation_transform": ".data.transforms",
    "push_to_hub": ".publishing.hub",
    "training_transform": ".data.transforms",
}

__all__ = [
    "SIZES",
    "C2FMAEBackbone",
    "C2FMAEConfig",
    "C2FMAEDataset",
    "C2FMAEForImageClassification",
    "C2FMAEForPreTraining",
    "C2FMAEForPreTrainingOutput",
    "C2FMAEForSemanticSegmentation",
    "C2FMAEImageProcessor",
    "C2FMAEIterableDataset",
    "C2FMAEModel",
    "C2FMAEPreTrainedModel",
    "C2FMAETrainer",
    "C2FMAETrainingArguments",
    "CurriculumCallback",
    "DataCollatorForC2FMAE",
    "EncoderBackbone",
    "EncoderBackboneConfig",
    "MaskRCNNConfig",
    "MaskRCNNForObjectDetection",
    "MaskRCNNImageProcessor",
    "MaskingCurriculum",
    "SharedProgress",
    "evaluation_transform",
    "push_to_hub",
    "training_transform",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def _publish(model: C2FMAEPreTrainedModel, repo_id: str, **kwargs: Any) -> Any:
    from .publishing.hub import push_to_hub

    if kwargs.pop("max_shard_size", None) is not None:
        logging.getLogger(__name__).warning("max_shard_size is ignored: timm reads the weights from one file.")
    return push_to_hub(model, repo_id, **kwargs)


C2FMAEPreTrainedModel._publish = _publish
C2FMAEPreTrainedModel._loaded_from = note_license
C2FMAEPreTrainedModel._saved_to = carry_license
AutoConfig.register(C2FMAEConfig.model_type, C2FMAEConfig)
AutoImageProcessor.register(C2FMAEConfig, image_processor_classes={"torchvision": C2FMAEImageProcessor})
AutoModel.register(C2FMAEConfig, C2FMAEModel)
AutoModelForPreTraining.register(C2FMAEConfig, C2FMAEForPreTraining)
AutoModelForImageClassification.register(C2FMAEConfig, C2FMAEForImageClassification)
AutoModelForSemanticSegmentation.register(C2FMAEConfig, C2FMAEForSemanticSegmentation)
AutoBackbone.register(C2FMAEConfig, C2FMAEBackbone)
AutoConfig.register(EncoderBackboneConfig.model_type, EncoderBackboneConfig)
AutoBackbone.register(EncoderBackboneConfig, EncoderBackbone)
AutoConfig.register(MaskRCNNConfig.model_type, MaskRCNNConfig)
AutoImageProcessor.register(MaskRCNNConfig, image_processor_classes={"torchvision": MaskRCNNImageProcessor})
AutoModelForObjectDetection.register(MaskRCNNConfig, MaskRCNNForObjectDetection)
# Without these entries the pipelines for segmentation and detection log that the class is not supported.
modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[C2FMAEConfig.model_type] = "C2FMAEForSemanticSegmentation"
modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES[MaskRCNNConfig.model_type] = "MaskRCNNForObjectDetection"
