# %% [markdown]
# # In a scikit-learn pipeline
#
# `xpnet.estimators.MLPClassifier` takes the place of scikit-learn's in pipelines, cross-validation and searches. What
# it adds, such as dropout and the settings of an optimizer, can be searched like any other parameter.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import xpnet as xn
from xpnet.estimators import MLPClassifier

EPOCHS = 30
FOLDS = 5
warnings.filterwarnings("ignore", category=ConvergenceWarning)  # each is trained for 30 epochs, done or not

data = load_breast_cancer()
x_train, x_test, y_train, y_test = train_test_split(
    data.data, data.target, test_size=0.3, random_state=0, stratify=data.target
)

# %%
model = MLPClassifier(
    (32,),
    batch_norm=True,
    max_iter=EPOCHS,
    batch_size=64,
    optimizer=xn.Adam(0.01),
    random_state=0,
)
grid = {
    "mlpclassifier__dropout": [0.0, 0.25, 0.5],
    "mlpclassifier__optimizer__learning_rate": [0.0003, 0.001, 0.003, 0.01],
}
search = GridSearchCV(make_pipeline(StandardScaler(), model), grid, scoring="neg_log_loss", cv=FOLDS)
search.fit(x_train, y_train)
print(search.best_params_, f"{search.best_estimator_.score(x_test, y_test):.1%} of the test right")

# %%
rates, dropouts = grid["mlpclassifier__optimizer__learning_rate"], grid["mlpclassifier__dropout"]
losses = -search.cv_results_["mean_test_score"].reshape(len(dropouts), len(rates))
yes = search.predict_proba(x_test)[:, 1]

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
image = left.imshow(losses, cmap="viridis_r", aspect="auto")
for (row, column), value in np.ndenumerate(losses):
    colour = "black" if value < losses.mean() else "white"
    left.text(column, row, f"{value:.3f}", ha="center", va="center", color=colour)
left.set_xticks(range(len(rates)), rates)
left.set_yticks(range(len(dropouts)), dropouts)
left.set(xlabel="learning rate", ylabel="dropout", title=f"Cross-validated log loss, {FOLDS} folds")
for label, colour in (0, "#d6604d"), (1, "#3182bd"):
    right.hist(yes[y_test == label], bins=30, range=(0, 1), color=colour, alpha=0.7, label=data.target_names[label])
right.set(xlabel="probability of a benign tumour", yscale="log", ylabel="patients of the test, log scale")
right.set_title(f"The best model: {search.best_estimator_.score(x_test, y_test):.1%} right")
right.legend(frameon=False)
figure.savefig("sklearn_pipeline.png", dpi=110)
