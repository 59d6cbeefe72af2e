"""Time a training step of xpnet beside other ways to take the same step: whole training loops, all counted.

Every contestant runs in a process of its own, and they take turns, so that a machine that slows down slows all alike;
medians of the turns. Before that they train five steps from the same weights, and must agree on the losses. With
--predict they then compute the outputs for one batch after another instead, in inference.

seed     full batch of 1,500 digits, 64-32-16-10, batch norm after every Dense
mini     1,472 digits in batches of 32, 64-128-64-10, batch norm
wide     5,120 rows in batches of 512, 784-1024-1024-10
cnn8     images of 8 x 8 in batches of 64: conv 32, pool, conv 64, pool, dense
cnn28    images of 28 x 28 in batches of 64: conv 32, pool, conv 64, pool, dense
cnn28s   images of 28 x 28 in batches of 128: conv 8, pool, conv 16, pool, dense
gpt      texts of 64 characters in batches of 12: 4 layers of 4 heads and 128 features, AdamW
large    16,384 rows in batches of 8,192, 4096-8192-8192-10: for GPUs
batch    the step's time against the batch, 1 to 65,536, of 64-32-16-10
width    against the width H, 8 to 4,096, of 64-H-H-10 in batches of 128
depth    against the pairs of Dense and ReLU, 1 to 64, 32 wide, in batches of 32 and of 1
growth   all three of them, in one picture
image    the step's time against the side of images, 8 to 64, of conv 16, pool, conv 32, pool, dense in batches of 32
channels against the channels of convolutions, 4 to 128, on images of 16 x 16 in batches of 32
context  against the characters that a GPT of 2 layers and 64 features sees, 16 to 512, in batches of 4
features against its features, 16 to 512, with 64 characters
sizes    these four, in one picture
memory   the peak of a fit over what it must hold at once

xpnet is the NumPy backend in plain NumPy, xpnet-fast with its compiled kernels; products are nothing but the step's
matrix products, plain the step as a tutorial writes it in NumPy. sklearn has no batch norm; it and plain have no images
and texts. xpnet-torch and xpnet-jax are the backends of these names, torch-channels-last is PyTorch with its images'
channels innermost in memory. On a GPU:

    large --contestants xpnet-cupy products-cupy torch-cuda torch-compile-cuda
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import tracemalloc

import numpy as np
from parts import benchmark_report as report
from parts import cases, peers
from parts.command_line import a_file, a_picture, count
from tqdm import tqdm

import xpnet as xn

LARGER = ["xpnet", "xpnet-fast", "xpnet-torch", "xpnet-jax", "products", "jax", "torch"]
DEFAULT = {
    "features": ["xpnet", "xpnet-fast", "products", "jax", "torch", "sklearn", "plain"],
    "images": [*LARGER, "torch-channels-last"],
    "texts": LARGER,
}
DEFAULT_OF_STUDIES = ["xpnet", "xpnet-fast", "jax", "torch"]
REFERENCES = ["jax", "torch", "torch-channels-last", "products", "plain"]
REFERENCES += ["torch-cuda", "torch-compile-cuda", "products-cupy"]
CASES = {name: [name] for name in cases.FIXED}
CASES |= {study: [f"{study}:{size}" for size in sizes] for study, (sizes, _) in cases.STUDIES.items()}
CASES["depth"] += CASES.pop("depth-at-batch-1")
CASES["growth"] = [*CASES["batch"], *CASES["width"], *CASES["depth"]]
CASES["sizes"] = [*CASES["image"], *CASES["channels"], *CASES["context"], *CASES["features"]]
MEMORY = ["seed", "mini", "wide", "batch:4096", "batch:65536", "cnn8", "cnn28", "cnn28s", "gpt"]
THREADS = [f"{library}_NUM_THREADS" for library in ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMBA")]
THREADS += ["VECLIB_MAXIMUM_THREADS", "NPROC"]  # Accelerate's; JAX's
MALLOC = {"MALLOC_MMAP_THRESHOLD_": 1 << 30, "MALLOC_TRIM_THRESHOLD_": 1 << 30, "MALLOC_TOP_PAD_": 64 << 20}
TF32 = {  # each library's switch for float32 products on NVIDIA's tensor cores, and its value without and with
    "CUPY_TF32": ("0", "1"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": ("0", "1"),
    "JAX_DEFAULT_MATMUL_PRECISION": ("float32", "tensorfloat32"),
}
PAUSE = 0.25  # seconds before a turn, in which threads that spin after the last one's products go to sleep

# --- the contestant's process -----------------------------------------------------------------------------------------


def work(name: str, case: cases.Case, dtype: str, steps: int | None, clock: str, predict: bool) -> None:
    """Build the contestant, say its first losses, then take a turn for every line that comes in.

    It answers in lines of JSON: {"absent": reason}, or {"losses": [...], ...} and then milliseconds per step.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    if name == "memory":
        return answer(memory(case, dtype))
    build, library, install, kinds = peers.PEERS[name]
    if case.kind not in kinds:
        return answer({"absent": f"it is for {' and '.join(kinds)}, and these are {case.kind}"})
    try:
        peer = build(case, dtype)
    except xn.BackendUnavailableError as error:
        return answer({"absent": str(error)})
    except ImportError as error:
        return answer({"absent": f"{error}. To install it: {install}"})
    if predict and not hasattr(peer, "predict"):
        return answer({"absent": "it only trains"})
    modules = ["xpnet", "numpy", *([library] if library else [])]
    versions = {module: sys.modules[module].__version__ for module in modules}
    losses, now = peer.first_losses(), {"wall": time.perf_counter, "cpu": time.process_time}[clock]

    turn = peer.predict if predict else peer.turn

    def milliseconds(steps: int) -> float:
        began = now()
        turn(steps)
        return 1000 * (now() - began) / (case.epochs(steps) * case.batches)

    def a_second(steps: int = 1) -> int:
        each = milliseconds(steps)
        whole = case.epochs(steps) * case.batches
        return a_second(4 * whole) if each * whole < 200 else int(1 + 1000 / each)

    milliseconds(1)  # which may compile
    steps = steps or a_second()
    answer({"losses": losses, "versions": versions, "device": peer.device})
    for _ in sys.stdin:
        answer(milliseconds(steps))
    return None


