"""What benchmark.py prints and draws: tables for the terminal, and pictures."""

import os
import platform
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xpnet.training.history import counted

WIDTH = 100  # columns of the terminal
STUDIES = {  # by name: the column in the table, the axis label in the picture, the title
    "batch": ("batch", "rows in a batch", "batch: 64-32-16-10"),
    "width": ("width", "width H", "width: 64-H-H-10 in batches of 128"),
    "depth": ("pairs", "pairs of Dense and ReLU", "depth: 32 wide, in batches of 32"),
    "depth-at-batch-1": ("pairs", "pairs of Dense and ReLU", "depth: 32 wide, in batches of 1"),
    "image": ("side", "side of an image", "image: conv 16, pool, conv 32, pool, dense"),
    "channels": ("channels", "channels of each convolution", "channels: two convolutions, images of 16 x 16"),
    "context": ("context", "characters at once", "context: a GPT of 2 layers, 64 features"),
    "features": ("features", "features of each position", "features: a GPT of 2 layers, 64 characters at once"),
}
COLOURS = ("#2166ac", "#67a9cf", "#d6604d", "#5aae61", "#9970ab", "#e08214", "#777777")

# --- the machine ------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Return the processor, usable cores, operating system, Python, and the BLAS that NumPy was built with."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    blas, kernels = np.show_config(mode="dicts")["Build Dependencies"]["blas"], blas_kernels({})
    free = blas_kernels({"OPENBLAS_CORETYPE": ""}) if os.environ.get("OPENBLAS_CORETYPE") else kernels
    return {
        "cpu": found[1] if found else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "blas": f"{blas['name']} {blas['version']}",
        "blas_kernels": kernels,
        "blas_kernels_held_from": free if free != kernels else None,
    }


def blas_kernels(environment: dict[str, str]) -> str | None:
    """Return the processors for which the kernels of NumPy's BLAS are made, by its names; None if unknown.

    A new process is asked: BLAS chooses its kernels when it is loaded.
    """
    program = (
        "import numpy, threadpoolctl\n"
        "print(*{found['architecture'] for found in threadpoolctl.threadpool_info() if 'architecture' in found})"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True)
    return done.stdout.strip() or None


# --- the terminal -----------------------------------------------------------------------------------------------------


def text(out: dict[str, Any]) -> str:
    """Return the whole report as text."""
    if "memory" in out:
        lines = [*head(out), "", *memory(out["memory"])]
    elif len(out["results"]) == 1:
        (result,) = out["results"]
        lines = [*head(out), "", *contestants(result["contestants"])]
        if "sklearn" in result["contestants"] and "batch norm" in result["title"]:
            lines.append("sklearn does less than the others here: it has no batch norm")
    else:
        lines = head(out)
        for study, results in by_study(out["results"]).items():
            lines += ["", STUDIES[study][2], *sizes(study, results)]
        lines += overheads(out["per_layer_us"])
    return "\n".join([*lines, *left_out(out.get("absent", {}))])


def head(out: dict[str, Any]) -> list[str]:
    """Return lines on what was measured, on which machine and with which software."""
    m, results = out["machine"], out.get("results", [])
    setting = [out["dtype"]]
    if results:
        steps = f" of {counted(out['steps'], 'step')}" if out["steps"] else ""
        setting.append(counted(out["turns"], "turn") + steps)
    setting.append(counted(out["threads"], "thread") if out["threads"] else "threads as each library chooses")
    if out["predict"]:
        setting.append("inference")
    if out["clock"] == "cpu":
        setting.append("processor time")
    if out["tf32"]:
        setting.append("TF32")
    setting.append("malloc's thresholds raised" if out["malloc"] else "malloc as it comes")
    versions = {name: f"{name} {version}" for name, version in out["versions"].items()}
    kernels = m["blas_kernels"] and f", {m['blas_kernels']} kernels"
    versions["numpy"] += f" ({m['blas']}{kernels or ''})"
    elsewhere = [
        f"{name} on {device}" for name, device in out.get("devices", {}).items() if not device.startswith("cpu")
    ]
    return [
        f"{out['case']}: {results[0]['title']}" if len(results) == 1 else out["case"],
        ", ".join(setting),
        f"{m['cpu']}, {m['cores']} cores, {m['os']}, Python {m['python']}",
        *textwrap.wrap(", ".join([*versions.values(), *elsewhere]), WIDTH),
        *warnings(m),
    ]


