"""The source of the CUDA kernels: the files beside this one, with the formulas of table.py in them."""

import functools
from pathlib import Path

from ...optimizers import AdamW, Optimizer
from ..formulas import cuda, times
from ..table import POINTWISE, RULES, SPARED, Pointwise, lines_of, numbers_in


@functools.cache
def source() -> str:
    """All of it, without the letters in comments that CuPy could not write to a file in every locale's encoding."""
    files = sorted(Path(__file__).parent.glob("*.cu"), key=lambda path: (path.stem != "common", path.stem))
    text = "\n".join(path.read_text(encoding="utf-8") for path in files).encode("ascii", "ignore").decode()
    text = text.replace("@pointwise", "\n".join(function(*item) for item in POINTWISE.items()))
    return text.replace("@optimizers", "\n".join(optimizer(name, *rule) for name, rule in KINDS.items()))


def function(name: str, row: Pointwise) -> str:
    """Return a pointwise function of the table as a CUDA struct."""
    (value, slope), setting = row.formulas, ", ".join(row.settings) or "none"  # one at most
    return f"""struct {name} {{
    template <typename T> static __device__ T value(T x, T {setting}) {{ return {cuda(value)}; }}
    template <typename T> static __device__ T back(T dy, T x, T y, T {setting}) {{ return {cuda(times(slope))}; }}
}};"""


def optimizer(name: str, kind: type[Optimizer], decays: bool, spares: bool) -> str:
    """Return an optimizer's lines as a CUDA kernel, in which next_w may be the gradient's own vector."""
    lines, slots = lines_of(kind, decays, spares), kind.memory
    read = [SPARED] * spares + [*slots]
    before, after = "".join(f"const T* all_{s}, " for s in read), "".join(f"T* next_{s}, " for s in slots)
    return f"""template <typename T>
__global__ void __launch_bounds__(512) {name}(
    const T* all_w, const T* gradient, {before}Int length, T clip, const T* norm, T clip_norm,
    {"".join(f"T {number}, " for number in numbers_in(lines, slots))}{after}T* next_w) {{
    for (Int i = first(); i < length; i += stride()) {{
        T g = limited(gradient[i], clip, norm, clip_norm), w = all_w[i];
        {" ".join(f"T {each} = all_{each}[i];" for each in read)}
        {" ".join(f"{target} = {cuda(formula)};" for target, formula in lines)}
        {" ".join(f"next_{slot}[i] = {slot};" for slot in slots)}
        next_w[i] = w;
    }}
}}"""


def rule_name(kind: type[Optimizer], decays: bool, spares: bool = False) -> str:
    """Return the name of an optimizer's kernel: with weight decay, without, or with one that spares some numbers."""
    return kind.__name__ + "Sparing" * spares + "Decayed" * (decays and bool(RULES[kind].decay))


# the rules that have a kernel, by its name: the optimizer, whether its weights decay and whether it spares some
KINDS = {rule_name(kind, decays): (kind, decays, False) for kind in RULES for decays in (False, True)}
KINDS[rule_name(AdamW, True, True)] = AdamW, True, True
