"""The head against its plain form: time, memory, and how near it comes to the machine's limit.

python benchmarks/head.py [--threads 1] [--rounds 7] [--clock cpu|wall] [--quick] [--out benchmarks/results]

The plain form below is the natural vectorised PyTorch of the equations; autograd differentiates it. Each
form runs in a process of its own, the two take turns, and medians are compared. Between turns both
processes also time a large matrix product: "of the limit" is a form's own arithmetic, without exponentials, over its time, as a
fraction of that product's rate, and "faster at the limit" what the ratio would be if ours ran at it.
Memory is the peak of what the allocator handed out over the inputs, in a fresh process. With one thread
the clock is processor time, which other programs on the machine disturb less; with more it is wall time.
Writes head.json, head.md and docs/figures/head_speed.svg, head_scaling.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, relu

from rada.bench.memory import peak_allocated
from rada.head import RAdaHead

ROOT = Path(__file__).resolve().parents[1]
SCALE = 50.0
RATE_SIDE = 1024


class Size(NamedTuple):
    batch: int
    classes: int
    dim: int


TABLE = [
    Size(32, 12, 512),
    Size(32, 24, 512),
    Size(32, 50, 512),
    Size(32, 100, 512),
    Size(32, 397, 512),
    Size(8, 1000, 512),
    Size(4, 1000, 768),
]
SCALING = [Size(1, k, 512) for k in (500, 1000, 2000, 5000, 10_000, 21_000)]
SUBSETS = [Size(32, 1000, 512), Size(32, 128, 512)]


def plain_head(head: RAdaHead, image: Tensor, text: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The equations in natural vectorised PyTorch: three B x H x K x K maps; returns logits and peaks."""
    (batch, dim), classes = image.shape, text.shape[0]
    rational = image[:, None] * text
    tokens = scale * rational
    root = math.sqrt(scale)
    queries = (
        head.query_image((root * image)[:, None].expand(batch, classes, dim)),
        head.query_text((root * text).expand(batch, classes, dim)),
        head.query_rational(tokens),
    )

    def heads(x: Tensor) -> Tensor:
        return x.view(batch, classes, head.num_heads, -1).transpose(1, 2)

    keys, values = heads(head.key(tokens)), heads(head.value(tokens))
    factor = 1 / (head.temperature * math.sqrt(dim // head.num_heads))
    average = 0
    for query in queries:
        scores = heads(query) @ keys.transpose(-1, -2) * factor
        average = average + classes * scores.flatten(2).softmax(-1).view_as(scores)
    mixed = (average / 3 @ values).transpose(1, 2).reshape(batch, classes, dim)
    mask = relu(1 + head.out(mixed))
    return scale * (mask * rational).sum(-1), (mask - 1).abs().flatten(1).amax(1)


def fast_head(head: RAdaHead, image: Tensor, text: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    output = head(image, text, scale)
    return output.logits, output.max_deviation


TASKS = ["forward", "step"]
FORMS = {"plain": plain_head, "ours": fast_head}


class Work:
    """One form at one size: a forward pass without gradients, or a training step without the update."""

    def __init__(self, form: str, size: Size, budget: int | None = None) -> None:
        torch.manual_seed(0)
        self.head = RAdaHead(size.dim, memory_budget=budget)
        nn.init.normal_(self.head.out.weight, std=0.02)
        self.image = normalize(torch.randn(size.batch, size.dim), dim=-1)
        self.text = normalize(torch.randn(size.classes, size.dim), dim=-1)
        self.labels = torch.randint(size.classes, (size.batch,))
        self.form = FORMS[form]

    def forward(self) -> None:
        with torch.no_grad():
            self.form(self.head, self.image, self.text, SCALE)

    def step(self) -> None:
        logits, peak = self.form(self.head, self.image, self.text, SCALE)
        (cross_entropy(logits, self.labels) + peak.mean()).backward()
        self.head.zero_grad()

    def rate(self) -> None:
        a, b = torch.ones(RATE_SIDE, RATE_SIDE), torch.ones(RATE_SIDE, RATE_SIDE)
        for _ in range(4):
            a @ b


def flops(size: Size, task: str) -> float:
    """Arithmetic of our form, without the exponentials."""
    return _arithmetic(size, *{"forward": (8, 6), "step": (18, 22)}[task])


def plain_flops(size: Size, task: str) -> float:
    """Arithmetic of the plain form, without the exponentials."""
    return _arithmetic(size, *{"forward": (12, 8), "step": (26, 24)}[task])


def _arithmetic(size: Size, linear: int, maps: int) -> float:
    batch, classes, dim = size
    return linear * batch * classes * dim**2 + maps * batch * classes**2 * dim


def worker(form: str, size: Size, threads: int, clock: str) -> None:
    """Do the task named on each line of standard input and print its seconds."""
    torch.set_num_threads(threads)
    now = time.process_time if clock == "cpu" else time.perf_counter
    work = Work(form, size)
    for line in sys.stdin:
        start = now()
        getattr(work, line.strip())()
        print(now() - start, flush=True)


def measure_memory(form: str, size: Size, task: str, budget: int | None) -> int:
    """Peak bytes over the inputs and the parameters, of a second call."""
    torch.set_num_threads(1)
    work = Work(form, size, budget)
    if size.batch * size.classes <= 20_000:
        getattr(work, task)()
    return peak_allocated(getattr(work, task))


def _command(*words: object) -> list[str]:
    return [sys.executable, __file__, *map(str, words)]


class Process:
    """A worker that takes turns."""

    def __init__(self, form: str, size: Size, threads: int, clock: str) -> None:
        self.process = subprocess.Popen(
            _command("--work", form, *size, "--threads", threads, "--clock", clock),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, task: str) -> float:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def fresh_memory(form: str, size: Size, task: str, budget: int | None = None) -> int:
    words = ["--memory", form, *size, task, *([] if budget is None else ["--budget", budget])]
    return int(subprocess.check_output(_command(*words), text=True, stderr=subprocess.DEVNULL))


def race(size: Size, forms: list[str], tasks: list[str], options: argparse.Namespace) -> dict:
    """Medians in seconds by form and task, and the matrix-product rate in flops per second."""
    workers = {form: Process(form, size, options.threads, options.clock) for form in forms}
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(options.rounds + 1):
        for task in tasks:
            for form, process in workers.items():
                taken = process.run(task)
                rate = process.run("rate")
                if turn:
                    seconds.setdefault((form, task), []).append(taken)
                    seconds.setdefault(("", "rate"), []).append(rate)
    for process in workers.values():
        process.close()
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    rate = 4 * 2 * RATE_SIDE**3 / medians.pop(("", "rate"))
    return {"rate": rate, "seconds": {f"{f}.{t}": s for (f, t), s in medians.items()}}


def table_row(size: Size, options: argparse.Namespace) -> dict:
    row = {"size": size._asdict(), **race(size, ["plain", "ours"], TASKS, options)}
    for task in TASKS:
        plain, ours = (row["seconds"][f"{form}.{task}"] for form in FORMS)
        row[task] = {
            "speedup": plain / ours,
            "of_limit": flops(size, task) / ours / row["rate"],
            "plain_of_limit": plain_flops(size, task) / plain / row["rate"],
            "memory_plain": (memory := fresh_memory("plain", size, task)),
            "memory_ours": (own := fresh_memory("ours", size, task)),
            "memory_ratio": memory / own,
        }
    row["step"]["memory_small_budget"] = fresh_memory("ours", size, "step", 1 << 23)
    print("\n".join(_table_line(row, task) for task in TASKS), flush=True)
    return row


def scaling_row(size: Size, options: argparse.Namespace) -> dict:
    few = argparse.Namespace(**{**vars(options), "rounds": 3 if size.classes <= 5000 else 1})
    row = {"size": size._asdict(), **race(size, ["ours"], ["forward"], few)}
    seconds = row["seconds"]["ours.forward"]
    row["of_limit"] = flops(size, "forward") / seconds / row["rate"]
    row["memory"] = fresh_memory("ours", size, "forward")
    print(_scaling_line(row), flush=True)
    return row


def fitted_exponent(rows: list[dict], *, least: int = 2000) -> float:
    """Slope of log time over log classes from `least` classes on."""
    points = [
        (math.log(r["size"]["classes"]), math.log(r["seconds"]["ours.forward"]))
        for r in rows
        if r["size"]["classes"] >= least
    ]
    if len(points) < 2:
        return math.nan
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def subset_row(options: argparse.Namespace) -> dict:
    """A step on all 1000 classes against one on 128 of them, alternating."""
    workers = [Process("ours", size, options.threads, options.clock) for size in SUBSETS]
    ratios, seconds = [], []
    for turn in range(min(options.rounds, 5) + 1):
        taken = [process.run("step") for process in workers]
        if turn:
            ratios.append(taken[0] / taken[1])
            seconds.append(taken)
    for process in workers:
        process.close()
    whole, part = (statistics.median(s) for s in zip(*seconds, strict=True))
    return {"whole": whole, "subset": part, "speedup": statistics.median(ratios)}


def _table_line(row: dict, task: str) -> str:
    numbers, seconds = row[task], row["seconds"]
    cells = [
        ", ".join(str(v) for v in row["size"].values()),
        f"{1e3 * seconds[f'plain.{task}']:.1f} ms",
        f"{numbers['plain_of_limit']:.2f}",
        f"{1e3 * seconds[f'ours.{task}']:.1f} ms",
        f"{numbers['of_limit']:.2f}",
        f"{numbers['speedup']:.1f}x",
        f"{numbers['speedup'] / numbers['of_limit']:.1f}x",
        f"{numbers['memory_ours'] / 1e6:.1f} MB",
        f"{numbers['memory_ratio']:.1f}x",
    ]
    if task == "step":
        cells.append(f"{numbers['memory_plain'] / numbers['memory_small_budget']:.1f}x")
    return f"| {' | '.join(cells)} |"


def _table(rows: list[dict], task: str) -> list[str]:
    words = ["B, K, D", "plain", "of the limit", "ours", "of the limit", "faster"]
    words += ["faster at the limit", "memory", "less"]
    if task == "step":
        words.append("less with 8 MiB")
    return [
        f"{'A training step' if task == 'step' else 'Forward'}:",
        "",
        f"| {' | '.join(words)} |",
        "|" + "---|" * len(words),
        *(_table_line(row, task) for row in rows),
        "",
    ]


def _scaling_line(row: dict) -> str:
    seconds, memory = row["seconds"]["ours.forward"], row["memory"] / 2**20
    return (
        f"| {row['size']['classes']} | {seconds:.3f} s | {memory:.0f} MiB | {row['of_limit']:.2f} |"
    )


def markdown(result: dict) -> str:
    machine, subsets = result["machine"], result["subsets"]
    lines = [
        f"{machine['processor']}, torch {machine['torch']}, {machine['threads']} thread(s), "
        f"{machine['clock']} time, matrix products at {machine['rate'] / 1e9:.0f} Gflop/s.",
        "",
        f"`{result['command']}`",
        "",
        *(line for task in TASKS for line in _table(result["table"], task)),
        "| K (B = 1, D = 512) | forward | memory | of the limit |",
        "|---|---|---|---|",
        *(_scaling_line(row) for row in result["scaling"]),
        "",
        f"Time grows with the classes to the power {result['exponent']:.2f} (fitted from K = "
        f"{result['fitted_from']} on).",
    ]
    if subsets:
        lines += [
            "",
            f"A training step at B = 32 on 128 of 1000 classes takes {subsets['subset']:.2f} s instead "
            f"of {subsets['whole']:.2f} s: {subsets['speedup']:.1f}x as fast.",
        ]
    return "\n".join(lines) + "\n"


def draw(result: dict, folder: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "rada"
    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    labels = [", ".join(str(v) for v in row["size"].values()) for row in result["table"]]
    for axis, key, title in (
        (axes[0], "speedup", "times as fast as the plain form"),
        (axes[1], "memory_ratio", "times less memory"),
    ):
        for shift, task in ((-0.2, "forward"), (0.2, "step")):
            values = [row[task][key] for row in result["table"]]
            label = "training step" if task == "step" else task
            axis.bar([i + shift for i in range(len(values))], values, 0.4, label=label)
        axis.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_title(title, fontsize=10)
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False)
    axes[0].set_xlabel("B, K, D", fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "head_speed.svg", metadata={"Date": None})
    figure, axis = plt.subplots(figsize=(5, 3.4))
    classes = [row["size"]["classes"] for row in result["scaling"]]
    axis.loglog(classes, [r["seconds"]["ours.forward"] for r in result["scaling"]], "o-")
    axis.set_xlabel("classes K (one image, D = 512)")
    axis.set_ylabel("seconds", color="C0")
    other = axis.twinx()
    other.loglog(classes, [r["memory"] / 2**20 for r in result["scaling"]], "s--", color="C1")
    other.set_ylabel("MiB over the inputs", color="C1")
    figure.tight_layout()
    figure.savefig(folder / "head_scaling.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=["cpu", "wall"])
    parser.add_argument("--quick", action="store_true", help="small sizes, three rounds")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.clock = options.clock or ("cpu" if options.threads == 1 else "wall")
    if options.work:
        form, *size = options.work
        worker(form, Size(*map(int, size)), options.threads, options.clock)
        return
    if options.memory:
        form, *size, task = options.memory
        print(measure_memory(form, Size(*map(int, size)), task, options.budget))
        return
    if options.quick:
        options.rounds = 3
    result = {
        "command": " ".join(["python benchmarks/head.py", *sys.argv[1:]]),
        "machine": {
            "processor": _processor(),
            "torch": torch.__version__,
            "threads": options.threads,
            "clock": "processor" if options.clock == "cpu" else "wall",
            "load": os.getloadavg()[0],
        },
        "table": [table_row(size, options) for size in (TABLE[:4] if options.quick else TABLE)],
        "scaling": [
            scaling_row(size, options) for size in (SCALING[:3] if options.quick else SCALING)
        ],
        "subsets": None if options.quick else subset_row(options),
    }
    result["fitted_from"] = 500 if options.quick else 2000
    result["exponent"] = fitted_exponent(result["scaling"], least=result["fitted_from"])
    result["machine"]["rate"] = statistics.median(row["rate"] for row in result["table"])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "head.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.out / "head.md").write_text(markdown(result))
    draw(result, options.figures)
    print(f"wrote {options.out / 'head.json'} and head.md")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
