"""What model files and checkpoints must stand. `python scripts/torture.py` takes ten minutes, `--short` seconds.

    mutations   100,000 damaged and forged files: FormatError for each, and nothing imported, run, opened or hoarded
    kills       200 processes killed as they save: the file is the one before or the new one, to the bit
    refusals    full disks, no permission, folders, links, devices: an OSError that names the path, and no trace
    resume      50 training runs killed at random moments and resumed: the bits of a run that was not
    speed       200 MB saved and loaded, beside a plain write with fsync and a plain read

`python scripts/torture.py mutations kills` runs these two. Exit status 0 where everything held.
"""

import argparse
import contextlib
import errno
import os
import random
import resource
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from parts import mutations as table
from parts.promises import BrokenPromise, calls_of, must
from parts.resumption import resume

import xpnet as xn

FORBIDDEN = {  # what reading a file has no business doing, by the names of Python's audit events
    "import", "exec", "compile", "marshal.loads", "pickle.find_class", "code.__new__", "ctypes.dlopen", "os.exec",
    "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.system", "os.putenv", "os.remove",
    "os.rename", "os.mkdir", "subprocess.Popen", "shutil.unpack_archive", "socket.connect", "socket.__new__",
    "urllib.Request",
}  # fmt: skip


# --- mutations --------------------------------------------------------------------------------------------------------