def memory(case: cases.Case, dtype: str) -> dict[str, object]:
    """What a step on NumPy must hold at once, and the peaks of what fits of three epochs held, in bytes.

    The caller's data is not counted, the network is. A fit on all the rows, shuffled anew for every epoch or as they
    stand, holds more than its steps do: the targets one-hot, a shuffled copy. So there is one on a single batch, too.
    """
    x, y = case.data(dtype)

    def fit(net: xn.Sequential, rows: int, shuffle: bool) -> None:
        optimizer = getattr(xn, case.optimizer)(learning_rate=peers.RATE)
        how = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": optimizer}
        net.fit(x[:rows], y[:rows], **how, epochs=3, batch_size=case.batch, shuffle=shuffle)

    def peak(rows: int, shuffle: bool) -> int:
        gc.collect()
        tracemalloc.reset_peak()
        fit(net, rows, shuffle)
        return tracemalloc.get_traced_memory()[1]

    fit(case.net(dtype=dtype), case.rows, shuffle=True)  # what it imports is not counted either
    tracemalloc.start()
    net = case.net(dtype=dtype)
    fit(net, case.rows, shuffle=True)

    parameters = sum(a.nbytes for a in net.params.values())
    parts = {"parameters": parameters, "gradients": parameters, "slots": 2 * parameters}
    parts["activations"] = case.activations * np.dtype(dtype).itemsize
    peaks = {
        "shuffled": peak(case.rows, shuffle=True),
        "unshuffled": peak(case.rows, shuffle=False),
        "single batch": peak(case.batch, shuffle=False),
    }
    total = sum(parts.values())
    ratios = {name: value / total for name, value in peaks.items()}
    return {"batch": case.batch, "parts": parts, "sum": total, "peaks": peaks, "ratios": ratios}


# --- the race ---------------------------------------------------------------------------------------------------------


