"""C2FMAE, a coarse-to-fine masked autoencoder (arXiv 2603.09955), for transformers and timm."""

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

from . import timm_c2fmae as timm_c2fmae  # registers the zoo's encoders with timm
from .configuration_c2fmae import SIZES, C2FMAEConfig
from .image_processing_c2fmae import C2FMAEImageProcessor
from .modeling_c2fmae import (
    C2FMAEBackbone,
    C2FMAEForImageClassification,
    C2FMAEForPreTraining,
    C2FMAEForPreTrainingOutput,
    C2FMAEForSemanticSegmentation,
    C2FMAEModel,
    C2FMAEPreTrainedModel,
)
from .modeling_encoder_backbone import EncoderBackbone, EncoderBackboneConfig
from .modeling_mask_rcnn import MaskRCNNConfig, MaskRCNNForObjectDetection


__all__ = [
    "SIZES",
    "C2FMAEBackbone",
    "C2FMAEConfig",
    "C2FMAEForImageClassification",
    "C2FMAEForPreTraining",
    "C2FMAEForPreTrainingOutput",
    "C2FMAEForSemanticSegmentation",
    "C2FMAEImageProcessor",
    "C2FMAEModel",
    "C2FMAEPreTrainedModel",
    "EncoderBackbone",
    "EncoderBackboneConfig",
    "MaskRCNNConfig",
    "MaskRCNNForObjectDetection",
]
__version__ = "0.1.0"

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
AutoModelForObjectDetection.register(MaskRCNNConfig, MaskRCNNForObjectDetection)
