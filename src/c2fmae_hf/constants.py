"""The label-map format and the names that every module shares."""

# Coarse to fine: the order of the decoder's stages, of logs and of figures.
GRANULARITIES = ("semantic", "instance", "image")

# Masking strategies in the order of the curriculum. `mask_strategy` in a batch is an index into this tuple.
MASKING_STRATEGIES = ("semantic", "instance", "random")

# Label maps on disk: the ignore value depends on the bit depth of the PNG.
IGNORE_INDEX_8BIT = 255
IGNORE_INDEX_16BIT = 65535
# Label maps in tensors.
IGNORE_INDEX = -100
# Instance maps, on disk and in tensors: the pixel belongs to no instance.
NO_INSTANCE = 0

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
