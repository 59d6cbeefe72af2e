"""The training step, faster: each of these takes `step.Step`'s step, and is tested against it.

    buffered.py   the step in stages that write into arrays made once: NumPy, PyTorch
    calls.py      a stage's work in the calls of NumPy or PyTorch
    jax.py        the step compiled as a whole by jax.jit, from the layers' own code: JAX

The environment variable XPNET_KERNELS chooses: "auto", the default, takes the fastest that is installed; "generic" does
without what Numba or CUDA code compiles, which jax.jit needs none of; "reference" is `step.Step` itself, the layers'
own forward and backward.
"""

import importlib
import os
from typing import TYPE_CHECKING

from ..losses import Loss
from ..optimizers import Optimizer
from ..step import Step

if TYPE_CHECKING:
    from ..network import Sequential

CHOICES = ("auto", "generic", "reference")


def training_step(net: "Sequential", loss: Loss, optimizer: Optimizer) -> Step:
    """The fastest step there is for a network where it lives."""
    choice = os.environ.get("XPNET_KERNELS") or "auto"
    if choice not in CHOICES:
        raise ValueError(f"XPNET_KERNELS is {choice!r}, expected one of {', '.join(CHOICES)}")
    module = None if choice == "reference" else STEPS.get(net.backend.name)
    if module is None:
        return Step(net, loss, optimizer)
    step: Step = importlib.import_module(f".{module}", __name__).training_step(net, loss, optimizer, choice == "auto")
    return step


STEPS = {"numpy": "buffered", "torch": "buffered", "jax": "jax"}  # the module for each backend
