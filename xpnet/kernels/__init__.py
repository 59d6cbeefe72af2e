"""The training step, and the faster forms of it, each of which is tested against the plain one.

    reference.py   the plain step, which calls the layers' own forward and backward
    shared.py      the steps for one of several processes, or in shards
    planner.py     the step in stages that write into arrays made once: NumPy, PyTorch, CuPy
    stages.py      the stages: what they have in common, those of any layer, and the ones of every family
    blocks.py      those about the branches of Residual and Branches
    table.py       the pointwise functions and the optimizers' rules, as formulas
    formulas.py    formulas made into array calls, Python for Numba, CUDA
    cpu/           a family of stages in the calls of NumPy or PyTorch (calls.py), a file for each operation
    cpu/torch/     a family for PyTorch: those calls, and its own convolution and products
    cpu/numba/     a family in loops that Numba compiles, likewise
    cuda/          a family in CUDA kernels (kernels.py), likewise
    jit.py         the step compiled as a whole by jax.jit, from the layers' own code: JAX

A fast path for a new layer is a class of stages in a file of its own, in a family's folder, and its place in the
family's `stages`. A pointwise function is a row of table.py.

The environment variable XPNET_KERNELS chooses: "auto", the default, takes the fastest that is installed; "generic"
turns off what Numba or CUDA code compiles; "reference" is the plain step. jax.jit needs neither Numba nor CUDA code.
"""

import importlib
import os

from ..layers.base import Shape
from ..layers.placed import Placed
from ..losses.losses import Loss
from ..optimizers import Optimizer
from .reference import Step

CHOICES = ("auto", "generic", "reference")


def training_step(net: Placed, loss: Loss, optimizer: Optimizer, shape: Shape = ("N", "D")) -> Step:
    """The fastest step there is for a network where it lives, and an x of this shape."""
    module, compiled = step_for(net)
    if module is None:
        return Step(net, loss, optimizer)
    step: Step = importlib.import_module(f".{module}", __name__).training_step(net, loss, optimizer, compiled, shape)
    return step


def step_for(net: Placed) -> tuple[str | None, bool]:
    """The module of a network's step, None for the plain one, and whether it may have compiled kernels."""
    choice = os.environ.get("XPNET_KERNELS") or "auto"
    if choice not in CHOICES:
        raise ValueError(f"XPNET_KERNELS is {choice!r}, expected one of {', '.join(CHOICES)}")
    return None if choice == "reference" else STEPS.get(net.backend.name), choice == "auto"


# the module for each backend
STEPS = {"numpy": "planner", "torch": "planner", "cupy": "planner", "jax": "jit"}
