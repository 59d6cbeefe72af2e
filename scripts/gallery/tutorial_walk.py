# %% [markdown]
# # A walk through one training step
#
# The network of the tutorial that xpnet grew out of: dense layers, batch norm, a sigmoid, a ReLU. `net.explain` takes a
# batch forward and backward through it and shows every array with its formula, as a derivation on paper does.

# %%
import xpnet as xn

STEPS = 300

x, y = xn.data.load_digits()
net = xn.Sequential(
    xn.Dense(64, 32),
    xn.BatchNorm(32),
    xn.Sigmoid(),
    xn.Dense(32, 16),
    xn.BatchNorm(16),
    xn.ReLU(),
    xn.Dense(16, 10),
    xn.BatchNorm(10),
).initialize(seed=0)
loss = xn.SoftmaxCrossEntropy()

# %%
history = net.fit(x, y, loss=loss, optimizer=xn.Adam(0.01), epochs=STEPS, batch_size=None)
print(history)

# %%
explanation = net.explain(x[:200], y[:200], loss)
print(explanation)

# %% [markdown]
# Every array is available, so each formula can be checked. The gradient of the loss with respect to the logits, for
# example, is the difference of prediction and target, p - t, divided by the number of rows.

# %%
logits = explanation["7"].y
targets = xn.ops.one_hot(y[:200], 10, logits.dtype)
difference = abs(explanation["7"].dy - (xn.ops.softmax(logits) - targets) / 200).max()
print(f"p - t over the rows, and what backward says: they differ by at most {difference:.0e}")

# %%
figure = explanation.plot()
figure.suptitle(f"200 digits after {STEPS} steps: what each layer gives, and what the loss says back")
figure.savefig("tutorial_walk.png", dpi=90)
