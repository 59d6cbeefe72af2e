# %% [markdown]
# # A layer of your own, proved
#
# Beyond its data, a network of ReLUs continues in straight lines. The Snake of Liu, Hartwig and Ueda (2020) continues
# periodically: y = x + sin²(a x) / a, with a frequency a for each feature that is learned like a weight.
#
# forward: y = x + sin²(a x) / a
#
# backward: dx = dy (1 + sin(2 a x)), da = Σ dy (x sin(2 a x) / a - sin²(a x) / a²)

# %%
import matplotlib.pyplot as plt
import numpy as np

import xpnet as xn

EPOCHS = 400


class Snake(xn.Layer):
    """y = x + sin²(a x) / a, x (N, features)."""

    def __init__(self, features, start=2.0):
        super().__init__()
        self.features, self.start = features, start

    def initial_params(self, rng):
        return {"a": np.full(self.features, self.start)}

    def forward(self, x, training=False):
        xp, a = xn.ops.namespace(x), self.params["a"]
        return x + xp.sin(a * x) ** 2 / a, x

    def backward(self, dy, x):
        xp, a = xn.ops.namespace(x), self.params["a"]
        slope = xp.sin(2 * a * x)
        return dy * (1 + slope), {"a": xp.sum(dy * (x * slope / a - xp.sin(a * x) ** 2 / a**2), axis=0)}


# %% [markdown]
# `check_gradients` compares both derivatives with central differences, and raises an error that names the wrong entry.

# %%
print(xn.check_gradients(Snake(3), np.random.default_rng(0).normal(size=(5, 3))))

# %%
rng = np.random.default_rng(0)
t = np.sort(rng.uniform(-6, 6, size=(300, 1)), axis=0)
y = np.sin(2 * t) + 0.3 * t + 0.1 * rng.normal(size=t.shape)


def trained(activation):
    """The network with this activation, trained on t and y."""
    net = xn.Sequential(xn.Dense(1, 32), activation(), xn.Dense(32, 32), activation(), xn.Dense(32, 1))
    net.initialize(seed=0)
    decay = xn.CosineDecay(0.01, steps=10 * EPOCHS)
    net.fit(t, y, loss=xn.MeanSquaredError(), optimizer=xn.AdamW(decay, weight_decay=0.01), epochs=EPOCHS)
    return net


nets = {"ReLU": trained(xn.ReLU), "Snake": trained(lambda: Snake(32))}

# %%
wide = np.linspace(-14, 14, 800)[:, None]
figure, ax = plt.subplots(figsize=(10, 4.5), layout="constrained")
ax.axvspan(-6, 6, color="0.5", alpha=0.15, lw=0, label="where there are data")
ax.plot(wide, np.sin(2 * wide) + 0.3 * wide, color="0.5", lw=1, ls="--", label="sin(2 t) + 0.3 t")
ax.scatter(t, y, s=6, color="0.5")
for (name, net), colour in zip(nets.items(), ("#d6604d", "#3182bd"), strict=True):
    ax.plot(wide, net.predict(wide), color=colour, lw=2, label=name)
ax.set(xlabel="t", ylim=(-9, 9), title="Beyond the data, ReLU goes straight on and Snake goes on turning")
ax.legend(frameon=False, loc="upper left")
figure.savefig("own_layer.png", dpi=110)
