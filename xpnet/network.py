"""Networks: chains of layers that are trained, evaluated and saved."""

from typing import Any

from .backends import Array
from .common.checks import non_negative
from .files.safetensors import Path
from .kernels.reference import must_check_range, out_of_range
from .layers.placed import Placed
from .losses.losses import Loss
from .losses.objective import Objective
from .training import inputs, loop, sources
from .training.evaluation import evaluate, forward_in_batches
from .training.explanation import Explanation
from .training.probe import Probe


class Sequential(Placed):
    """A network: a chain of layers, and a layer itself. `layers` is the tuple of its layers.

    Layers keep the arrays they have: `Sequential(*net.layers[:-1])` is the network without its last layer, ready to
    use, and shares its arrays.

    forward:   x₀ = x,  x_{i+1} = layer_i(x_i)          backward:  dx_i = backward_i(dx_{i+1}), the chain rule

    The name of a parameter or statistic has the layer's number in front: "0.weight", "1.gamma", "1.mean". Raises
    TypeError for anything but layers, and ValueError for layers whose sizes do not fit one another or a layer with
    arrays that is given twice.

    >>> net = xn.Sequential(xn.Dense(64, 32), xn.ReLU(), xn.Dense(32, 10)).initialize(seed=0)
    >>> net.parameter_count, net.params["0.weight"].shape
    (2410, (64, 32))
    """

    def __call__(self, x: Any) -> Array:
        """Return `predict(x)`."""
        return self.predict(x)

    def predict(self, x: Any, batch_size: int | None = None) -> Array:
        """Return the outputs (n, outputs) for x (n, features), an array of NumPy or of the backend. They stay on the
        backend.

        Computes `batch_size` rows at a time or, by default, all at once; many images or sequences, and a large x that
        is memory-mapped or of integers, are computed in blocks. x may be a source, as in `fit`, of (x, y) or of x
        alone. Raises ValueError or TypeError for an unsuitable x.

        >>> net = xn.Sequential(xn.Dense(2, 3)).initialize(seed=0)
        >>> net.predict([[1.0, 2.0]]).shape
        (1, 3)
        """
        with self.backend.scope():
            if sources.is_source(x):
                return sources.outputs_for(self, "predict", x, None, batch_size)[0]
            x = inputs.rows_of(self, "predict: x", x)
            y = forward_in_batches(self, "predict", x, batch_size)
            return self.backend.xp.asarray(y, copy=True) if y is x else y  # x may be the caller's own

    def value_and_grad(
        self, x: Any, y: Any, loss: Loss, sample_weight: Any = None, l2: float = 0.0
    ) -> tuple[Array, dict[str, Array]]:
        """Return the loss in training mode, a 0-d array, and its gradients, {name: array}; does not change the network.

        The arguments are those of `fit`: `x`, `y`, `loss`, `sample_weight` and `l2`. Raises ValueError or TypeError
        for unsuitable ones.

        >>> net = xn.Sequential(xn.Dense(2, 3)).initialize(seed=0)
        >>> x, y = [[1.0, 2.0], [3.0, 4.0]], [0, 2]
        >>> value, grads = net.value_and_grad(x, y, xn.SoftmaxCrossEntropy())
        >>> sorted(grads)
        ['0.bias', '0.weight']
        """
        x, y = inputs.rows_of_pair(self, "value_and_grad", x, y, loss, whole=True)
        weight = inputs.weights_for(self, "value_and_grad", loss, y, sample_weight)
        objective = Objective(loss, non_negative("value_and_grad: l2", l2))
        with self.backend.scope():
            prediction, cache = self.forward(x, training=True)
            self._check_range("value_and_grad", loss, prediction)
            value, dy = objective.reduced(prediction, y, weight)
            grads = self.backward_params(dy, cache)
            if l2:
                trained = [(prefix, layer.params) for prefix, layer in self.leaves() if layer.trainable]
                params = {f"{prefix}.{key}": a for prefix, arrays in trained for key, a in arrays.items()}
                value, grads = objective.penalized(value, grads, params, y, weight)
            return value, grads

    def explain(self, x: Any, y: Any, loss: Loss) -> Explanation:
        """Return a forward and a backward pass in training mode: all outputs and gradients of layers, with formulas.

        Print the result, show it in a notebook, or `plot` it. The network is not changed. The gradients are those of
        `value_and_grad`. `x`, `y` and `loss` are as in `fit`. Raises ValueError or TypeError for unsuitable ones.

        >>> net = xn.Sequential(xn.Dense(2, 3)).initialize(seed=0)
        >>> x, y = [[1.0, 2.0], [3.0, 4.0]], [0, 2]
        >>> explanation = net.explain(x, y, xn.SoftmaxCrossEntropy())
        >>> explanation["0"].y.shape
        (2, 3)
        """
        x, y = inputs.rows_of_pair(self, "explain", x, y, loss, whole=True)
        with self.backend.scope():
            probe = Probe(self.clone())
            prediction = probe.forward(x, training=True)
            self._check_range("explain", loss, prediction)
            return Explanation(probe, loss, y, *probe.backward(loss, y))

    def _check_range(self, who: str, loss: Loss, prediction: Array) -> None:
        """Raise ValueError for outputs outside [0, 1] if the loss takes probabilities."""
        if must_check_range(self, loss) and (misfit := out_of_range(loss, prediction)):
            raise ValueError(f"{who}: {misfit}")

    fit = loop.fit  # with their arguments and docstrings
    evaluate = evaluate

    def save(self, path: Path) -> None:
        """Write architecture, parameters and statistics to the safetensors file `path`, which `xpnet.load` reads.

        The file is written completely or not at all. Raises OSError if it cannot be written, TypeError for layers whose
        settings JSON cannot hold.

        >>> net = xn.Sequential(xn.Dense(2, 3)).initialize(seed=0)
        >>> net.save("net.safetensors")
        >>> xn.load("net.safetensors").parameter_count
        9
        """
        from .files.format import save

        save(self, path)

    def export_onnx(self, path: Path) -> None:
        """Write inference to an ONNX file, from "x" (N, features) to "y", for any N; needs the extra `onnx`.

        Raises TypeError for a layer that ONNX has no operator for, such as a user's own.

        `path` is the file's.

        >>> net = xn.Sequential(xn.Dense(2, 3)).initialize(seed=0)
        >>> net.export_onnx("net.onnx")  # doctest: +SKIP
        """
        from .files.onnx import export_onnx

        export_onnx(self, path)
