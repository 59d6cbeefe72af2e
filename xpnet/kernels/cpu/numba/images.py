"""Batch norm and pools of images, in loops."""

from .. import images
from . import batch_norm, convolution


class BatchNorm(images.OfImages, batch_norm.BatchNorm):
    """Of images."""


class Pooling(images.Pooling):
    """Each window's maximum in one go."""

    maxima = convolution.Pool
