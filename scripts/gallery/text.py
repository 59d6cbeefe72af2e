# %% [markdown]
# # Text, character by character
#
# A GPT of one block reads English prose that comes with Python, and learns which character comes next. It is small and
# trains for seconds, so its words are only half English; `scripts/train_text.py` trains larger ones.

# %%
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import numpy as np

import xpnet as xn

STEPS = 500
CONTEXT, FEATURES, HEADS = 32, 48, 4

text = " ".join("\n".join(topics.values()).split())[:200_000]
alphabet = sorted(set(text))
number = {letter: i for i, letter in enumerate(alphabet)}
ids = np.array([number[letter] for letter in text])

# %% [markdown]
# A stream of batches: an iterable that begins anew in each epoch. Each row is a piece of the text, its target the same
# piece one character later.


# %%
class Pieces:
    """Batches of random pieces of the text."""

    def __len__(self):
        return STEPS

    def __iter__(self):
        rng = np.random.default_rng(0)
        for _ in range(STEPS):
            starts = rng.integers(len(ids) - CONTEXT - 1, size=(32, 1))
            places = starts + np.arange(CONTEXT)
            yield ids[places], ids[places + 1]


attention = xn.MultiHeadAttention(FEATURES, HEADS, causal=True)
net = xn.Sequential(
    xn.Embedding(len(alphabet), FEATURES),
    xn.PositionalEmbedding(CONTEXT, FEATURES),
    xn.Residual(xn.LayerNorm(FEATURES), attention),
    xn.Residual(xn.LayerNorm(FEATURES), xn.Dense(FEATURES, 4 * FEATURES), xn.GELU(), xn.Dense(4 * FEATURES, FEATURES)),
    xn.LayerNorm(FEATURES),
    xn.Dense(FEATURES, len(alphabet)),
).initialize(seed=0)
print(net.summary((CONTEXT,)))


# %%
class Losses(xn.Callback):
    """The loss of a hundred fixed pieces, now and then."""

    def __init__(self):
        places = np.linspace(0, len(ids) - CONTEXT - 2, 100, dtype=int)[:, None] + np.arange(CONTEXT)
        self.x, self.y, self.steps, self.losses = ids[places], ids[places + 1], [], []

    def step_end(self, run):
        if run.step % 20 == 0:
            self.steps.append(run.step)
            self.losses.append(run.net.evaluate(self.x, self.y, xn.SoftmaxCrossEntropy())["loss"] / np.log(2))


losses = Losses()
schedule = xn.WarmUp(xn.CosineDecay(0.004, STEPS), 20)
net.fit(Pieces(), loss=xn.SoftmaxCrossEntropy(), optimizer=xn.AdamW(schedule), callbacks=[losses], progress=True)

# %% [markdown]
# The network continues a text by drawing one character after another from the probabilities that it gives.

# %%
rng, written = np.random.default_rng(0), list(ids[:CONTEXT])
for _ in range(200):
    logits = net.predict(np.array([written[-CONTEXT:]]))[0, -1].astype("float64")
    written.append(rng.choice(len(alphabet), p=xn.ops.softmax(logits / 0.7)))
print("".join(alphabet[i] for i in written))

# %% [markdown]
# To which earlier characters does each character attend? Each row of a map adds up to 1; darker means more.

# %%
phrase = "a function is called with the arg"[:CONTEXT]
inputs = xn.Sequential(*net.layers[:2], net.layers[2].layers[0]).predict(np.array([[number[c] for c in phrase]]))
_, cache = attention.forward(inputs)
maps = attention.attention_maps(cache)[0]

figure = plt.figure(figsize=(14, 4.4), layout="constrained")
axes = figure.subplots(1, 4, width_ratios=(1.1, 1, 1, 1))
axes[0].plot(losses.steps, losses.losses, color="#3182bd")
axes[0].set(xlabel="step", title="Bits a character", ylim=(0, None))
for head, (ax, weights) in enumerate(zip(axes[1:], maps[:3], strict=True)):
    ax.imshow(weights, cmap="Blues", vmax=0.6)
    ax.set_xticks(range(len(phrase)), phrase, fontsize=7, family="monospace")
    ax.set_yticks(range(len(phrase)), phrase, fontsize=7, family="monospace")
    ax.set_title(f"head {head + 1}: what each row attends to", fontsize=10)
figure.savefig("text.png", dpi=110)
