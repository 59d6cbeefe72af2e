"""Ctrl-C during training: after the step, at once the second time, and left alone where a program handles it."""

import signal

import pytest

import xpnet as xn
from support.training import On, bits, fit, interrupt, small


@pytest.mark.parametrize(("step", "epochs"), [(1, 0), (3, 1), (4, 1)])
def test_ctrl_c_ends_the_training_after_the_step(lib, ctrl_c, step, epochs):
    net, twin = small(lib), small(lib)
    history = fit(net, epochs=10, callbacks=[interrupt(step)])
    assert history.interrupted
    assert history.steps == step
    assert [len(values) for values in history.values()] == [epochs] * bool(epochs)
    assert signal.getsignal(signal.SIGINT) is ctrl_c

    def stop(run):
        if run.step == step:
            raise StopIteration

    with pytest.raises(StopIteration):
        fit(twin, epochs=10, callbacks=[On(step_end=stop)])
    assert bits(net) == bits(twin)
    assert fit(net).interrupted is False
    assert signal.getsignal(signal.SIGINT) is ctrl_c


@pytest.mark.parametrize("step", [1, 32, 40])
def test_ctrl_c_ends_full_batches_after_the_step(lib, ctrl_c, step):
    def rate(number):
        if number == step - 1:
            signal.raise_signal(signal.SIGINT)
        return 0.1

    net, twin = small(lib), small(lib)
    history = fit(net, optimizer=xn.SGD(rate), batch_size=None, epochs=70)
    assert history.interrupted
    assert history.steps == step
    assert history == fit(twin, batch_size=None, epochs=step)
    assert bits(net) == bits(twin)


def test_a_second_ctrl_c_raises_at_once(lib, ctrl_c):
    net, twin, steps = small(lib), small(lib), []
    with pytest.raises(KeyboardInterrupt):
        fit(net, epochs=10, callbacks=[interrupt(4, times=2), On(step_end=lambda run: steps.append(run.step))])
    assert steps == [1, 2, 3]
    assert signal.getsignal(signal.SIGINT) is ctrl_c
    fit(twin, epochs=10, callbacks=[interrupt(4)])  # whose fit ends after that step
    assert bits(net) == bits(twin)


@pytest.mark.parametrize("step", [0, 2, 3, 5])  # in the first epoch or the second, at its first step or the last
def test_an_interruption_within_a_step_keeps_the_parameters_of_the_last(lib, step):
    def rate(number):
        if number == step:
            raise KeyboardInterrupt
        return 0.1

    net, twin = small(lib), small(lib)
    with pytest.raises(KeyboardInterrupt):
        fit(net, optimizer=xn.SGD(rate), epochs=10)

    def stop(run):
        run.history.interrupted = run.step == step

    if step:
        fit(twin, epochs=10, callbacks=[On(step_end=stop)])
    assert bits(net) == bits(twin)


def test_a_programs_own_handler_of_ctrl_c_is_left_to_it(lib, ctrl_c):
    caught = []
    mine = lambda number, frame: caught.append(number)  # noqa: E731
    signal.signal(signal.SIGINT, mine)
    history = fit(small(lib), epochs=2, callbacks=[interrupt(2)])
    assert (caught, history.steps, history.interrupted) == ([signal.SIGINT], 6, False)
    assert signal.getsignal(signal.SIGINT) is mine
