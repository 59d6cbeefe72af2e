"""The optimizers' steps as three rules, which the kernels have each in their own way, and the numbers they take.

With g limited already, and λ the weight decay:

    sgd                g += λ (w - ahead v);  v ← momentum v + η g;  w ← w - v
    root_mean_square   g += λ w;  s ← kept s + added g²;  w ← w - η g / √(s + eps)
    adam               g += λ w;  m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²;  w ← left w - size m / (√v + shift)
"""

from collections.abc import Callable
from typing import Any

from ..optimizers import SGD, Adagrad, Adam, AdamW, Nesterov, Optimizer, RMSprop

RULES: dict[type[Optimizer], Callable[..., tuple[Any, ...]]] = {  # the rule, λ, and its numbers in the order above
    SGD: lambda o, rate: ("sgd", o.weight_decay, 0.0, o.momentum, rate),
    Nesterov: lambda o, rate: ("sgd", o.weight_decay, o.momentum, o.momentum, rate),
    Adagrad: lambda o, rate: ("root_mean_square", o.weight_decay, 1.0, 1.0, rate, o.eps),
    RMSprop: lambda o, rate: ("root_mean_square", o.weight_decay, o.rho, 1 - o.rho, rate, o.eps),
    Adam: lambda o, rate, *step: ("adam", o.weight_decay, 1.0, *betas(o), *step),
    AdamW: lambda o, rate, *step: ("adam", 0.0, 1 - rate * o.weight_decay, *betas(o), *step),
}


def betas(o: Adam) -> tuple[float, ...]:
    """What Adam keeps and adds, of m and of v."""
    return o.beta1, 1 - o.beta1, o.beta2, 1 - o.beta2
