"""A convolution, as a product with the patches that its windows see, gathered in CUDA.

Axes: N batch, C input channels, O output channels, G groups, K = C / G KH KW the taps of an output, (P, Q) the outputs.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from ...backends import Array
from ..cpu.convolution import CONVOLUTIONS, as_given, as_images
from ..stages import Part, Site, Stage, Vector
from .launching import over_vector
from .windows import WindowsStage, takes_images

BLOCK = 2**26  # entries of the patches gathered at a time


class Convolution(WindowsStage):
    """z = W patches, (O, K) by (K, P Q N), with dW = dz patchesᵀ; dx adds up Wᵀ dz. The next stage adds the bias.

    Backward gathers the patches again. BLOCK limits how many rows P of them are gathered at a time.
    """

    images = y_read_once = True

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        layer: Any = parts[0].layer if parts else None
        fits = type(layer) in CONVOLUTIONS and not parts[0].frozen and parts[0].axes == layer.axes + 2
        return cls(site, before, parts[0]) if fits and takes_images(before) else None

    def __init__(self, site: Site, before: Stage | None, part: Part):
        super().__init__(site, before, f"{part.prefix}.weight")
        self.layer, self.axes, self.bias, self.turn = part.layer, part.axes, f"{part.prefix}.bias", 1 - self.turn
        self.product = site.family.cupy.matmul

    def grouped(self, matrix: Array) -> Array:
        """(G M, ...) as matrices (G, M, ...), one matrix if there is one group."""
        groups, (rows, columns) = self.layer.groups, matrix.shape
        return matrix.reshape((groups, rows // groups, columns)) if groups > 1 else matrix

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """W, and its transpose."""
        weight = vector.arrays[self.names[0]]
        weight = self.grouped(weight.reshape((weight.shape[0], -1)))
        return weight, weight.swapaxes(-1, -2)

    def bind(self, x: Array, before: Stage | None) -> None:
        layer, images = self.layer, as_images(x)
        o = layer.output_shape(tuple(x.shape)[::-1])[1]  # raises ValueError for an x that does not fit
        self.bind_windows(x, layer)
        (p, q), n, self.taps = self.outputs, images.shape[-1], self.channels * self.kernel[0] * self.kernel[1]
        self.keeps = before is None
        self.cache = None if self.keeps else x
        self.of_row = self.taps * q * n
        self.rows = max(1, min(p, BLOCK // max(1, self.of_row)))
        self.patches = self.shared("patches", (self.rows * self.of_row,))
        y = self.output(o * p * q, n)
        self.given = as_given(y.reshape((o, p, q, n)), self.axes)
        self.z, self.columns = self.grouped(y.reshape((o, p * q * n))), q * n
        self.dx = None if self.lowest else self.shared(f"dx{self.turn}", images.shape)

    def blocks(self, x: Array) -> Iterator[tuple[slice, slice, Array]]:
        """Yield slices of the rows of outputs, their columns in z, and their patches, (G, K, M)."""
        images, p = as_images(x), self.outputs[0]
        strides = [stride // images.itemsize for stride in images.strides]
        for first in range(0, p, self.rows):
            rows = slice(first, min(first + self.rows, p))
            count = rows.stop - first
            columns = slice(first * self.columns, rows.stop * self.columns)
            patches = self.patches[: count * self.of_row]
            over_vector("gather", patches, images, *strides, self.channels, first, count, *self.windows, patches)
            yield rows, columns, self.grouped(patches.reshape((self.taps, count * self.columns)))

    def forward(self, x: Array, params: Any) -> Array:
        if self.keeps:
            self.cache = x
        for _, columns, patches in self.blocks(x):
            self.product(params[0], patches, out=self.z[..., columns])
        return self.given

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        dz, dweight = self.grouped(as_images(dy).reshape((dy.shape[-2], self.outputs[0] * self.columns))), grads[0]
        for rows, columns, patches in self.blocks(self.cache):
            part, transposed = dz[..., columns], patches.swapaxes(-1, -2)
            if rows.start:
                dweight += self.product(part, transposed)
            else:
                self.product(part, transposed, out=dweight)
            if self.dx is not None:
                self.product(params[1], part, out=patches)
                self.spread("OfPatches", patches, None, rows, self.dx)
        return None if self.dx is None else as_given(self.dx, self.axes)
