"""Attention. Axes: N batch, T positions, D features; h heads of d = D / h features each."""

from typing import Any

import numpy as np

from .. import ops
from ..backends import Array, class_of, device_of, floating, is_compiled, namespace
from ..common.checks import flag, integer
from ..data import minibatches
from ..initializers import glorot_uniform
from .base import Layer, Shape
from .embedding import check_sequence

BLOCK = 2**18  # entries of P that are computed at a time
BLOCK_OF_DEVICES = 2**24  # the same if each call launches a kernel


class MultiHeadAttention(Layer):
    """Self-attention: each position attends to all positions or, if `causal`, to those up to itself.

    forward:   [Q K V] = x Wᵢ + bᵢ          (N, T, 3 D), of which each head has d columns of Q, of K and of V:
               S = Q Kᵀ / √d                (N, h, T, T), -∞ above the diagonal if causal
               P = softmax(S)               (N, h, T, T), over the last axis
               O = P V                      (N, h, T, d), the heads side by side (N, T, D)
               y = O Wₒ + bₒ                (N, T, D)

    backward:  dWₒ = Σ Oᵀ dy,  dbₒ = Σ dy,  dO = dy Wₒᵀ
               dV = Pᵀ dO                   (N, h, T, d)
               dP = dO Vᵀ                   (N, h, T, T)
               dS = P (dP - r)              (N, h, T, T), r (N, h, T, 1) a number for each row
               dQ = dS K / √d               (N, h, T, d)
               dK = dSᵀ Q / √d              (N, h, T, d)
               dWᵢ = Σ xᵀ [dQ dK dV],  dbᵢ = Σ [dQ 0 dV],  dx = [dQ dK dV] Wᵢᵀ

    Softmax's Jacobian gives dS_ij = Σ_k dP_ik P_ik (δ_jk - P_ij) = P_ij (dP_ij - r_i) with
    r_i = Σ_k dP_ik P_ik = Σ_k Σ_c dO_ic V_kc P_ik = Σ_c dO_ic O_ic, which needs no sum over positions. Where P is 0,
    above the diagonal, so is dS. The sums over all positions are matrix products of (N T, D).

    A bias b of K adds the same number, q_i · b, to a whole row of S, which leaves its softmax unchanged: the gradient
    is exactly 0. A sum over the positions would give a rounding error, which Adam turns into full steps.

    x (N, T, D); `qkv_weight` Wᵢ (D, 3 D), queries, keys and values side by side and the heads within each; `qkv_bias`
    bᵢ (3 D,); `out_weight` Wₒ (D, D); `out_bias` bₒ (D,). Weights start as `glorot_uniform` draws each of the four
    (D, D), biases at zero. P, kept for backward, is the only array of its size: the others are computed for a few
    sequences at a time.

    Raises ValueError if features are not a multiple of heads.
    Source: Vaswani et al. 2017, section 3.2.

    >>> xn.MultiHeadAttention(32, heads=4, causal=True).output_shape(("N", 10, 32))
    ('N', 10, 32)
    """

    formula = (
        "[Q K V] = x Wᵢ + bᵢ, P = softmax(Q Kᵀ / √d), O = P V, y = O Wₒ + bₒ",
        "dWₒ = Σ Oᵀ dy, dbₒ = Σ dy, dO = dy Wₒᵀ, dV = Pᵀ dO, dS = P (dO Vᵀ - r), dQ = dS K / √d, dK = dSᵀ Q / √d, "
        "dWᵢ = Σ xᵀ [dQ dK dV], dbᵢ = Σ [dQ 0 dV], dx = [dQ dK dV] Wᵢᵀ",
    )

    def __init__(self, features: int, heads: int, causal: bool = False, trainable: bool = True):
        self.features = integer("MultiHeadAttention: features", features)
        self.heads = integer("MultiHeadAttention: heads", heads)
        if self.features % self.heads:
            raise ValueError(
                f"MultiHeadAttention: {self.features} features do not divide by {self.heads} heads; each head takes "
                "features / heads of them"
            )
        self.causal = flag("MultiHeadAttention: causal", causal)
        self.trainable = trainable
        self.input_shape = (None, self.features)

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        d = self.features
        return {"qkv_weight": (d, 3 * d), "qkv_bias": (3 * d,), "out_weight": (d, d), "out_bias": (d,)}

    def initial_params(self, rng: "np.random.Generator") -> dict[str, np.ndarray]:
        d = self.features
        qkv, out = np.hstack([glorot_uniform(rng, (d, d)) for _ in range(3)]), glorot_uniform(rng, (d, d))
        return {"qkv_weight": qkv, "qkv_bias": np.zeros(3 * d), "out_weight": out, "out_bias": np.zeros(d)}

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        y, kept = self._attend(x, [])
        return y, (self, y.shape, x, *kept)

    def _infer(self, x: Array) -> Array:
        return self._attend(x, None)[0]

    def _attend(self, x: Array, kept: list[Array] | None) -> tuple[Array, tuple[Any, ...]]:
        """Return y, and ([Q K V], P in blocks, O) for backward; the blocks are appended to `kept` unless it is None."""
        xp, params = floating(x, self), self.params
        check_sequence(self, x.shape, self.features, batched=True)
        qkv = ops.matrix(x) @ params["qkv_weight"]
        qkv += params["qkv_bias"]
        qkv = xp.reshape(qkv, (*x.shape[:2], 3 * self.features))
        if self.causal:
            position = xp.arange(x.shape[1], device=device_of(x))
            visible = position[:, None] >= position  # (T, T)
        outputs = []
        for rows in self._blocks(x):
            q, k, v = self._split(qkv[rows, ...], 3)  # (n, h, T, d)
            s = q * self._scale @ xp.matrix_transpose(k)  # (n, h, T, T)
            if self.causal:
                s = xp.where(visible, s, -xp.inf)
            p = ops.softmax(s)
            outputs.append(self._joined([p @ v]))
            if kept is not None:
                kept.append(p)
        o = outputs[0] if len(outputs) == 1 else xp.concat(outputs, axis=0)  # (N, T, D)
        y = ops.matrix(o) @ params["out_weight"]
        y += params["out_bias"]
        return xp.reshape(y, x.shape), (qkv, kept, o)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        dqkv, grads = self._backward(dy, cache)
        dx = ops.matrix(dqkv) @ self.params["qkv_weight"].T
        return namespace(dx).reshape(dx, dy.shape), grads

    def backward_params(self, dy: Array, cache: Any) -> dict[str, Array]:
        return self._backward(dy, cache)[1]

    def _backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        """Return [dQ dK dV], (N, T, 3 D), and the gradients."""
        x, qkv, kept, o = self.saved(cache, dy)
        xp, flat = namespace(dy), ops.matrix(dy)
        do = xp.reshape(flat @ self.params["out_weight"].T, dy.shape)
        parts = []
        for rows, p in zip(self._blocks(x), kept, strict=True):
            q, k, v = self._split(qkv[rows, ...], 3)
            (do_heads,) = self._split(do[rows, ...], 1)
            (r,) = self._split(do[rows, ...] * o[rows, ...], 1)
            ds = do_heads @ xp.matrix_transpose(v)  # dP
            ds -= xp.sum(r, axis=-1, keepdims=True)
            ds *= p
            dq = ds @ k * self._scale
            dk = xp.matrix_transpose(ds) @ (q * self._scale)
            parts.append(self._joined([dq, dk, xp.matrix_transpose(p) @ do_heads]))
        dqkv = parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
        d, dqkv_rows = self.features, ops.matrix(dqkv)
        bias = ops.sum_over_batch(dqkv_rows)
        grads = {
            "qkv_weight": ops.matrix(x).T @ dqkv_rows,
            "qkv_bias": xp.concat([bias[:d], xp.zeros_like(bias[:d]), bias[2 * d :]]),
            "out_weight": ops.matrix(o).T @ flat,
            "out_bias": ops.sum_over_batch(flat),
        }
        return dqkv, grads

    def attention_maps(self, cache: Any) -> Array:
        """Return P, (N, h, T, T), from the cache of a forward: how much each position attends to each."""
        _, _, parts, _ = self.kept(cache)
        return namespace(parts[0]).concat(parts, axis=0)

    @property
    def _scale(self) -> float:
        """1 / √d."""
        return float((self.features // self.heads) ** -0.5)

    def _split(self, a: Array, parts: int) -> list[Array]:
        """Split (n, T, parts D) into arrays (n, h, T, d), as views where the library has them."""
        xp, (n, t, _) = namespace(a), a.shape
        heads = xp.reshape(a, (n, t, parts, self.heads, self.features // self.heads))
        return [xp.permute_dims(heads[:, :, i, :, :], (0, 2, 1, 3)) for i in range(parts)]

    def _joined(self, parts: list[Array]) -> Array:
        """Invert `_split`."""
        xp, (n, h, t, d) = namespace(parts[0]), parts[0].shape
        heads = xp.stack([xp.permute_dims(part, (0, 2, 1, 3)) for part in parts], axis=2)  # (n, T, parts, h, d)
        return xp.reshape(heads, (n, t, len(parts) * h * d))

    def _blocks(self, x: Array) -> list[slice]:
        """Return slices of the sequences, for which P is computed one after another."""
        xp, (n, t, _) = namespace(x), x.shape
        if is_compiled(xp):  # the compiler decides how to split
            return [slice(0, n)]
        most = BLOCK if class_of(xp).at_hand(x) else BLOCK_OF_DEVICES
        return minibatches(n, max(1, most // (self.heads * t * t))) or [slice(0, 0)]

    def output_shape(self, input_shape: Shape) -> Shape:
        check_sequence(self, input_shape, self.features)
        return input_shape
