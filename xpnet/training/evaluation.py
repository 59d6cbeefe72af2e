"""Evaluation: a network's outputs for data, with their loss and metrics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..backends import Array, device_of, is_compiled, namespace
from ..common.checks import brief, integer, kind_of, require
from ..common.publication import published
from ..data import minibatches
from ..kernels import infer
from ..kernels.reference import must_check_range, out_of_range
from ..layers.placed import Placed
from ..losses import __all__ as known_losses
from ..losses.losses import Loss
from ..losses.objective import on_encoded
from ..metrics import OF_CLASSES, accuracy
from . import arguments, inputs, sources
from .batches import Group, Uncast, blocks

Metrics = Mapping[str, str | Callable[..., Any]] | Sequence[str | Callable[..., Any]]


def evaluate(
    net: Placed,
    x: Any,
    y: Any = None,
    loss: Loss = None,  # type: ignore[assignment]  # required, but it follows y, which has a default
    metrics: Metrics | None = None,
    batch_size: int | None = None,
) -> dict[str, float]:
    """Return the loss and the metrics (as in `fit`) of the outputs for x: {"loss": ..., "accuracy": ...}.

    Computes `batch_size` rows at a time or, by default, all at once; a large x that is memory-mapped or of integers is
    computed in blocks. x may be a source, as in `fit`, without a y: the outputs and targets of all rows are then
    held in memory, but not x, and weights are not used. Raises ValueError or TypeError for unsuitable arguments, and
    for outputs outside [0, 1] with a loss of probabilities.

    >>> net = xn.Sequential(xn.Dense(2, 3)).initialize(seed=0)
    >>> x, y = [[1.0, 2.0], [3.0, 4.0]], [0, 2]
    >>> sorted(net.evaluate(x, y, xn.SoftmaxCrossEntropy()))
    ['accuracy', 'loss']
    """
    require("evaluate: loss", loss, ("value_and_grad",), "xn.SoftmaxCrossEntropy()", known_losses)
    metrics = arguments.check_metrics("evaluate", metrics)
    if sources.is_source(x):
        sources.check_alone("evaluate", x, y=y)
        held_out: HeldOut = HeldOutSource(net, "evaluate", x, loss, batch_size)
    else:
        sources.check_target("evaluate", x, y)
        held_out = HeldOut(net, "evaluate", x, y, loss, batch_size)
    arguments.warn_of_squashed_logits(net, "evaluate", loss)
    with net.backend.scope():
        return held_out.scores(net, loss, metrics)


class HeldOut:
    """Data that a network is evaluated on: x, the targets as given, and the targets y as the loss encodes them.

    With a `group`, the processes divide its batches, and the first one computes the scores.
    """

    group: Group | None = None

    def __init__(self, net: Placed, who: str, x: Any, y: Any, loss: Loss, batch_size: int | None):
        self.who, self.batch_size, self.given = who, batch_size, y
        self.x, self.y = inputs.rows_of_pair(net, who, x, y, loss)

    def facts(self) -> dict[str, Any]:
        """Return the arrays and descriptions that identify the data, as `Feed.facts` does."""
        return {"validation x": self.x, "validation y": self.y}

    def outputs(self, net: Placed, loss: Loss) -> tuple[Array, Array, Any]:
        """Return the network's outputs (None except in the first process), the encoded targets and those given."""
        return forward_in_batches(net, self.who, self.x, self.batch_size, self.group), self.y, self.given

    def check_metrics(self, net: Placed, loss: Loss, metrics: Mapping[str, Callable[..., Any]]) -> None:
        """Compute the class metrics of xpnet for outputs of zero, to raise their errors before training."""
        of_classes = {name: metric for name, metric in metrics.items() if metric in OF_CLASSES}
        measured("fit", inputs.zeros_for(net, self.x), self.y, self.given, loss, of_classes)

    def scores(self, net: Placed, loss: Loss, metrics: Mapping[str, Callable[..., Any]] | None) -> dict[str, float]:
        """Return the loss and the metrics of the network's outputs as floats; {} except in the first process."""
        prediction, y, given = self.outputs(net, loss)
        if prediction is None:
            return {}
        if must_check_range(net, loss) and (misfit := out_of_range(loss, prediction)):
            raise ValueError(f"{self.who}: {misfit}")
        if metrics is None:
            metrics = {} if getattr(loss, "threshold", None) is None else {"accuracy": accuracy}
        value, _ = on_encoded(loss, prediction, y)
        return {"loss": float(value)} | measured(self.who, prediction, y, given, loss, metrics)


