"""The label-map format and the names that every module shares."""

#: Coarse to fine: the order of the decoder's stages, of logs and of figures.
GRANULARITIES = ("semantic", "instance", "image")

#: Masking strategies in the order of the curriculum. `mask_strategy` in a batch is an index into this tuple.
MASKING_STRATEGIES = ("semantic", "instance", "random")

#: Label maps on disk: the ignore value of PNGs of 8 bits.
IGNORE_INDEX_8BIT = 255
#: The same of 16 bits.
IGNORE_INDEX_16BIT = 65535
#: Label maps in tensors: the ignore value.
IGNORE_INDEX = -100
#: Instance maps, on disk and in tensors: the pixel belongs to no instance.
NO_INSTANCE = 0

#: ImageNet's mean of the channels in [0, 1], by which inputs are normalised.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
#: And its standard deviation.
IMAGENET_STD = (0.229, 0.224, 0.225)