def networks() -> list[xn.Sequential]:
    """Small ones, with every layer there is, in both dtypes."""
    nets = [
        xn.Sequential(xn.Dense(3, 2)).initialize(),
        xn.Sequential(
            xn.Sequential(xn.Dense(4, 5), xn.BatchNorm(5), xn.Sequential(xn.Tanh(), xn.Dropout(0.2))),
            xn.Dense(5, 4, trainable=False),
            xn.LeakyReLU(0.3),
            xn.ELU(0.5),
        ).initialize(dtype="float64"),
        xn.Sequential(
            xn.BatchNorm(6), xn.Dense(6, 3, initializer="he_normal"), xn.Sigmoid(), xn.ReLU(), xn.Softmax()
        ).initialize(),
    ]
    rng = np.random.default_rng(0)
    for net in nets:
        net.set_params({k: rng.uniform(0.5, 1.5, a.shape) for k, a in net.params.items()})
    return nets


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """What forbidden events happen inside. An audit hook stays for good, so it asks whether it is wanted."""
    seen: list[str] = []
    on = True

    def hook(event: str, arguments: tuple) -> None:
        if on and event in FORBIDDEN:
            seen.append(f"{event}{arguments!r:.200}")

    sys.addaudithook(hook)
    try:
        yield seen
    finally:
        on = False


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """Allocations are traced inside, and no longer than that."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def mutations(folder: Path, count: int, seed: int) -> str:
    """`count` flips of a single bit of the smallest file, or all there are, and as many mutations of all the files."""
    path = folder / "net.safetensors"
    sound = []
    for net in networks():
        net.save(path)
        sound.append(path.read_bytes())
        xn.load(path)  # so that what loading needs is imported
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    reasons = set()
    worst = 0.0

    def attempt(file: bytes, kind: str, may_load: bool = False) -> None:
        nonlocal worst
        path.write_bytes(file)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            xn.load(path)
        except xn.FormatError as error:
            begin = f"{path} cannot be loaded: "
            must(str(error).startswith(begin) and len(str(error)) > len(begin), f"{kind}: says only {error}")
            must(len(str(error)) < 500, f"{kind}: a message of {len(str(error))} characters")
            must(str(error).isprintable(), f"{kind}: a message that a terminal may obey")
            outcomes[f"{kind}, refused"] += 1
            reasons.add("".join(c for c in str(error).removeprefix(begin) if c.isalpha())[:40])
        except BaseException as error:
            (folder / "failed.safetensors").write_bytes(file)
            raise BrokenPromise(f"{kind}: {error!r:.300} instead of FormatError") from error
        else:
            must(may_load, f"{kind}: loaded")
            outcomes[f"{kind}, another sound network"] += 1
        taken = tracemalloc.get_traced_memory()[1] - before - 2 * len(file)
        worst = max(worst, taken)
        must(taken <= 16 * 2**20, f"{kind}: {taken / 2**20:.1f} MiB more than twice the file's {len(file)} bytes")

    with traced(), watched() as seen:
        smallest = min(sound, key=len)
        bits = 8 * len(smallest)
        flips = range(0, bits, -(-bits // max(count, 1)))
        for bit in flips:
            changed = bytearray(smallest)
            changed[bit // 8] ^= 1 << bit % 8
            attempt(bytes(changed), "flipped by one bit")
        for i in range(count):
            file = rng.choice(sound)
            kind, of, may_load = rng.choices(
                [
                    ("damaged", table.BROKEN, False),
                    ("forged", table.FORGED, False),
                    ("fuzzed", table.FUZZED, True),
                ],
                weights=[3, 4, 3],
            )[0]
            if i % 500 == 499:
                kind, of, may_load = "forged", table.RARE, False
            mutate = rng.choice(of)
            attempt(mutate(rng, *table.parsed(file), file), f"{kind} by {mutate.__name__}", may_load)
    must(not seen, f"loading did {Counter(seen).most_common(5)}")

    sums: Counter[str] = Counter()
    for kind, times in outcomes.items():
        sums[f"{kind.split(' by ')[0]}, {kind.rpartition(', ')[2]}"] += times
    told = "; ".join(f"{kind} {times:,}" for kind, times in sorted(sums.items()))
    return (
        f"{len(flips):,} of {bits:,} single-bit flips and {count:,} mutations: {told}; {len(reasons)} kinds of "
        f"reasons; at most {max(worst, 0) / 2**20:.1f} MiB beyond twice the file; nothing imported, started or opened"
    )


# --- kills ------------------------------------------------------------------------------------------------------------


def kills(folder: Path, count: int, seed: int) -> str:
    """Kill processes that save two networks in turn to one file, which must then be one of the two."""
    rng = random.Random(seed)
    path = folder / "net.safetensors"
    nets = [xn.Sequential(xn.Dense(700, 700), xn.Dense(700, 700)).initialize(seed=i) for i in range(2)]
    nets[0].save(path)  # so that what saving needs is imported

    def save() -> None:
        for net in nets:
            net.save(path)

    calls = calls_of(save)
    found: Counter[int] = Counter()
    leftovers = 0
    for _ in range(count):
        calls_of(save, rng.randrange(1, calls))
        loaded = xn.load(path).params["0.weight"]
        which = [i for i, net in enumerate(nets) if np.array_equal(loaded, net.params["0.weight"])]
        must(len(which) == 1, "the file is neither the one before nor the new one")
        found[which[0]] += 1
        for name in os.listdir(folder):
            if name != path.name:
                must(name.startswith(f".{path.name}.") and name.endswith(".tmp"), f"{name} was left")
                leftovers += 1
                os.unlink(folder / name)
    must(count < 50 or (len(found) == 2 and leftovers > count // 10), f"the kills missed the saves: {found}")
    return (
        f"{count} of {count} files sound after SIGKILL during saves of {path.stat().st_size / 1e6:.1f} MB "
        f"({found[0]} and {found[1]} of the two networks); {leftovers} temporaries of killed processes, ignored"
    )


# --- refusals ---------------------------------------------------------------------------------------------------------


def refusals(folder: Path, count: int, seed: int) -> str:
    """Save where it cannot be; each in a process of its own."""
    net = xn.Sequential(xn.Dense(100, 100)).initialize()
    other = xn.Sequential(xn.Dense(3, 2)).initialize()
    done = []

    def refused(name: str, path: Path, wanted: set[int], around: Callable[[], object] = lambda: None) -> None:
        """In a process of its own: `around`, then a save that must fail; and all is as before."""
        before = {p: (p.lstat().st_mode, p.read_bytes() if p.is_file() else b"") for p in folder.rglob("*")}
        child = os.fork()
        if not child:
            code = 99
            try:
                around()
                net.save(path)
            except OSError as error:
                code = 0 if str(path) in str(error) and error.errno in wanted else 98
                if code:
                    print(repr(error), file=sys.stderr)
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        must(status == 0, f"{name}: exit {status} instead of an OSError that names {path}")
        after = {p: (p.lstat().st_mode, p.read_bytes() if p.is_file() else b"") for p in folder.rglob("*")}
        must(after == before, f"{name}: the folder has changed: {set(after) ^ set(before)}")
        done.append(name)

    def nobody() -> None:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    folder.chmod(0o755)
    file = folder / "net.safetensors"
    other.save(file)
    refused("disk full", file, {errno.EFBIG, errno.ENOSPC}, small_files)
    refused("disk full, a new file", folder / "new.safetensors", {errno.EFBIG, errno.ENOSPC}, small_files)
    refused("no permission in the folder", file, {errno.EACCES, errno.EPERM}, nobody)
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    other.save(shared / "theirs.safetensors")
    (shared / "theirs.safetensors").chmod(0o444)
    refused("a file that is read-only", shared / "theirs.safetensors", {errno.EACCES}, nobody)
    (folder / "folder").mkdir()
    refused("a folder", folder / "folder", {errno.EISDIR})
    refused("in no folder", folder / "none" / "net.safetensors", {errno.ENOENT})
    refused("in a file", file / "net.safetensors", {errno.ENOTDIR})
    refused("a device", Path(os.devnull), {errno.EINVAL})
    os.mkfifo(folder / "pipe")
    refused("a pipe", folder / "pipe", {errno.EINVAL})
    (folder / "loop").symlink_to(folder / "loop")
    refused("a link to itself", folder / "loop", {errno.ELOOP})
    (folder / "to-device").symlink_to(os.devnull)
    refused("a link to a device", folder / "to-device", {errno.EINVAL})
    refused("a name too long", folder / ("n" * 300), {errno.ENAMETOOLONG})

    must(os.path.exists(os.devnull) and not os.path.isfile(os.devnull), "the device is none any more")
    (folder / "link").symlink_to(file)
    net.save(folder / "link")
    must((folder / "link").is_symlink() and xn.load(file).parameter_count == 10_100, "a link was not written through")
    return f"{len(done)} of {len(done)} refused by OSError with the path, nothing changed or left: {', '.join(done)}"


# --- speed ------------------------------------------------------------------------------------------------------------


def speed(folder: Path, count: int, seed: int) -> str:
    """Plain and whole in turns, in one run."""
    width = 2236
    net = xn.Sequential(*[xn.Dense(width, width) for _ in range(10)]).initialize()
    data = [a.data.cast("B") for a in net.params.values()]
    plain, file = folder / "plain", folder / "net.safetensors"

    def write() -> None:
        with open(plain, "wb") as f:
            for part in data:
                f.write(part)
            f.flush()
            os.fsync(f.fileno())

    contestants = {
        "write": write,
        "save": lambda: net.save(file),
        "read": lambda: plain.read_bytes(),
        "load": lambda: xn.load(file),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(count):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    median = {name: statistics.median(each) for name, each in times.items()}
    save, load = median["write"] / median["save"], median["read"] / median["load"]
    told = ", ".join(f"{name} {1000 * each:.0f} ms" for name, each in median.items())
    must(min(save, load) >= 0.5, f"{save:.2f} and {load:.2f} of the plain speed: {told}")
    size = sum(part.nbytes for part in data) / 1e6
    return f"{size:.0f} MB, medians of {count}: {told}; save {save:.2f}, load {load:.2f} of the plain speed"


PARTS = {  # what runs, how often in full, how often in short
    "mutations": (mutations, 100_000, 1_000),
    "kills": (kills, 200, 10),
    "refusals": (refusals, 1, 1),
    "resume": (resume, 50, 2),
    "speed": (speed, 9, 0),
}


def main() -> int:
    """Run the parts; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; without any, all of them")
    parser.add_argument("--short", action="store_true", help="in seconds, and nothing timed")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"no part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    failed = 0
    for name in arguments.parts or PARTS:
        part, full, short = PARTS[name]
        count = short if arguments.short else full
        if not count:
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                told = part(Path(folder), count, arguments.seed)
            except BrokenPromise as error:
                failed += 1
                told = f"FAILED: {error}"
        print(f"{name}: {told} ({time.perf_counter() - began:.0f} s)", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
