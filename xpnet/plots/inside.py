"""Inside a network: the weights of its first layer, the outputs of all layers, the gradients of their parameters."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.checks import brief, integer
from ..layers.dense import Dense
from ..layers.placed import Placed, check_network
from ..losses.losses import Loss
from ..training import inputs
from ..training.probe import Probe
from .canvas import BLUE, ORANGE, axes, histogram, inches, panels, set_title, sheet, signed, zeros

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def first_layer_weights(
    net: Placed, shape: tuple[int, int] | None = None, most: int = 64, columns: int = 8, ax: Any = None
) -> Any:
    """Draw the weights of the first Dense layer, each unit's as an image of `shape` (height, width); red is above 0.

    The first `most` units are drawn, `columns` images in a row. Without a shape, for inputs that are not images, the
    weights are drawn as one matrix, a row for each unit.

    `ax` are matplotlib's axes to draw into, None for new ones. Raises TypeError or ValueError for what cannot be drawn.

    >>> x, y = xn.data.load_digits()
    >>> net = xn.Sequential(xn.Dense(64, 10)).initialize()
    >>> xn.plots.first_layer_weights(net, shape=(8, 8)).figure.savefig("weights.png")
    """
    check_network("first_layer_weights", net)
    most, columns = integer("first_layer_weights: most", most), integer("first_layer_weights: columns", columns)
    found = next(((name, layer) for name, layer in net.leaves() if isinstance(layer, Dense)), None)
    if found is None:
        raise ValueError(f"first_layer_weights: {net!r} has no Dense layer")
    name, layer = found
    weights = net.backend.to_numpy(layer.params["weight"]).T  # (H, D)
    units, inputs = weights.shape
    if not (shape is None or (isinstance(shape, (tuple, list)) and len(shape) == 2)):
        raise TypeError(f"first_layer_weights: shape must be (height, width) or None, got {brief(shape)}")
    if shape is not None and math.prod(integer("first_layer_weights: each side of shape", n) for n in shape) != inputs:
        raise ValueError(
            f"first_layer_weights: layer {name}, {layer!r}, has {inputs} inputs, not those of an image of shape "
            f"{shape}; give (height, width) with that product, or None to draw the matrix"
        )
    shown = weights[:most]
    colours = signed(shown)
    more = "" if len(shown) == units else f", the first {len(shown)} of {units} units"
    if shape is None:
        ax = axes(ax)
        image = ax.imshow(shown, aspect="auto", **colours)
        ax.set(xlabel="input", ylabel="unit")
        ax.locator_params(integer=True, min_n_ticks=1)
    else:
        columns = min(columns, len(shown))
        rows = -(-len(shown) // columns)
        tall, wide = inches(*shape, 0.75 if columns > 4 else 1.2)
        ax = axes(ax, (max(4.8, 1.2 + wide * columns), max(1.6, 0.6 + tall * rows)))
        image = ax.imshow(sheet(shown.reshape(-1, *shape), columns), **colours)
        ax.axis("off")
    set_title(ax, f"Weights of layer {name}, {layer!r}{more}", 10)
    ax.figure.colorbar(image, ax=ax, label="weight", shrink=0.8, aspect=25, panchor=False)
    return ax


def activation_histograms(net: Placed, x: Any, columns: int = 3, figure: Any = None) -> "Figure":
    """Histograms of the outputs of each layer for x, in inference mode; zeros are left out and counted.

    A panel for each layer, `columns` panels in a row.

    `figure` is matplotlib's to draw into, None for a new one. Raises TypeError or ValueError for what cannot be drawn.

    >>> x, y = xn.data.load_digits()
    >>> net = xn.Sequential(xn.Dense(64, 10)).initialize()
    >>> xn.plots.activation_histograms(net, x[:99]).savefig("activations.png")
    """
    check_network("activation_histograms", net)
    with net.backend.scope():
        x = inputs.rows_of(net, "activation_histograms: x", x, whole=True)
        probe = Probe(net.clone())
        probe.forward(x, training=False)
    traces = probe.parts()
    arrays = [net.backend.to_numpy(trace.y).ravel() for trace in traces]
    fig, all_axes = panels(figure, len(traces), columns, (3.6, 2.3))
    for trace, values, ax in zip(traces, arrays, all_axes, strict=True):
        histogram(ax, values[values != 0], f"{trace.name}  {trace.layer!r}", f"output{zeros(values)}", BLUE)
    return fig


def gradient_histograms(net: Placed, x: Any, y: Any, loss: Loss, columns: int = 3, figure: Any = None) -> "Figure":
    """Histograms of log₁₀|g| for the gradients of each layer's parameters, in training mode, on one scale.

    Layers far to the left of the last one hardly learn: the gradient vanishes before it reaches them.

    `x`, `y` and `loss` as in `fit`; `columns` panels stand in a row. `figure` is matplotlib's to draw into, None for a
    new one. Raises TypeError or ValueError for what cannot be drawn.

    >>> x, y = xn.data.load_digits()
    >>> net = xn.Sequential(xn.Dense(64, 10)).initialize()
    >>> figure = xn.plots.gradient_histograms(net, x[:99], y[:99], xn.SoftmaxCrossEntropy())
    >>> figure.savefig("gradients.png")
    """
    check_network("gradient_histograms", net)
    x, y = inputs.rows_of_pair(net, "gradient_histograms", x, y, loss, whole=True)
    with net.backend.scope():
        probe = Probe(net.clone())
        probe.forward(x, training=True)
        probe.backward(loss, y)
    host, traces = net.backend.to_numpy, probe.parts()
    named = [(t, np.concatenate([host(g).ravel() for g in t.gradients.values()])) for t in traces if t.gradients]
    if not named:
        raise ValueError("gradient_histograms: no layer of the network has parameters")
    sizes = []
    for _, g in named:
        with np.errstate(divide="ignore"):
            sizes.append(np.log10(np.abs(g.astype(np.float64)), where=g != 0, out=np.full(g.shape, np.nan)))
    finite = np.concatenate([size[np.isfinite(size)] for size in sizes])
    low, high = (finite.min(), finite.max()) if finite.size else (-1.0, 0.0)
    fig, all_axes = panels(figure, len(named), columns, (3.6, 2.3))
    for (trace, g), size, ax in zip(named, sizes, all_axes, strict=True):
        label = f"log₁₀|gradient|{zeros(g)}"
        histogram(ax, size[g != 0], f"{trace.name}  {trace.layer!r}", label, ORANGE, (low, high))
    return fig
