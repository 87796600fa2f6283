"""Names and label-map values that every module shares."""

#: Coarse to fine: the order of the decoder's stages, of logs and of figures.
GRANULARITIES = ("semantic", "instance", "image")

#: Masking strategies in the order of the curriculum. `mask_strategy` in a batch is an index into this tuple.
MASKING_STRATEGIES = ("semantic", "instance", "random")

#: Ignore value of 8-bit label maps on disk.
IGNORE_INDEX_8BIT = 255
#: Ignore value of 16-bit label maps on disk.
IGNORE_INDEX_16BIT = 65535
#: Ignore value of label maps in tensors.
IGNORE_INDEX = -100
#: Id of pixels that belong to no instance, on disk and in tensors.
NO_INSTANCE = 0

#: ImageNet's mean per channel, for pixels in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
#: ImageNet's standard deviation per channel, for pixels in [0, 1].
IMAGENET_STD = (0.229, 0.224, 0.225)