def warnings(m: dict[str, Any]) -> list[str]:
    """Return lines on settings that slow the machine down, with the remedy."""
    if not m["blas_kernels"]:
        text = "Which kernels NumPy's BLAS runs is not known: pip install threadpoolctl"
    elif m["blas_kernels_held_from"]:
        text = (
            f"Warning: OPENBLAS_CORETYPE has NumPy's BLAS run its kernels for {m['blas_kernels']}; left to itself, it "
            f"runs those for {m['blas_kernels_held_from']} on this processor: unset OPENBLAS_CORETYPE"
        )
    else:
        return []
    return textwrap.wrap(text, WIDTH)


def contestants(results: dict[str, Any]) -> list[str]:
    """Return a row for each contestant: ms/batch, and the ratios of medians."""
    name = max(map(len, ["contestant", *results]))
    references = list(next(iter(results.values()))["ratios"])
    widths = [max(10, len(r) + 2) for r in references]
    over = f"{'median over that of':>{max(sum(widths), 22)}}" if references else ""
    lines = [
        f"{'':<{name}}{'ms/batch':>30}{over}",
        f"{'contestant':<{name}}{'median':>10}{'min':>10}{'max':>10}"
        + "".join(f"{r:>{w}}" for r, w in zip(references, widths, strict=True)),
    ]
    for who, r in results.items():
        times = "".join(f"{r[key]:>10,.3f}" for key in ("median", "min", "max"))
        ratios = zip(r["ratios"].values(), widths, strict=True)
        lines.append(f"{who:<{name}}{times}" + "".join(f"{ratio:>{w}.2f}" for ratio, w in ratios))
    return lines


