"""The training loop: a network's method `fit`."""

import contextlib
import copy
import functools
import time
from collections.abc import Sequence
from typing import Any

from ..backends import Array, namespace
from ..callbacks import Doctor
from ..common.checks import flag, integer, non_negative, require
from ..common.warn import warn
from ..data import minibatches
from ..kernels import infer, training_step
from ..kernels.reference import Step
from ..layers.placed import Placed
from ..losses.losses import Loss
from ..losses.objective import Objective
from ..optimizers import Optimizer, Slots
from ..optimizers import __all__ as known_optimizers
from . import arguments, inputs, sources
from .batches import Arrays, Batch, Feed
from .callback import Callback
from .checkpoints import Checkpoint, facts_of, with_threads
from .evaluation import Metrics, held_out_of
from .guards import check_not_trained, claimed, signals_stop
from .history import History
from .processes import Following, Processes, check_loss_of_rows, check_shards, fails_together
from .progress import Progress
from .run import Run

AT_REST = 0.99  # the loss is still falling if it is below this multiple of the previous epoch's loss
AHEAD = 32  # full-batch epochs that are queued on a GPU at most, if nothing is called after each of them
PACE = 0.1  # seconds: if the queued epochs took less, twice as many are queued next, else half as many


@fails_together
def fit(
    net: Placed, x: Any, y: Any = None, *, loss: Loss, optimizer: Optimizer, epochs: int = 1,
    batch_size: int | None = 32, shuffle: bool = True, validation_data: tuple[Any, Any] | None = None,
    metrics: Metrics | None = None, callbacks: Sequence[Callback] | None = (), progress: bool = False,
    sample_weight: Any = None, l2: float = 0.0, slots: Slots | None = None,
    checkpoint: Checkpoint | None = None, resume: bool = False,
    prefetch: int = 2, comm: Any = None, shards: int | None = None,
) -> History:  # fmt: skip
    """Train on x (n, features) or of more axes, and targets y (n, ...), and return the history.

    x and y are arrays of NumPy or of the backend. Large memory-mapped files and arrays of integers are never copied
    whole: they are cast batch by batch.

    Instead of both, x may be a source. A source of rows has a length, and `source[rows]` gives (x, y) or (x, y, weight)
    for a slice or an array of increasing row numbers; `xn.data.ArraySource` makes one of anything that can be indexed
    this way. Any other iterable gives batches (x, y) or (x, y, weight), in its own sizes and order: a list, a PyTorch
    DataLoader, a class whose `__iter__` starts anew in each epoch, or a generator for a single epoch. A thread reads
    `prefetch` batches ahead (0: no thread). The numbers are those of the same arrays in memory, to the bit. Weights of
    batches are divided by their mean over all rows; to find it, a source without a `mean_weight` is read once more
    before the first step. If an iterable has no length, `run.stop` ends an epoch at once.

    Each epoch goes through all rows, shuffled unless `shuffle=False`, in batches of `batch_size` (None: all at once);
    the last batch may be smaller. The random order starts from `initialize`'s seed and continues from call to call. The
    optimizer starts afresh, or from the `slots` of an earlier history.

    `validation_data` (x, y) is evaluated after each epoch with the loss and `metrics`: a list of names or functions of
    `xn.metrics`, or a dict {name: one of these, or a function of your own}. Those of `xn.metrics` learn from the loss
    what outputs and targets mean. Yours is called with (prediction, target), where the target is as the loss encodes it
    (classes as one-hot rows), and returns one number. None means accuracy if the loss is one of classes.

    `sample_weight`, numbers of at least 0, weights the rows (n,) or their positions (n, ...), and `l2` adds a
    penalty on the trained parameters W with two axes or more (weights, not biases or gammas): scikit-learn's alpha.
    With a loss of reduction "mean", the loss of a batch of N rows is (Σ w L + l2/2 Σ W²) / N, where the weights w are
    divided by their mean over all n rows; with "sum" it is Σ w L + l2/2 Σ W², with the weights as given. The history's
    loss includes both, the validation loss neither.

    `callbacks` are called in the given order. `progress` shows a bar, or prints lines if the output is a file. The host
    waits for a GPU only at the end of an epoch. Full-batch epochs (`batch_size=None`) are queued several at a time, for
    about 0.1 s, unless there is `validation_data`, `checkpoint` or a callback with a hook for each epoch: see
    `Callback`. `checkpoint` saves the whole state of the run as it goes, and `resume=True` continues from there as if
    there had been no interruption: see `Checkpoint`.

    With `comm`, a communicator of mpi4py such as MPI.COMM_WORLD or CuPy's NCCLBackend, its processes train together.
    All of them call `fit` with the same network, data (arrays or sources) and settings. Each takes its share of every
    batch's rows, and all end with the same history and network as one process alone, to within rounding. Parameters,
    statistics and the random order start as in the first process. It alone calls the callbacks, computes the metrics,
    shows progress and writes files; a checkpoint resumes on any number of processes. If each process has its own part
    of the data, x is `xn.data.Shard(source)`. A loss must derive from `xn.Loss`; a layer of your own that sums over the
    batch does so by `xpnet.common.share.whole`. If the backend has kernels, all layers but BatchNorm run in them. If
    one process fails, all of them end.

    `shards`, a power of 2, cuts every batch into that many blocks of rows, which are computed separately and added up
    in a fixed order, in one process or divided among several. With shards=8, 1, 2, 4 and 8 processes then give the same
    bits if BLAS has one thread. Layers then run their plain code, without kernels.

    Ctrl-C ends the training after the current step, and `fit` returns; a second one raises KeyboardInterrupt at once.
    Raises ValueError or TypeError for unsuitable arguments before the first step, RuntimeError for a network that
    another `fit` is training, ValueError at the first batch with outputs outside [0, 1] for a loss of probabilities,
    and DivergenceError when the loss or a gradient stops being finite. The network keeps the last sound parameters.
    Warns of a loss of logits on a network that ends in Softmax or Sigmoid.

    >>> net = xn.Sequential(xn.Dense(2, 3)).initialize(seed=0)
    >>> x, y = [[1.0, 2.0], [3.0, 4.0]], [0, 2]
    >>> history = net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(0.01), epochs=20)
    >>> len(history["loss"]), history["loss"][-1] < history["loss"][0]
    (20, True)
    """
    check_not_trained(net)
    epochs = integer("fit: epochs", epochs)
    shuffle, progress = flag("fit: shuffle", shuffle), flag("fit: progress", progress)
    resume = flag("fit: resume", resume)
    methods = "init", "lookahead", "update"
    require("fit: optimizer", optimizer, methods, "xn.Adam(learning_rate=0.001)", known_optimizers)
    metrics = arguments.check_metrics("fit", metrics)
    if metrics and validation_data is None:
        raise ValueError("fit: metrics are taken on validation_data alone, and there is none; evaluate takes any data")
    arguments.check_checkpoint(checkpoint, resume)
    user_callbacks = arguments.check_callbacks(callbacks)
    arguments.check_monitored(user_callbacks, validation_data is not None)
    prefetch = integer("fit: prefetch", prefetch, least=0)
    batch_size = None if batch_size is None else integer("fit: batch_size", batch_size)
    size = 1 if comm is None else comm.Get_size()
    check_shards(shards, size)
    group = Processes(comm, in_order=shards is not None) if size > 1 else None
    if sources.is_source(x):
        sources.check_alone("fit", x, y=y, sample_weight=sample_weight)
        feed = sources.feed_of(net, x, loss, batch_size, epochs, prefetch, group)
    else:
        feed = feed_of(net, x, y, loss, batch_size, sample_weight)
        feed.group = group
    if shards and isinstance(feed, sources.Shards):
        raise ValueError("fit: shards cut whole batches, and x is a part of the data: leave out shards, or the Shard")
    objective = Objective(loss, non_negative("fit: l2", l2))
    held_out = held_out_of(net, validation_data, loss, max(batch_size or feed.rows or 1, 1024))
    if held_out:
        held_out.group = group
    arguments.warn_of_squashed_logits(net, "fit", loss)
    shown = [Progress()] if progress else []
    remembering = [callback for callback in user_callbacks if callback.memory]
    hooks: list[Callback] = [*shown, *user_callbacks, *([checkpoint] if checkpoint else [])]
    first = group is None or group.first  # only the first process calls callbacks and writes files
    if group or shards:
        check_loss_of_rows(loss)
    if group:
        hooks = [*(hooks if first else []), Following(group, user_callbacks)]

    def step_for(net: Placed) -> Step:
        if group or shards:
            from ..kernels.shared import Alone, shared_step

            shape = feed.sample.x.shape
            return shared_step(net, objective, copy.copy(optimizer), shape, group or Alone(), shards)
        return training_step(net, objective, copy.copy(optimizer), feed.sample.x.shape)

    lock = checkpoint.locked() if checkpoint and first else contextlib.nullcontext()
    with net.backend.scope(), lock, contextlib.ExitStack() as threads, contextlib.ExitStack() as claim:
        claim.enter_context(claimed(net))
        if held_out and metrics:
            held_out.check_metrics(net, loss, metrics)
        saved = None
        if checkpoint or group:
            data = feed.facts() | (held_out.facts() if held_out else {})
            settings = {"loss": loss, "l2": l2, "optimizer": optimizer, "batch_size": batch_size or feed.rows}
            settings |= {"shuffle": shuffle, "metrics": dict(metrics or {})} | ({"shards": shards} if shards else {})
            facts = facts_of(net, data, settings, remembering)
        if group:
            names = [type(callback).__name__ for callback in user_callbacks]
            more = {"backend": net.backend.name, "epochs": epochs, "callbacks": names}
            more |= {"checkpoint": checkpoint is not None, "resume": resume, "slots": slots is not None}
            group.check_same(facts | {name: repr(value) for name, value in more.items()})
            group.share_network(net)
            slots = group.from_first(lambda: slots)
        if checkpoint:
            newest = functools.partial(checkpoint.open, net, facts, optimizer, remembering, feed.steps, resume)
            saved = group.from_first(newest) if group else newest()
        if saved:
            threads.enter_context(with_threads(saved.threads))
            step = saved.begin(net, remembering, step_for)
        else:
            step = step_for(net)
            if slots is not None:
                step.resume_with(slots)
        run = Run(net, step, feed, epochs)
        one_by_one = group or held_out or net.backend.immediate or any(map(arguments.looks_at_epochs, hooks))
        most = 1 if one_by_one or feed.steps != 1 else AHEAD
        together = 1  # epochs until the host next waits for the device
        if saved:
            saved.restore(run)

        begun: list[Callback] = []

        same_end = group.same_end(net, run.history) if group else contextlib.nullcontext()
        receive = group.receive if group else run.interrupt
        with same_end, signals_stop(receive, terminate=checkpoint is not None):
            try:
                for callback in hooks:
                    begun.append(callback)
                    callback.train_begin(run)
                if saved:
                    saved.restore_callbacks(run, remembering)
                while not run.over:
                    if not run.amid_epoch:  # else `epoch_begin` was called before the interruption
                        for callback in hooks:
                            callback.epoch_begin(run)
                    order = run.order() if shuffle and feed.rows and feed.steps != 1 else None
                    began = time.perf_counter()
                    losses = run.train(order, hooks, min(together, epochs - run.epoch))
                    quick = time.perf_counter() - began < PACE
                    together = min(2 * together, most) if quick else max(1, together // 2)
                    if not losses:  # Ctrl-C: an unfinished epoch has no history
                        break
                    for epoch_loss in losses:
                        run.end_epoch()
                        run.history.record({"loss": epoch_loss})
                    if held_out is not None:
                        scores = held_out.scores(run.net, loss, metrics)
                        run.history.record({f"val_{name}": score for name, score in scores.items()})
                    for callback in hooks:
                        callback.epoch_end(run)
                if checkpoint and first:
                    checkpoint.save(run)
                run.history.slots = run.slots
            finally:
                run.publish_finite()
                claim.close()  # train_end may train on
                with contextlib.ExitStack() as ends:  # calls every `train_end`, even if another one raises
                    for callback in reversed(begun):
                        ends.callback(callback.train_end, run)
        if progress and first:
            shown[0].tell_end(run)
        if first and not any(isinstance(callback, Doctor) for callback in user_callbacks):
            warn_of_constant_outputs(run)
    net.rng = run.rng
    if checkpoint and run.signal:
        checkpoint.leave(run, tells=first)
    return run.history


def feed_of(net: Placed, x: Any, y: Any, loss: Loss, batch_size: int | None, sample_weight: Any) -> Feed:
    """Return the feed of the arrays that `fit` is given."""
    sources.check_target("fit", x, y)
    x, y = inputs.rows_of_pair(net, "fit", x, y, loss)
    slices = minibatches(x.shape[0], batch_size or x.shape[0])
    arguments.check_smallest_batch(net, x.shape, slices[-1].stop - slices[-1].start)
    return Arrays(net.backend, Batch(x, y, inputs.weights_for(net, "fit", loss, y, sample_weight)), slices)


def warn_of_constant_outputs(run: Run) -> None:
    """Warn if the trained network gives the same output, to the bit, for about 64 different rows.

    To save time, this is only computed if the loss has stopped falling.
    """
    losses = run.history.get("loss", [])
    if len(losses) < 2 or losses[-1] < AT_REST * losses[-2]:
        return
    rows = slice(0, None, max(1, run.x.shape[0] // 64))
    x, y, _ = run.data.rows(rows)
    if not rows_differ(infer(run.net, x)) and rows_differ(x) and rows_differ(y):
        warn(
            "fit: the network has ended with one output for all rows: it tells nothing apart, as if every unit of a "
            "layer were dead. Train it with callbacks=[xn.Doctor()], which says what went wrong, where, and what may "
            "mend it",
            RuntimeWarning,
        )


def rows_differ(a: Array) -> bool:
    """Whether any row differs from the first."""
    return bool(namespace(a).any(a != a[:1, ...]))