class HeldOutSource(HeldOut):
    """A source that a network is evaluated on; each evaluation reads it anew."""

    def __init__(self, net: Placed, who: str, source: Any, loss: Loss, batch_size: int | None):
        self.who, self.batch_size, self.source = who, batch_size, source

    def facts(self) -> dict[str, Any]:
        return {"validation source": kind_of(self.source)}

    def outputs(self, net: Placed, loss: Loss) -> tuple[Array, Array, Any]:
        return sources.outputs_for(net, self.who, self.source, loss, self.batch_size, self.group)

    def check_metrics(self, net: Placed, loss: Loss, metrics: Mapping[str, Callable[..., Any]]) -> None:
        first, self.given = sources.first_of(net, self.who, self.source, loss, self.batch_size)
        self.x, self.y = first.x, first.y
        super().check_metrics(net, loss, metrics)


def held_out_of(net: Placed, given: Any, loss: Loss, batch_size: int) -> HeldOut | None:
    """Return the data that `fit` evaluates after each epoch, from its `validation_data`; None for None.

    Raises ValueError for anything but a pair or a source, such as a fraction of the rows as in Keras.
    """
    if given is None:
        return None
    if sources.is_source(given):
        if hasattr(given, "__iter__") and iter(given) is given:
            raise ValueError(
                "fit: validation_data is a generator, which gives its batches once, and each epoch needs them: give "
                "x and y, a list of batches, or a class with an __iter__ that begins anew"
            )
        return HeldOutSource(net, "fit: validation data", given, loss, batch_size)
    sized = isinstance(given, (tuple, list))
    if not sized or len(given) != 2:
        got = kind_of(given) + (f" of {len(given)}" if sized else "")
        raise ValueError(
            f"fit: validation_data must be a pair (x, y), got {got}; xn.data.train_test_split(x, y) gives the four "
            "arrays x_train, x_val, y_train, y_val"
        )
    try:
        x, y = given
        return HeldOut(net, "fit: validation data", x, y, loss, batch_size)
    except (ValueError, TypeError) as error:
        error.add_note("in fit's validation_data")
        raise


def measured(
    who: str, prediction: Array, y: Array, given: Any, loss: Loss, metrics: Mapping[str, Callable[..., Any]]
) -> dict[str, float]:
    """Return the metrics as floats. xpnet's class metrics get the targets as given and the loss, others get y."""
    scores = {}
    for name, metric in metrics.items():
        try:
            value = metric(prediction, given, loss=loss) if metric in OF_CLASSES else metric(prediction, y)
        except Exception as error:
            error.add_note(
                f"in the metric {name!r}, which {who} calls with the prediction, of shape {tuple(prediction.shape)}, "
                f"and the target as the loss has it, of shape {tuple(y.shape)}, for one number"
            )
            raise
        shape = tuple(getattr(value, "shape", ()))
        if shape or not hasattr(value, "__float__"):
            came = f"an array of shape {shape}" if shape else brief(value)
            raise TypeError(f"{who}: the metric {name!r} gave {came}, expected one number")
        scores[name] = float(value)
    return scores


def forward_in_batches(net: Placed, who: str, x: Array, batch_size: int | None, group: Group | None = None) -> Array:
    """Return the network's outputs in inference, `batch_size` rows at a time, all with the parameters of one step.

    With a `group`, each process computes some of the batches, with the same bits as one process would; the first
    returns the outputs of all, the others None.
    """
    uncast = isinstance(x, Uncast)
    if (batch_size is None and not uncast) or (
        batch_size is not None and x.shape[0] <= integer(f"{who}: batch_size", batch_size)
    ):
        x = x[:, ...] if uncast else x
        return published.read(net, lambda net: infer(net, x)) if group is None or group.first else None
    slices = blocks(x.shape) if batch_size is None else minibatches(x.shape[0], batch_size)
    if group is None:
        return published.read(net, lambda net: joined((infer(net, x[rows, ...]) for rows in slices), slices))
    to_numpy, asarray = net.backend.to_numpy, net.backend.asarray
    local_slices = slices[group.rank :: group.size]
    local = published.read(net, lambda net: [to_numpy(infer(net, x[rows, ...])) for rows in local_slices])
    if (gathered := group.gather(local)) is None:
        return None
    return joined((asarray(gathered[i % group.size][i // group.size]) for i in range(len(slices))), slices)


def joined(parts: Iterator[Array], slices: Sequence[slice]) -> Array:
    """Concatenate the parts. Each is copied into its slice at once: many small arrays, kept between the temporary ones
    of later batches, would keep the freed memory from being returned to the system.
    """
    first = next(parts)
    xp = namespace(first)
    if is_compiled(xp):  # its arrays are immutable
        return xp.concat([first, *parts], axis=0)
    shape = slices[-1].stop, *first.shape[1:]
    whole = xp.empty(shape[::-1], dtype=first.dtype, device=device_of(first))
    whole = xp.permute_dims(whole, tuple(reversed(range(len(shape)))))  # batch axis contiguous, as in `linear`
    whole[slices[0], ...] = first
    for rows in slices[1:]:
        whole[rows, ...] = next(parts)
    return whole