def sizes(study: str, results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a row for each size: the multiplications in its matrix products, and the contestants' median ms/batch."""
    names = list(results[0]["contestants"])
    width = max(map(len, [*names, "1,000.000"])) + 2
    at_once = (WIDTH - 20) // width
    for start in range(0, len(names), at_once):
        some = names[start : start + at_once]
        yield f"{'':<8}{'million':>12}{'median ms/batch':>{width * len(some)}}"
        yield f"{STUDIES[study][0]:>8}{'multiplies':>12}" + "".join(f"{name:>{width}}" for name in some)
        for r in results:
            medians = "".join(f"{r['contestants'][name]['median']:>{width},.3f}" for name in some)
            yield f"{size(r):>8,}{r['multiplications'] / 1e6:>12,.3f}{medians}"


def overheads(slopes: dict[str, float]) -> list[str]:
    """Return the cost of a layer at batch 1 as a sentence, if that was measured."""
    if not slopes:
        return []
    each = ", ".join(f"{name} {slope:.1f} µs" for name, slope in slopes.items())
    how = "the slope of a straight line through its times; forward, backward and Adam together"
    return ["", *textwrap.wrap(f"A pair of Dense and ReLU costs, at batch 1: {each} ({how}).", WIDTH)]


def per_layer(results: list[dict[str, Any]]) -> dict[str, float]:
    """Return the microseconds that a pair of Dense and ReLU adds to a step at batch 1, by a least-squares fit."""
    results = by_study(results).get("depth-at-batch-1", [])
    if len(results) < 2:
        return {}
    depths = [size(r) for r in results]
    medians = {name: [r["contestants"][name]["median"] for r in results] for name in results[0]["contestants"]}
    return {name: 1000 * float(np.polyfit(depths, times, 1)[0]) for name, times in medians.items()}


def memory(rows: list[dict[str, Any]]) -> list[str]:
    """Return the memory that a step needs, part by part; then the peak memory of fits, and its ratio to that."""
    parts, fits = list(rows[0]["parts"]), list(rows[0]["peaks"])
    lines = ["bytes that a step must hold; activations are the batch and every layer's output, each once", ""]
    lines.append(f"{'case':<12}{'batch':>8}" + "".join(f"{part:>13}" for part in [*parts, "sum"]))
    for r in rows:
        numbers = "".join(f"{n:>13,}" for n in [*r["parts"].values(), r["sum"]])
        lines.append(f"{r['case']:<12}{r['batch']:>8,}{numbers}")
    lines += ["", "bytes that a fit held at most, the caller's data not counted, and over that sum", ""]
    lines.append(f"{'rows':<12}" + "".join(f"{fit:>20}{'ratio':>8}" for fit in fits))
    for r in rows:
        lines.append(f"{r['case']:<12}" + "".join(f"{r['peaks'][fit]:>20,}{r['ratios'][fit]:>8.2f}" for fit in fits))
    return lines


def left_out(absent: dict[str, str]) -> list[str]:
    """Return a line for each contestant that is missing: why, and the remedy."""
    return [f"{name} is left out: {reason}" for name, reason in absent.items()]


def size(result: dict[str, Any]) -> int:
    """Return the size of a study's case."""
    return int(result["case"].partition(":")[2])


def by_study(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the results of each study, by its name."""
    studies: dict[str, list[dict[str, Any]]] = {}
    for r in results:
        studies.setdefault(r["case"].partition(":")[0], []).append(r)
    return studies


# --- the pictures -----------------------------------------------------------------------------------------------------


def plot(out: dict[str, Any], path: Path) -> None:
    """Draw bars of the medians, or the curves of a study."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results, m = out["results"], out["machine"]
    if len(results) == 1:
        figure, ax = plt.subplots(figsize=(9, 1.6 + 0.42 * len(results[0]["contestants"])), layout="constrained")
        bars(ax, results[0]["contestants"])
        ax.set_title(f"{out['case']}: {results[0]['title']}", loc="left", fontsize=10)
    else:
        studies = by_study(results)
        columns = min(2, len(studies))
        rows = -(-len(studies) // columns)
        figure = plt.figure(figsize=(7 * columns, 5 * rows), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.15, w_pad=0.1)
        for i, (study, of_study) in enumerate(studies.items(), 1):
            curves(figure.add_subplot(rows, columns, i), study, of_study)
    setting = ", inference" * out["predict"] + ", processor time" * (out["clock"] == "cpu")
    figure.supxlabel(f"{m['cpu']}, {m['cores']} cores, {out['dtype']}{setting}", fontsize=8, color="#555555")
    figure.savefig(path, dpi=120)


def bars(ax: Any, results: dict[str, Any]) -> None:
    """Draw a bar for each contestant, with a line from its fastest to its slowest turn, and its ratios."""
    names, medians = list(results), [r["median"] for r in results.values()]
    spread = [[r["median"] - r["min"] for r in results.values()], [r["max"] - r["median"] for r in results.values()]]
    ax.barh(names, medians, color=["#2166ac" if name.startswith("xpnet") else "#b0b0b0" for name in names], height=0.65)
    ax.errorbar(medians, names, xerr=spread, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
    for name, r in results.items():
        ratios = ", ".join(f"{ratio:.2f} × {other}" for other, ratio in r["ratios"].items() if other != name)
        ax.annotate(
            f"{r['median']:,.3g} ms   {ratios}",
            (r["max"], name),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    ax.invert_yaxis()
    ax.set_xlim(0, 2 * max(r["max"] for r in results.values()))
    ax.set_xlabel("ms/batch, median; the line goes from the fastest turn to the slowest")
    ax.spines[["top", "right"]].set_visible(False)


def curves(ax: Any, study: str, results: list[dict[str, Any]]) -> None:
    """Draw the contestants' ms/batch against the size, and a line that grows as the multiplications do."""
    from matplotlib.ticker import LogLocator

    slopes, at = per_layer(results), [size(r) for r in results]
    medians = {name: [r["contestants"][name]["median"] for r in results] for name in results[0]["contestants"]}
    for (name, times), colour in zip(medians.items(), COLOURS * 3, strict=False):
        label = f"{name}: {slopes[name]:.1f} µs for each pair" if slopes else name
        ax.plot(at, times, "o-", color=colour, lw=1.6, ms=4, label=label)
    work = np.array([r["multiplications"] for r in results])
    last = min(times[-1] for times in medians.values())
    ax.plot(at, last * work / work[-1], "--", color="#999999", lw=1, label="as the multiplications grow")
    _, label, title = STUDIES[study]
    ax.set(xscale="log", yscale="log", xlabel=label, ylabel="ms/batch, median", title=title)
    ax.set_xticks(at, [f"{n:,}" for n in at])
    ax.minorticks_off()
    low, high = min(map(min, medians.values())), max(map(max, medians.values()))
    ax.set_ylim(low / 2, high * 2)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=9)
