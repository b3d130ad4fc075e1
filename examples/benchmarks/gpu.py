"""VAMO on a GPU: the tests that need one, times of steps, sweeps and MeZO, and whether a step makes the program wait.

    python examples/benchmarks/gpu.py --json gpu.json --markdown gpu.md   # under eight minutes on a GPU
    python examples/benchmarks/gpu.py --dry-run                           # the same on a CPU, with tiny models, in a minute

It needs torch, lightning and this checkout, and nothing else. Each figure is a ratio to plain training of the same module, in
the same run. What there is no time for is left out, and the table says so.
"""

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import lightning as L  # noqa: E402
import torch  # noqa: E402
from cost_training import silence  # noqa: E402
from gpu_models import Model, models  # noqa: E402
from gpu_runs import METHODS, Figures, measure  # noqa: E402

HEAD = [
    "model",
    "precision",
    "compiled",
    "trained with",
    "step",
    "× plain",
    "sweep's forward",
    "× bare",
    "peak memory",
    "waits",
]


def run_tests(dry: bool, seconds: float) -> str:
    """Run the tests that need a GPU.

    Args:
        dry: Whether there is none: the tests are then collected and skipped.
        seconds: How long they may take.

    Returns:
        What came of them, in a line.
    """
    if importlib.util.find_spec("pytest") is None:
        return "not run: pytest is not installed"
    files = [str(ROOT / "tests" / "integration" / "test_gpu.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    command += ["--collect-only"] if dry else []
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    last = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()
    failed = [line for line in last if line.startswith("FAILED")]
    return "; ".join([last[-1].strip("= "), *failed])


def hardware() -> dict[str, str]:
    """What the figures are for."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "gpu": ", ".join(gpus) or "none: a dry run",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "lightning": L.__version__,
        "python": platform.python_version(),
    }


def variants(dry: bool) -> list[tuple[str, str | None]]:
    """Precisions and compilers, the most telling ones first; a dry run has half of them, and needs no compiler."""
    if dry:
        return [("32-true", None), ("bf16-mixed", "eager")]
    return [("32-true", None), ("bf16-mixed", None), ("bf16-mixed", "inductor"), ("32-true", "inductor")]


def cells(model: Model, precision: str, compiled: str | None, name: str, figures: Figures, plain: Figures) -> list[str]:
    """A line of the table."""
    ratio = "–" if figures.step is None or plain.step is None else f"{figures.step / plain.step:.3f}"
    swept = figures.forward is not None and plain.forward is not None
    return [
        f"{model.title}, {model.dimension():,} parameters",
        precision,
        "yes" if compiled else "no",
        name,
        figures.note or (f"{1e3 * figures.step:.2f} ms" if figures.step is not None else "–"),
        ratio,
        f"{1e3 * figures.forward:.2f} ms" if swept else "–",
        f"{figures.forward / plain.forward:.3f}" if swept else "–",
        f"{figures.peak / 2**20:.0f} MiB" if figures.peak else "–",
        figures.waits,
    ]


def benchmark(names: list[str], dry: bool, until: float) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Measure everything that there is time for.

    Args:
        names: Which models.
        dry: Whether to take tiny models and the CPU.
        until: When to stop, by ``time.perf_counter``.

    Returns:
        The lines of the table, and the figures.
    """
    lines, found = [], []
    chosen = [model for model in models(tiny=dry) if model.title in names]
    for precision, compiled in variants(dry):
        for model in chosen:
            plain = Figures()
            for name in METHODS:
                late = time.perf_counter() > until
                figures = Figures(note="no time left") if late else measure(model, name, precision, compiled, dry)
                plain = figures if name == "plain" else plain
                lines.append(cells(model, precision, compiled, name, figures, plain))
                labels = {"model": model.title, "precision": precision, "compiled": compiled, "method": name}
                found.append({**labels, "dimension": model.dimension(), **vars(figures)})
                print(" | ".join(lines[-1]), file=sys.stderr, flush=True)
    return lines, found


def markdown(machine: dict[str, str], tests: str, lines: list[list[str]]) -> str:
    """The report: the machine, the tests, and the table."""
    rows = [HEAD, ["---"] * len(HEAD), *lines]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"Measured on: {', '.join(f'{key} {value}' for key, value in machine.items())}.\n\nGPU tests: {tests}.\n\n{table}\n"


def parse() -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU; without a GPU nothing else is possible")
    titles = ["MLP", "ResNet", "Transformer"]
    parser.add_argument("--models", nargs="*", choices=titles, default=titles)
    parser.add_argument("--skip-tests", action="store_true", help="leave the tests out")
    parser.add_argument("--seconds", type=float, default=460.0, help="time for all; what is left then is skipped")
    parser.add_argument("--json", type=Path, help="file for every figure")
    parser.add_argument("--markdown", type=Path, help="file for the table, which is printed too")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device: pass --dry-run to try the command on the CPU")
    return arguments


def main() -> None:
    """Test, measure, print the table, and write the files that were asked for."""
    arguments, start = parse(), time.perf_counter()
    silence()
    if arguments.dry_run:
        torch.set_num_threads(1)  # on tensors this small threads wait for each other
    machine = hardware()
    lines, figures = benchmark(arguments.models, arguments.dry_run, start + 0.65 * arguments.seconds)
    left = max(1.0, start + arguments.seconds - time.perf_counter())
    tests = "left out" if arguments.skip_tests else run_tests(arguments.dry_run, left)
    text = markdown(machine, tests, lines)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text)
    if arguments.json:
        seconds = time.perf_counter() - start
        arguments.json.write_text(
            json.dumps({"machine": machine, "tests": tests, "seconds": seconds, "runs": figures}, indent=2)
        )


if __name__ == "__main__":
    main()
