"""The hooks of a callback: their order, stopping, errors in them."""

import pytest

from support.training import On, X, Y, bits, fit, small

HOOKS = "train_begin", "epoch_begin", "step_end", "epoch_end", "train_end"


def test_hooks_come_in_order_each_to_every_callback_with_the_run(lib):
    net, events, weights = small(lib), [], [None]

    def hook(who, name):
        def called(run):
            events.append((who, name, run.epoch, run.step, len(run.history.get("loss", []))))
            assert run.net is net
            assert (run.epochs, run.steps_per_epoch) == (2, 3)
            changed = bits(run.net) != weights[0]
            assert changed is (weights[0] is None or (name, who) == ("step_end", "a"))
            weights[0] = bits(run.net)

        return called

    fit(net, epochs=2, callbacks=[On(**{name: hook(who, name) for name in HOOKS}) for who in "ab"])
    expected = [("train_begin", 0, 0, 0)]
    for e in range(2):
        expected += [("epoch_begin", e, 3 * e, e), *(("step_end", e, 3 * e + i, e) for i in (1, 2, 3))]
        expected += [("epoch_end", e + 1, 3 * e + 3, e + 1)]
    expected += [("train_end", 2, 6, 2)]
    assert events == [(who, *event) for event in expected for who in "ab"]


@pytest.mark.parametrize(("hook", "epochs"), [("train_begin", 0), ("step_end", 1), ("epoch_end", 1)])
def test_stop_ends_the_training_after_the_current_epoch(lib, hook, epochs):
    ended = []
    stop = On(**{hook: lambda run: setattr(run, "stop", True)}, train_end=ended.append)
    history = fit(small(lib), epochs=5, callbacks=[stop])
    assert (history.steps, len(history.get("loss", [])), len(ended)) == (3 * epochs, epochs, 1)
    assert history.interrupted is False


@pytest.mark.parametrize(("hook", "rows"), [("train_begin", 0), ("epoch_begin", 0), ("step_end", 4), ("epoch_end", 12)])
def test_an_exception_in_a_callback_propagates_and_leaves_what_was_learned(lib, hook, rows):
    net, twin, ended = small(lib), small(lib), []

    def fail(run):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fit(net, shuffle=False, callbacks=[On(**{hook: fail}, train_end=ended.append)])
    if rows:
        fit(twin, X[:rows], Y[:rows], shuffle=False)
    assert bits(net) == bits(twin)
    assert len(ended) == 1


def test_every_callback_comes_to_its_end_whatever_another_raises(lib):
    ended = []

    def end(name):
        def note(run):
            ended.append(name)
            raise RuntimeError(name)

        return note

    callbacks = [
        On(train_end=end("first")),
        On(train_end=end("second")),
        On(train_end=lambda run: ended.append("third")),
    ]
    with pytest.raises(RuntimeError):
        fit(small(lib), callbacks=callbacks)
    assert ended == ["first", "second", "third"]


def test_a_callback_that_never_began_has_no_end(lib):
    ended = []

    def fail(run):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fit(small(lib), callbacks=[On(train_begin=fail), On(train_end=ended.append)])
    assert ended == []