def start(case: str, name: str, options: argparse.Namespace) -> subprocess.Popen:
    """A process with this contestant in it."""
    environment = {key: value for key, value in os.environ.items() if key != "XPNET_KERNELS"}
    if name in ("xpnet", "memory"):  # what compiled kernels allocate, tracemalloc would not see
        environment["XPNET_KERNELS"] = "generic"
    if options.threads:
        environment |= dict.fromkeys(THREADS, str(options.threads))
    environment |= {switch: values[options.tf32] for switch, values in TF32.items()}
    if options.malloc:
        environment |= {key: str(value) for key, value in MALLOC.items()}
    command = [sys.executable, __file__, case, "--worker", name, "--dtype", options.dtype, "--clock", options.clock]
    if options.steps:
        command += ["--steps", str(options.steps)]
    if options.predict:
        command.append("--predict")
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class Contestant:
    """A process that takes turns when told to."""

    def __init__(self, case: str, name: str, options: argparse.Namespace):
        self.name, self.times = name, []
        self.process = start(case, name, options)
        self.ready = self.answer()

    def answer(self):
        """The next line it says."""
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"benchmark: {self.name} ended with status {self.process.wait()}, see above")
        return json.loads(line)

    def turn(self) -> None:
        """Time one turn."""
        time.sleep(PAUSE)
        print("go", file=self.process.stdin, flush=True)
        self.times.append(self.answer())

    def end(self) -> None:
        """Let the process end."""
        self.process.communicate()


def memories(options: argparse.Namespace) -> list[dict[str, object]]:
    """What `memory` measures for each of its cases."""
    rows = []
    for case in MEMORY:
        contestant = Contestant(case, "memory", options)
        contestant.end()
        rows.append({"case": case} | contestant.ready)
    return rows


def race(case: str, names: list[str], options: argparse.Namespace, bar: tqdm) -> list[Contestant]:
    """The contestants after their turns; those who cannot take part are among them."""
    bar.set_description(case)
    contestants = [Contestant(case, name, options) for name in names]
    present = [c for c in contestants if "absent" not in c.ready]
    rtol = 2e-2 if options.tf32 else 2e-3 if options.dtype == "float32" else 1e-8
    same_work({c.name: c.ready["losses"] for c in present}, rtol)
    for _ in range(options.turns):
        for contestant in present:
            contestant.turn()
        bar.update()
    for contestant in contestants:
        contestant.end()
    return contestants


def same_work(losses: dict[str, list[float] | None], rtol: float) -> None:
    """Exit, naming them, where contestants part from the others' losses."""
    losses = {name: values for name, values in losses.items() if values}
    if losses:
        middle = np.median(list(losses.values()), axis=0)
        apart = [f"{name} {values}" for name, values in losses.items() if not np.allclose(values, middle, rtol, 0)]
        if apart:
            lines = [f"median {middle.tolist()}", *apart]
            sys.exit("benchmark: not the same work: the first five losses are\n" + "\n".join(lines))


def result(name: str, present: list[Contestant]) -> dict[str, object]:
    """What a race came to."""
    case = cases.case(name)
    medians = {c.name: statistics.median(c.times) for c in present}
    contestants = {
        c.name: {
            "median": medians[c.name],
            "min": min(c.times),
            "max": max(c.times),
            "ratios": {other: medians[c.name] / medians[other] for other in REFERENCES if other in medians},
            "times": c.times,
            "losses": c.ready["losses"],
        }
        for c in present
    }
    about = {"case": name, "title": case.title, "batch": case.batch, "multiplications": case.multiplications}
    return about | {"contestants": contestants}


def races(options: argparse.Namespace) -> dict[str, object]:
    """The results of all the case's races, the versions and devices of those who took part, and who is absent."""
    names, cases = options.contestants, CASES.get(options.case, [options.case])
    versions, devices, absent, results = {}, {}, {}, []
    with tqdm(total=len(cases) * options.turns, unit="turn", disable=None, leave=False) as bar:
        for case in cases:
            contestants = race(case, names, options, bar)
            absent |= {c.name: c.ready["absent"] for c in contestants if "absent" in c.ready}
            present = [c for c in contestants if c.name not in absent]
            if not present:
                sys.exit("\n".join(["benchmark: nobody takes part", *report.left_out(absent)]))
            for c in present:
                versions |= c.ready["versions"]
                devices[c.name] = c.ready["device"]
            results.append(result(case, present))
            names = [c.name for c in present]
    found = {"versions": versions, "devices": devices, "absent": absent, "results": results}
    return found | {"per_layer_us": {} if options.predict else report.per_layer(results)}


