"""Prints what a step takes beside a plain one, in each way of training with VAMO: bookkeeping for the most part.

    python examples/benchmarks/cost_steps.py                     # two small models, some minutes
    python examples/benchmarks/cost_steps.py --models softmax,small-mlp,minilm --json steps.json

Every run of VAMO stands between two of plain training, in an order that changes from round to round. The table gives the
median over the rounds of the ratio, and the quartiles. The clock is that of what this process computes, on one thread. A
step lasts from the collated batch to the end of its hooks, so the batch's fingerprint counts, and the sweep does not.
"""

import argparse
import json
from pathlib import Path

import cost_models
import torch
from cost import machine, time_rounds
from cost_tables import Times, ratio, table
from cost_training import PLAIN, Method, silence

LEARNED = "GradientSubspaceDirections"


def compared(probes: int) -> dict[str, Method]:
    """The ways of training that are compared with plain training, by their names.

    Args:
        probes: ``q``, where there are probes.

    Returns:
        The methods.
    """
    return {
        "plain again": PLAIN,
        "a callback that does nothing": Method(idles=True),
        "probes=0": Method(0),
        "EfficientProbes that chose 0": Method(0, LEARNED, chooses=True),
        f"carried rows, q={probes}": Method(probes, LEARNED, control="carry"),
        f"sweeps, q={probes}": Method(probes, LEARNED, control="replay"),
    }


def rows(title: str, methods: dict[str, Method], times: dict[Method, Times]) -> list[list[str]]:
    """The rows of a model in the table: the step, and a forward pass of the sweep beside a bare one."""
    lines = []
    for name, method in methods.items():
        found = times[method]
        milliseconds = f"{1e3 * sorted(found.plain)[len(found.plain) // 2]:.2f} ms"
        swept = ratio(found.evaluation, found.bare) if any(found.evaluation) else "–"
        lines.append([title, name, milliseconds, ratio(found.step, found.plain), swept])
    return lines


def parse() -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda names: names.split(","), default=list(cost_models.SMALL_MODELS))
    parser.add_argument("--probes", type=int, default=4, help="q")
    parser.add_argument("--rounds", type=int, default=7, help="at least 2")
    parser.add_argument("--steps", type=int, help="steps of an epoch; by default the model's own number")
    parser.add_argument("--mnist", type=Path, help="folder with MNIST's gzipped test files; random images without")
    parser.add_argument("--json", type=Path, help="file to write every single figure to")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"argument --rounds: it takes at least 2 to tell the spread, got {arguments.rounds}")
    # Of two epochs the second is timed: carried rows are made in the first.
    vars(arguments).update(device=torch.device("cpu"), clock="cpu", epochs=2)
    return arguments


def main() -> None:
    """Measure, print the table, and write the figures as JSON where asked to."""
    arguments = parse()
    silence()
    torch.set_num_threads(1)
    methods, lines, figures = compared(arguments.probes), [], {}
    for name in arguments.models:
        problem = cost_models.load(name, mnist=arguments.mnist)
        times = time_rounds(problem, [method for method in methods.values() if method != PLAIN], arguments)
        lines += rows(problem.title, methods, times)
        figures[name] = {label: vars(times[method]) for label, method in methods.items()}
    print(f"Measured on: {machine(arguments.device, 1, arguments.clock)}.\n")
    print(table(["model", "trained with", "plain step", "step", "sweep's forward pass"], lines))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
