"""Batch norm, pointwise functions and pools of images, in loops."""

from .. import images
from . import batch_norm, convolution, pointwise


class BatchNorm(images.OfImages, batch_norm.BatchNorm):
    """Of images."""


class Pointwise(images.OfImages, pointwise.Pointwise):
    """Of images."""


class Pooling(images.Pooling):
    """Each window's maximum in one go."""

    maxima = convolution.Pool
