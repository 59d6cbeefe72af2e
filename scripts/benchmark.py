"""Time a training step of the tutorial's job, in float64: xpnet beside a plain line-by-line NumPy version.

The contestants take turns, a few steps each, so that a machine that slows down slows both; medians of the turns.
"""

import argparse
import statistics
import time

import numpy as np
from threadpoolctl import threadpool_limits
from train_digits import TRAIN, tutorial_adam, tutorial_network

import xpnet as xn


class Plain:
    """The same step as a tutorial would write it, one line after the other."""

    def __init__(self, net: xn.Sequential, x: np.ndarray, y: np.ndarray, learning_rate: float = 0.001):
        self.x, self.y, self.learning_rate = x, y, learning_rate
        self.p = {name: np.ascontiguousarray(a) for name, a in net.params.items()}
        self.m = {name: np.zeros_like(a) for name, a in self.p.items()}
        self.v = {name: np.zeros_like(a) for name, a in self.p.items()}
        self.mean, self.var = {}, {}

    def batch_norm(self, i, x, eps=0.01, momentum=0.99):
        mean = np.mean(x, axis=0)
        var = np.var(x, axis=0)
        self.mean[i] = momentum * self.mean.get(i, mean) + (1 - momentum) * mean
        self.var[i] = momentum * self.var.get(i, var) + (1 - momentum) * var
        centred = x - mean
        scale = 1 / np.sqrt(var + eps)
        normed = centred * scale
        return self.p[f"{i}.gamma"] * normed + self.p[f"{i}.beta"], (centred, scale, normed)

    def batch_norm_backward(self, i, dy, cache, g):
        centred, scale, normed = cache
        n = dy.shape[0]
        g[f"{i}.gamma"] = np.sum(dy * normed, axis=0)
        g[f"{i}.beta"] = np.sum(dy, axis=0)
        inner = n * dy - np.sum(dy, axis=0) - centred * scale**2 * np.sum(dy * centred, axis=0)
        return (1 / n) * self.p[f"{i}.gamma"] * scale * inner

    def step(self):
        p, g = self.p, {}
        a0, c1 = self.batch_norm(1, self.x @ p["0.weight"] + p["0.bias"])
        h0 = 1 / (1 + np.exp(-a0))
        a1, c4 = self.batch_norm(4, h0 @ p["3.weight"] + p["3.bias"])
        h1 = np.where(a1 >= 0, a1, 0)
        logits, c7 = self.batch_norm(7, h1 @ p["6.weight"] + p["6.bias"])
        e = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
        prob = e / np.sum(e, axis=-1, keepdims=True)
        loss = -np.sum(self.y * np.log(np.clip(prob, 1e-15, 1)))

        dz = self.batch_norm_backward(7, prob - self.y, c7, g)
        g["6.weight"] = h1.T @ dz
        g["6.bias"] = np.sum(dz, axis=0)
        dh1 = dz @ p["6.weight"].T
        dz = self.batch_norm_backward(4, dh1 * np.where(a1 >= 0, 1, 0), c4, g)
        g["3.weight"] = h0.T @ dz
        g["3.bias"] = np.sum(dz, axis=0)
        dh0 = dz @ p["3.weight"].T
        dz = self.batch_norm_backward(1, dh0 * h0 * (1 - h0), c1, g)
        g["0.weight"] = self.x.T @ dz
        g["0.bias"] = np.sum(dz, axis=0)

        for name in p:
            self.m[name] = 0.9 * self.m[name] + (1 - 0.9) * g[name]
            self.v[name] = 0.999 * self.v[name] + (1 - 0.999) * np.power(g[name], 2)
            m_hat = self.m[name] / (1 - 0.9)
            v_hat = self.v[name] / (1 - 0.999)
            p[name] = p[name] - self.learning_rate * m_hat / (np.sqrt(v_hat) + 1e-8)
        return loss


def main() -> None:
    """Time the contestants in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="steps in a turn")
    parser.add_argument("--turns", type=int, default=15, help="turns of each contestant")
    options = parser.parse_args()

    x, y = xn.data.load_digits()
    x, y = x[:TRAIN] * 16.0, y[:TRAIN]
    net = tutorial_network().initialize("numpy", "float64")
    plain = Plain(net, x, np.eye(10)[y])
    how = {"loss": xn.SoftmaxCrossEntropy(reduction="sum"), "batch_size": None, "epochs": options.steps}

    def xpnet_turn() -> float:
        return net.fit(x, y, optimizer=tutorial_adam(0.001), **how)["loss"][0]

    def plain_turn() -> float:
        losses = [plain.step() for _ in range(options.steps)]
        return losses[0]

    contestants = {"xpnet": xpnet_turn, "plain NumPy": plain_turn}
    firsts = [turn() for turn in contestants.values()]
    np.testing.assert_allclose(*firsts, rtol=1e-9, err_msg="the contestants do not do the same work")
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.turns):
        for name, turn in contestants.items():
            began = time.perf_counter()
            turn()
            times[name].append(1000 * (time.perf_counter() - began) / options.steps)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{net.backend.describe()}, float64, batch of {TRAIN:,}; {options.turns} turns of {options.steps} steps")
    for name, median in medians.items():
        print(f"{name:<12} {median:7.3f} ms/step   {median / medians['plain NumPy']:5.2f} of plain NumPy's")


if __name__ == "__main__":
    with threadpool_limits(limits=1):
        main()
