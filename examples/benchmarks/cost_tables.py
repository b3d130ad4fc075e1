"""The figures of a cost benchmark, and the Markdown tables that docs/explanation/cost.md shows."""

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

from cost_memory import Memory
from cost_training import PLAIN, Method, Run, has_storage

MIB = 2**20


@dataclass
class Times:
    """What a method took, in seconds, a figure per round.

    Attributes:
        step: Per training step.
        plain: Per training step of the plain runs before and after it.
        evaluation: Per forward pass of its sweep.
        bare: Per forward pass of the bare loop beside it.
        drawing: Per snapshot, beside the sweep.
    """

    step: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    evaluation: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    drawing: list[float] = field(default_factory=list)

    def add(self, run: Run, plain: float, bare: float) -> None:
        """Add the figures of a round."""
        for name, value in {**asdict(run), "plain": plain, "bare": bare}.items():
            getattr(self, name).append(value)


@dataclass(frozen=True)
class Result:
    """All figures of a model.

    Attributes:
        title: The model's name.
        dimension: ``d``, its number of trainable parameters.
        times: What each method took; empty if it was not measured.
        memory: What each method held; empty if it was not measured.
    """

    title: str
    dimension: int
    times: dict[Method, Times]
    memory: dict[Method, Memory]

    def plain(self) -> dict[str, Any]:
        """The same as lists and dictionaries."""
        return {
            "model": self.title,
            "dimension": self.dimension,
            "times": [{**asdict(method), **asdict(times)} for method, times in self.times.items()],
            "memory": [{**asdict(method), **asdict(memory)} for method, memory in self.memory.items()],
        }


def markdown(results: list[Result], machine: str, skipped: dict[str, str]) -> str:
    """All tables, with the machine that they are for, and what was left out and why."""
    parts = [f"Measured on: {machine}.", *(f"Skipped: {name}, since {reason}." for name, reason in skipped.items())]
    timed = [result for result in results if result.times]
    weighed = [result for result in results if result.memory]
    if timed:
        parts += ["### Training steps: time relative to plain training", step_table(timed)]
    if any(method.probes for result in timed for method in result.times):
        parts += ["### Sweeps: time per forward pass, relative to a bare one", sweep_table(timed)]
    if weighed:
        parts += ["### Peak memory, relative to plain training", memory_table(weighed)]
    return "\n\n".join(parts)


def step_table(results: list[Result]) -> str:
    """Training steps: a row per model and kind of directions, a column per number of probes."""
    counts = sorted({method.probes for result in results for method in result.times if method.probes is not None})
    rows = []
    for result in results:
        again = result.times[PLAIN]
        start = [f"{1e3 * median(again.plain):.1f} ms", ratio(again.step, again.plain)]
        for kind, of in kinds(result.times):
            cells = [ratio(times.step, times.plain) if (times := of(q)) else "–" for q in counts]
            rows.append([title(result), kind, *start, *cells])
    return table(["model", "directions", "plain step", "plain again", *(f"q = {q}" for q in counts)], rows)


def sweep_table(results: list[Result]) -> str:
    """Sweeps: a row per model and kind of directions, a column per number of probes, and what drawing took."""
    counts = sorted({method.probes for result in results for method in result.times if method.probes})
    rows = []
    for result in results:
        for kind, of in kinds(result.times):
            most = of(counts[-1])
            cells = [ratio(times.evaluation, times.bare) if (times := of(q)) else "–" for q in counts]
            figures = [f"{1e3 * median(most.bare):.1f} ms", *cells, f"{1e3 * median(most.drawing):.0f} ms"]
            rows.append([title(result), kind, *figures])
    columns = [f"q = {q}" for q in counts]
    return table(["model", "directions", "bare forward", *columns, f"drawing {counts[-1]} directions"], rows)


def memory_table(results: list[Result]) -> str:
    """Peak memory: a row per method."""
    rows = []
    for result in results:
        plain = result.memory[PLAIN]
        for method, memory in result.memory.items():
            more = (memory.peak - plain.peak) / (method.probes * memory.parameters) if method.probes else None
            rows.append(
                [
                    title(result),
                    "plain" if method == PLAIN else f"{kind_of(method)}, q = {method.probes}" if method.probes else "q = 0",
                    f"{memory.peak / MIB:.1f} MiB",
                    f"{memory.peak / plain.peak:.3f}",
                    f"{memory.training / MIB:.1f} MiB",
                    f"{memory.training / plain.training:.3f}",
                    "–" if more is None else f"{more:.2f}",
                ]
            )
    heads = ["process", "ratio", "training alone", "ratio", "more than plain, in q·d numbers"]
    return table(["model", "method", *heads], rows)


def kinds(times: dict[Method, Times]) -> Iterable[tuple[str, Callable[[int], Times | None]]]:
    """Each family and storage that was timed, with a function that gives its times for a number of probes."""
    for kind in dict.fromkeys(kind_of(method) for method in times if method.probes) or ["–"]:
        found = {method.probes: value for method, value in times.items() if not method.probes or kind_of(method) == kind}
        yield kind, found.get


def kind_of(method: Method) -> str:
    """Family, and storage where the family has the choice."""
    name = re.sub(r"\B([A-Z])", r" \1", method.family.removesuffix("Directions")).lower()
    return f"{name}, {method.storage}" if has_storage(method.family) else name


def title(result: Result) -> str:
    """The model and its size."""
    return f"{result.title}, {result.dimension:,} parameters"


def ratio(values: list[float], references: list[float]) -> str:
    """The median over the rounds of a ratio, with its quartiles."""
    ratios = [value / reference for value, reference in zip(values, references, strict=True)]
    low, middle, high = quantiles(ratios, method="inclusive")
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
