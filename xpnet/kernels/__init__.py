"""The training step and inference, in the plain form and in faster ones that are tested against it.

    reference.py   the plain step, which calls the layers' own forward and backward
    shared.py      steps of one of several processes, or in shards
    planner.py     the step in stages that write into preallocated arrays: NumPy, PyTorch, CuPy
    families.py    the choice of a family of kernels
    parts.py       the division of a network into parts, from which stages are made
    passes.py      the passes through the stages, in threads too
    inference.py   inference of images and sequences in the same stages: NumPy, PyTorch
    stages.py      the stages: their base class, and those that all families share
    blocks.py      stages for the branches of Residual and Branches
    table.py       pointwise functions and optimizers' rules as formulas
    formulas.py    translation of formulas to array calls, to Python for Numba, and to CUDA
    cpu/           a family of stages in calls of NumPy or PyTorch (calls.py), a file for each operation
    cpu/torch/     a family for PyTorch: those calls, and its own convolution and products
    cpu/numba/     a family in loops that Numba compiles, a file for each operation
    cuda/          a family in CUDA kernels (kernels.py), a file for each operation
    jit.py         the step and inference, each compiled as a whole by jax.jit, from the layers' own code: JAX

A fast path for a new layer is a subclass of Stage in a file of its own, in a family's folder, and an entry in the
family's `stages`. A pointwise function is a row of table.py.

The environment variable XPNET_KERNELS selects the step: "auto", the default, takes the fastest that is installed;
"generic" turns off code compiled by Numba or for CUDA (on JAX, it changes nothing); "reference" takes the plain step.
"""

import importlib
import os

from ..backends import Array
from ..layers.base import Shape
from ..layers.placed import Placed
from ..layers.shape import Reshape
from ..losses.losses import Loss
from ..optimizers import Optimizer
from .reference import Step

CHOICES = ("auto", "generic", "reference")


def training_step(net: Placed, loss: Loss, optimizer: Optimizer, shape: Shape = ("N", "D")) -> Step:
    """Return the fastest step for a network on its backend, and an x of this shape."""
    module, compiled = step_for(net)
    if module is None:
        return Step(net, loss, optimizer)
    step: Step = importlib.import_module(f".{module}", __name__).training_step(net, loss, optimizer, compiled, shape)
    return step


def infer(net: Placed, x: Array) -> Array:
    """Return the outputs of a network for x, (N, ...), in inference.

    On JAX it is compiled. On NumPy and PyTorch many images or sequences go through stages, if the network takes them,
    makes them of ids, or begins with a Reshape. Otherwise, the layers' own code runs.
    """
    module = INFERENCE.get(net.backend.name)
    if module == "inference" and x.ndim == 2 and net.takes == "floats":
        module = module if net.layers and type(net.layers[0]) is Reshape else None
    step, compiled = step_for(net) if module else (None, False)
    if step is None:
        return net._infer(x)
    y: Array = importlib.import_module(f".{module}", __name__).infer(net, x, compiled)
    return y


def step_for(net: Placed) -> tuple[str | None, bool]:
    """Return the module of a network's step, None for the plain one, and whether it may use compiled kernels."""
    choice = os.environ.get("XPNET_KERNELS") or "auto"
    if choice not in CHOICES:
        raise ValueError(f"XPNET_KERNELS is {choice!r}, expected one of {', '.join(CHOICES)}")
    return None if choice == "reference" else STEPS.get(net.backend.name), choice == "auto"


# the modules of the step and of inference for each backend
STEPS = {"numpy": "planner", "torch": "planner", "cupy": "planner", "jax": "jit"}
INFERENCE = {"numpy": "inference", "torch": "inference", "jax": "jit"}