# --- the command line -------------------------------------------------------------------------------------------------


def a_case(text: str) -> str:
    """The name of a case, for argparse."""
    if text not in CASES and text != "memory":
        try:
            cases.case(text)
        except (KeyError, ValueError):
            choices = ", ".join([*CASES, "memory"])
            message = f"no case {text!r}; choose from {choices}, or one size of a study, such as width:128"
            raise argparse.ArgumentTypeError(message) from None
    return text


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", metavar="CASE", type=a_case, help="one of the above, or one size of a study: width:128")
    parser.add_argument(
        "--contestants",
        metavar="NAME",
        nargs="+",
        choices=peers.PEERS,
        help=f"of {', '.join(peers.PEERS)}; default: {' '.join(DEFAULT['features'])}; of images: "
        f"{' '.join(DEFAULT['images'])}; of texts the same but the last; of studies: {' '.join(DEFAULT_OF_STUDIES)}",
    )
    parser.add_argument("--turns", type=count, help="of each contestant; default: 7, for the studies 5")
    parser.add_argument(
        "--steps", type=count, help="in a turn, rounded to whole epochs; default: about a second of them"
    )
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="default: float32")
    parser.add_argument(
        "--tf32", action="store_true", help="on NVIDIA GPUs, multiply float32 rounded to 10 binary digits"
    )
    parser.add_argument("--threads", type=count, metavar="N", help="each library's; default: what it chooses itself")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: the processor's time of all threads, for machines that others use, too; default: wall",
    )
    parser.add_argument("--predict", action="store_true", help="time inference instead of training steps")
    parser.add_argument("--malloc", action="store_true", help="raise glibc's thresholds, for every contestant alike")
    parser.add_argument("--json", type=a_file, metavar="FILE", help="write every turn's time, and all that is printed")
    parser.add_argument("--plot", type=a_picture, metavar="FILE.png", help="draw the medians; needs matplotlib")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    study = options.case in CASES and options.case not in cases.FIXED
    if options.case == "memory" and (options.contestants or options.plot):
        parser.error("memory is a table about xpnet on NumPy alone: it takes neither --contestants nor --plot")
    if options.case == "memory" and options.predict:
        parser.error("memory is measured of fits: it does not take --predict")
    if options.malloc and platform.libc_ver()[0] != "glibc":
        parser.error("--malloc: the thresholds are glibc's, and this Python runs on another C library")
    needs_digits = options.case == "memory" or any(cases.case(c).digits for c in CASES.get(options.case, []))
    if needs_digits and not importlib.util.find_spec("sklearn"):
        parser.error(f"{options.case}: the digits come with scikit-learn: pip install scikit-learn threadpoolctl")
    default = DEFAULT_OF_STUDIES if study or options.case == "memory" else DEFAULT[cases.case(options.case).kind]
    options.contestants = list(dict.fromkeys(options.contestants or default))
    options.turns = options.turns or (5 if study else 7)
    return options


def main() -> None:
    """Race, or measure memory, and report."""
    options = arguments()
    if options.worker:
        steps, clock = options.steps, options.clock
        return work(options.worker, cases.case(options.case), options.dtype, steps, clock, options.predict)
    out = {"case": options.case, "machine": report.machine()}
    out |= {key: getattr(options, key) for key in ("dtype", "tf32", "threads", "malloc", "clock", "predict")}
    if options.case == "memory":
        out |= {"versions": {"xpnet": xn.__version__, "numpy": np.__version__}, "memory": memories(options)}
    else:
        out |= {"turns": options.turns, "steps": options.steps} | races(options)
    print(report.text(out))
    if options.json:
        options.json.write_text(json.dumps(out, indent=1))
    if options.plot:
        report.plot(out, options.plot)
    return None


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("benchmark: interrupted")
