# %% [markdown]
# # Digits, and what a convolutional network sees in them
#
# A network of two convolutions learns scikit-learn's 8 x 8 digits in some seconds. Its feature maps are the outputs of
# a network that ends earlier: `xn.Sequential(*net.layers[:4])` shares the layers, so nothing is copied.

# %%
import matplotlib.pyplot as plt
import numpy as np

import xpnet as xn

EPOCHS = 12

x, y = xn.data.load_digits()
x_train, x_test, y_train, y_test = x[:1500], x[1500:], y[:1500], y[1500:]

# %%
net = xn.Sequential(
    xn.Reshape(1, 8, 8),
    xn.Conv2d(1, 16, 3, padding="same"),
    xn.BatchNorm(16, momentum=0.9),
    xn.ReLU(),
    xn.MaxPool2d(2),
    xn.Conv2d(16, 32, 3, padding="same"),
    xn.BatchNorm(32, momentum=0.9),
    xn.ReLU(),
    xn.MaxPool2d(2),
    xn.Flatten(),
    xn.Dropout(0.4),
    xn.Dense(128, 10),
).initialize(seed=0)
net.summary()

# %%
history = net.fit(
    x_train,
    y_train,
    loss=xn.SoftmaxCrossEntropy(),
    optimizer=xn.Adam(xn.CosineDecay(0.01, steps=24 * EPOCHS)),
    epochs=EPOCHS,
    batch_size=64,
    validation_data=(x_test, y_test),
    progress=True,
)
print(f"{history['val_accuracy'][-1]:.1%} of {len(y_test)} digits right")

# %% [markdown]
# The maps of the first convolution still show the digit, with its strokes by direction. Those of the second show where
# there is something by which the last layer tells digits apart.

# %%
shown = [int(np.flatnonzero(y_test == digit)[0]) for digit in (0, 2, 4, 7)]
first = xn.Sequential(*net.layers[:4]).predict(x_test[shown])
second = xn.Sequential(*net.layers[:8]).predict(x_test[shown])

figure, axes = plt.subplots(len(shown), 13, figsize=(13, 4.8))
figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.86)
for row, i, early, late in zip(axes, shown, first, second, strict=True):
    images = [x_test[i].reshape(8, 8), *early[:6], *late[:6]]
    for ax, image, colours in zip(row, images, ["gray_r", *["viridis"] * 6, *["plasma"] * 6], strict=True):
        ax.imshow(image, cmap=colours)
        ax.axis("off")
for column, title in (0, "digit"), (1, "first convolution"), (7, "second convolution, after pooling"):
    axes[0, column].set_title(title, loc="left", fontsize=10)
figure.suptitle(f"{history['val_accuracy'][-1]:.1%} right: four digits, and six maps each of two convolutions")
figure.savefig("digits_by_a_cnn.png", dpi=110)
