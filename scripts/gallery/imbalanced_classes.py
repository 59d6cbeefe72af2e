# %% [markdown]
# # Imbalanced classes
#
# One of two interleaved half moons has fifty times as many points as the other. A network that is right for 99% of all
# points may still miss much of the small class. Sample weights correct this, and F1 is a metric that does not hide it.

# %%
import matplotlib.pyplot as plt
import numpy as np

import xpnet as xn

EPOCHS = 15


def moons(rng, many, few):
    """Points (n, 2) on two half moons, and which moon."""
    y = np.repeat([0, 1], [many, few])
    angle = rng.uniform(0, np.pi, size=y.shape)
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x[y == 1] = [1, 0.4] - x[y == 1]
    return x + 0.3 * rng.normal(size=x.shape), y


rng = np.random.default_rng(0)
x, y = moons(rng, 2000, 40)
x_test, y_test = moons(rng, 2000, 400)

# %%
nets, scores = {}, {}
for name, weights in (("all rows alike", [1, 1]), ("the rare class counts 50 times", [1, 50])):
    net = xn.Sequential(xn.Dense(2, 32), xn.SiLU(), xn.Dense(32, 32), xn.SiLU(), xn.Dense(32, 2)).initialize(seed=0)
    net.fit(
        x,
        y,
        loss=xn.SoftmaxCrossEntropy(),
        optimizer=xn.Adam(xn.CosineDecay(0.01, steps=32 * EPOCHS)),
        epochs=EPOCHS,
        batch_size=64,
        sample_weight=np.array(weights)[y],
    )
    nets[name], logits = net, net.predict(x_test)
    found = (logits.argmax(axis=1) == 1)[y_test == 1].mean()
    scores[name] = f"finds {found:.0%} of the rare class, F1 {float(xn.f1(logits, y_test)):.2f}"
    print(f"{name}: {scores[name]}, accuracy {float(xn.accuracy(logits, y_test)):.2f}")

# %%
grid = np.stack(np.meshgrid(np.linspace(-1.8, 2.8, 200), np.linspace(-1.4, 1.8, 160)), axis=-1)
figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True, layout="constrained")
for ax, (name, net) in zip(axes, nets.items(), strict=True):
    rare = xn.ops.softmax(net.predict(grid.reshape(-1, 2)))[:, 1].reshape(grid.shape[:2])
    drawn = ax.contourf(grid[..., 0], grid[..., 1], rare, levels=np.linspace(0, 1, 11), cmap="RdBu_r", alpha=0.7)
    ax.contour(grid[..., 0], grid[..., 1], rare, levels=[0.5], colors="black", linewidths=1)
    ax.scatter(*x[y == 0].T, s=3, color="#2166ac")
    ax.scatter(*x[y == 1].T, s=16, color="#b2182b", edgecolor="white", lw=0.5)
    ax.set(xlim=(-1.8, 2.8), ylim=(-1.4, 1.8))
    ax.set_title(f"{name}:\n{scores[name]}", fontsize=11)
figure.colorbar(drawn, ax=axes, label="probability of the rare class")
figure.savefig("imbalanced_classes.png", dpi=110)
