# %% [markdown]
# # A loss and an optimizer of your own
#
# With the quantile loss (Koenker & Bassett 1978) a network predicts not only what to expect but also how far off it may
# be: L = max(q e, (q - 1) e) with e = t - p is smallest where p lies above a fraction q of the targets. A loss consists
# of its terms and their derivative with respect to the prediction.

# %%
import matplotlib.pyplot as plt
import numpy as np

import xpnet as xn

EPOCHS = 200
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Quantiles(xn.Loss):
    """L = Σ_k max(q_k e_k, (q_k - 1) e_k), e = t - p, of an output for each of the quantiles q."""

    def __init__(self, quantiles, reduction="mean"):
        super().__init__(reduction)
        self.quantiles = quantiles

    def terms(self, prediction, target):
        xp = xn.ops.namespace(prediction)
        q = xp.asarray(self.quantiles, dtype=prediction.dtype)
        error = target - prediction
        slope = xp.where(error > 0, q, q - 1)
        return slope * error, -slope


rng = np.random.default_rng(0)
print(xn.check_gradients(Quantiles(QUANTILES), rng.normal(size=(6, 5)), rng.normal(size=(6, 5))))

# %% [markdown]
# Lion (Chen et al. 2023) steps by the sign of a running mean of gradients. An optimizer is one rule on one array;
# learning-rate schedules, clipping and checkpoints come with the base class.


# %%
class Lion(xn.Optimizer):
    """w ← w - η sign(β₁ m + (1 - β₁) g);  m ← β₂ m + (1 - β₂) g."""

    memory = ("m",)

    def __init__(self, learning_rate=0.001, beta1=0.9, beta2=0.99, **more):
        super().__init__(learning_rate, **more)
        self.beta1, self.beta2 = beta1, beta2

    def rule(self, w, g, slots, rate):
        m = slots["m"]
        step = xn.ops.sign(self.beta1 * m + (1 - self.beta1) * g)
        return w - rate * step, {"m": self.beta2 * m + (1 - self.beta2) * g}


# %%
t = rng.uniform(-3, 3, size=(1500, 1))
y = np.sin(2 * t) + (0.1 + 0.25 * (t + 3) / 3) * rng.normal(size=t.shape)

net = xn.Sequential(xn.Dense(1, 64), xn.SiLU(), xn.Dense(64, 64), xn.SiLU(), xn.Dense(64, len(QUANTILES)))
net.initialize(seed=0)
history = net.fit(
    t,
    np.repeat(y, len(QUANTILES), axis=1),
    loss=Quantiles(QUANTILES),
    optimizer=Lion(xn.CosineDecay(0.002, steps=12 * EPOCHS)),
    epochs=EPOCHS,
    batch_size=128,
)

# %%
wide = np.linspace(-3, 3, 300)[:, None]
low, lower, middle, higher, high = net.predict(wide).T
within = ((y[:, 0] > net.predict(t)[:, 0]) & (y[:, 0] < net.predict(t)[:, -1])).mean()

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), width_ratios=(1, 2), layout="constrained")
xn.plots.learning_curves(history, "loss", left)
right.scatter(t, y, s=4, color="0.5", alpha=0.6)
right.fill_between(wide[:, 0], low, high, color="#3182bd", alpha=0.2, lw=0, label="5% to 95%")
right.fill_between(wide[:, 0], lower, higher, color="#3182bd", alpha=0.35, lw=0, label="25% to 75%")
right.plot(wide[:, 0], middle, color="#d6604d", lw=2, label="median")
right.set(xlabel="t", title=f"{within:.0%} of the points lie in the wide band, meant to hold 90%")
right.legend(frameon=False)
figure.savefig("own_loss_and_optimizer.png", dpi=110)
