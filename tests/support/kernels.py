"""A family's stages, called like functions: each is bound to a workspace and to its arguments."""

import itertools

import numpy as np

import xpnet as xn
from xpnet.kernels.families import kernels_for
from xpnet.kernels.stages import Part, Site, Stage, Vector, Workspace, in_memory_order

# of matrix products (m, k) by (k, n)
EDGES = [
    (1, 1, 1),
    (3, 5, 1),
    (1, 200, 1),
    (128, 128, 128),
    (100, 100, 100),
    (100, 100, 101),
    (101, 100, 100),
    (100, 101, 100),
]
LONG = [
    (m, k, n)
    for long in (2003, 4194, 4195)  # of one axis, beside two that make it less, about and more than 2²² in all
    for m, k, n in itertools.permutations((long, 20, 50))
    if m != 50 and k != 50
] + [(1, 2000, 1999), (1999, 1, 1500), (128, 64, 1500), (64, 128, 600), (1500, 64, 32), (64, 1500, 32), (32, 1500, 64)]
SIZES = EDGES + LONG


class Given(Stage):
    """The stage before, of a Dense, whose y is a test's array."""

    y_read_once = True

    def take_bias(self):
        """Take over the bias, if the test has none."""
        self.bias = "" if self.joins else self.bias
        return self.joins


class Operations:
    """The stages of a family as functions of arrays (H, N). Backward belongs to the last forward; dz may be dy."""

    def __init__(self, family, dtype, backend):
        self.family, self.backend, self.dtype = family, backend, backend.dtype(dtype)
        self.update = lambda optimizer, *arrays: family.optimizer(optimizer)(*arrays)
        self.look_ahead = lambda optimizer, *arrays: family.optimizer(optimizer).look_ahead(*arrays)
        self.product = family.product
        self.new_workspace()

    def new_workspace(self):
        self.work = Workspace(self.backend.xp, self.dtype, self.backend.device)
        self.site = Site(self.family, lambda: self.work, self.work)

    def _forward(self, layers, z, arrays, own=True, batch=()):
        before = Given(self.site, None)
        before.joins, before.y_and_ones = arrays.get("bias") is None, z
        before.bias = "bias" if "bias" in arrays else ""
        parts = [Part(str(i), layer, 2, ()) for i, layer in enumerate(layers) if layer]
        stage = next(filter(None, (kind.take(self.site, before, parts) for kind in self.family.stages)))
        stage.batch = batch
        self.params, self.stage = stage.views(Vector(None, arrays, [])), stage.bound(z, before if own else None)
        return self.stage.forward(z, self.params)

    def _backward(self, dy, dz, arrays):
        if dz is not dy:
            dz[...] = dy
        return self.stage.backward(dz, self.params, self.stage.views(Vector(None, arrays, [])))

    def activation(self, f, z, bias):
        return self._forward([f], z, {"bias": bias})

    def activation_backward(self, dy, dz, dbias):
        return self._backward(dy, dz, {"bias": dbias})

    def batch_norm(self, f, z, gamma, beta, eps, mean, var, own, bias=None):
        arrays = {"0.gamma": gamma, "0.beta": beta, "bias": bias}
        return self._forward([xn.BatchNorm(z.shape[0], eps=eps), f], z, arrays, own, (mean, var))

    def batch_norm_backward(self, dy, dz, dgamma, dbeta, dbias=None):
        return self._backward(dy, dz, {"0.gamma": dgamma, "0.beta": dbeta, "bias": dbias})

    def layer_norm(self, z, gamma, beta, eps):
        return self._forward([xn.LayerNorm(z.shape[0], eps=eps)], z, {"0.gamma": gamma, "0.beta": beta})

    def layer_norm_backward(self, dy, dz, dgamma, dbeta):
        return self._backward(dy, dz, {"0.gamma": dgamma, "0.beta": dbeta})

    def softmax_cross_entropy(self, z, target, scale):
        stage = self.family.loss(self.site, xn.SoftmaxCrossEntropy(), 2)
        stage.share = lambda n: scale
        return stage.bound(z, None).forward(z, target)


def through_a_stage(backend, layer, x, dy, params):
    """Return y of a layer's first stage, and the derivatives with respect to x and the stage's parameters, by name.

    x, dy and `params` are NumPy arrays. A bias that the stage does not add is left to the next stage.
    """
    family, dtype = kernels_for(backend, True), backend.asarray(dy).dtype

    def workspace():
        return Workspace(backend.xp, dtype, backend.device)

    def turned(a):
        return a.transpose(range(a.ndim)[::-1])

    arrays = {f"0.{name}": backend.asarray(a) for name, a in params.items()}
    places = {name: backend.xp.full_like(a, np.nan) for name, a in arrays.items()}
    site, part = Site(family, workspace, workspace()), Part("0", layer, x.ndim, ())
    stage = next(filter(None, (kind.take(site, None, [part]) for kind in family.stages)))
    on_x = turned(backend.asarray(x))
    stage = stage.bound(on_x, None)
    own = [stage.views(Vector(None, each, [])) for each in (arrays, places)]
    found = {"y": turned(backend.to_numpy(stage.forward(on_x, own[0])))}
    given = in_memory_order(workspace(), "dy", dy.shape[::-1], stage.images)
    given[...] = turned(backend.asarray(dy))
    dx = stage.backward(given, *own)
    found |= {"x": turned(backend.to_numpy(dx))} if dx is not None else {}
    return found | {name.removeprefix("0."): backend.to_numpy(places[name]) for name in stage.names}
