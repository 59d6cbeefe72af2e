# %% [markdown]
# # One model on three backends
#
# The same lines train on NumPy, PyTorch, JAX and CuPy, from the same initial weights and with the same batches. They
# differ only by the rounding of float32, which `xn.compare_backends` measures step by step.

# %%
import matplotlib.pyplot as plt

import xpnet as xn

EPOCHS = 15


def available(names):
    """Those of the backends that can be had here."""
    for name in names:
        try:
            yield xn.get_backend(name)
        except xn.BackendUnavailableError as error:
            print(f"left out: {error}")


backends = list(available(("numpy", "torch", "jax", "cupy", "array_api_strict")))[:3]
x, y = xn.data.load_digits()

# %%
histories, nets = {}, {}
for backend in backends:
    net = xn.Sequential(xn.Dense(64, 64), xn.BatchNorm(64), xn.ReLU(), xn.Dropout(0.2), xn.Dense(64, 10))
    net.initialize(backend, seed=0)
    histories[backend.name] = net.fit(
        x[:1500],
        y[:1500],
        loss=xn.SoftmaxCrossEntropy(),
        optimizer=xn.SGD(0.05),
        epochs=EPOCHS,
        batch_size=100,
        validation_data=(x[1500:], y[1500:]),
    )
    nets[backend.name] = net
    print(f"{backend.describe()}: {histories[backend.name]}")

# %%
reference = next(iter(histories.values()))
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
styles = {"lw": [6, 3, 1.2], "color": ["#9ecae1", "#d6604d", "#238b45"]}
for i, (name, history) in enumerate(histories.items()):
    style = {key: values[i] for key, values in styles.items()}
    left.plot(range(1, EPOCHS + 1), history["val_loss"], label=name, **style)
    apart = [max(abs(a - b), 1e-9) for a, b in zip(history["loss"], reference["loss"], strict=True)]
    if i:
        right.plot(range(1, EPOCHS + 1), apart, color=style["color"], marker="o", ms=3, label=f"{name} and numpy")
left.set(xlabel="epoch", title="Validation loss: three curves that coincide")
left.legend(frameon=False)
right.set(xlabel="epoch", yscale="log", ylim=(1e-10, 1e-5), title="How far the training losses are apart (log scale)")
right.axhline(6e-8, color="0.5", ls="--", lw=1)
right.text(EPOCHS, 7e-8, "half a unit in float32's last place, at 1", ha="right", va="bottom", color="0.5", fontsize=8)
right.legend(frameon=False)
figure.savefig("three_backends.png", dpi=110)
