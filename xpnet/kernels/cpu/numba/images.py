"""Batch norm, pointwise functions and max pools of images, in loops."""

from .. import images
from . import batch_norm, convolution, pointwise


class BatchNorm(images.OfImages, batch_norm.BatchNorm):
    """Batch norm of images."""


class Pointwise(images.OfImages, pointwise.Pointwise):
    """A pointwise function of images."""


class Pooling(images.Pooling):
    """The maxima over windows, in one loop."""

    maxima = convolution.Pool
