"""An experiment: the YAML file of what is trained, with which methods, and at which learning rates."""

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

FOLDER = Path(__file__).parent / "experiments"
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A dictionary with the values of two, section by section; the second wins.

    Args:
        one: The first.
        other: The second. A key with an exclamation mark replaces the whole section instead of adding to it.

    Returns:
        A new dictionary.
    """
    result = deepcopy(one)
    for name, value in other.items():
        if name.endswith("!"):
            result[name[:-1]] = deepcopy(value)
        elif isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = merged(result[name], value)
        else:
            result[name] = deepcopy(value)
    return result


def read(name: str) -> dict[str, Any]:
    """The YAML file of an experiment, on top of the one that it ``extends``."""
    contents = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    base = contents.pop("extends", None)
    return contents if base is None else merged(read(base), contents)


def names() -> list[str]:
    """All experiments."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@dataclass(frozen=True)
class Experiment:
    """What is trained, and how.

    Attributes:
        name: Name of its file.
        title: What it is, in a line.
        fit: The configuration of ``lightning-vamo fit`` that all methods share.
        methods: What each method changes of it; a method without a section ``method`` is plain Lightning's.
        rates: Learning rates, the same for all methods.
        tune: ``"search"``: runs with a seed of their own choose each method's rate. ``"all"``: all rates are run. ``"start"``:
            only the rate that the search would begin with.
        start: Where the search begins, by the optimizer.
        figures: What tables and plots show besides the training loss, by which rates are chosen.
        seeds: Of the runs that are reported.
        every: Steps from one measurement to the next.
        shown: Methods that are drawn; by default all.
        drawn: Figures that are drawn; by default the training loss and ``figures``.
        plot: What is drawn: figures over their cost, or over the learning rate; None draws nothing.
        goals: The largest training loss of ``auto`` relative to the first method's, by what equal costs are counted in.
        gap: Whether the goals are of the gap to the least training loss, which LBFGS finds.
    """

    name: str
    title: str
    fit: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    rates: list[float]
    tune: Literal["search", "all", "start"] = "search"
    start: float = 0.1
    figures: tuple[str, ...] = ("val_loss",)
    seeds: tuple[int, ...] = (0, 1, 2)
    every: int = 50
    shown: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    plot: Literal["cost", "rates"] | None = "cost"
    goals: dict[str, float] = field(default_factory=dict)
    gap: bool = False

    @classmethod
    def load(cls, name: str, *, small: bool = False) -> "Experiment":
        """Read an experiment.

        Args:
            name: Name of its file.
            small: Whether to read the small version: the file's section ``small`` says what is different.

        Returns:
            The experiment.
        """
        contents = read(name)
        less = contents.pop("small")
        chosen = less.pop("only", None) if small else None
        contents = merged(contents, less) if small else contents
        methods = expanded(contents.pop("methods"))
        if chosen is not None:
            methods = {name: methods[name] for name in chosen}
        return cls(name=name, methods=methods, **contents)

    def config(self, method: str, lr: float, seed: int) -> dict[str, Any]:
        """The configuration of one run, as ``lightning-vamo fit`` takes it.

        Args:
            method: Name of the method.
            lr: Learning rate.
            seed: Seed of the weights, the order of the data, and the directions.

        Returns:
            The configuration; ``{data}`` in it stands for the folder of the data.
        """
        change = {key: value for key, value in self.methods[method].items() if key != "start"}
        run = {"seed_everything": seed, "model": {"init_args": {"lr": lr}}, "trainer": QUIET}
        return merged(merged(self.fit, change), run)

    def title_at(self, lr: float) -> str:
        """The title, with the learning rate if there are several."""
        return f"{self.title}, {lr:g}" if len(self.rates) > 1 else self.title

    def begins(self, method: str) -> float:
        """The learning rate that a method's search begins with."""
        return self.methods[method].get("start", self.start)


def expanded(methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The methods, with one for each value of those that have an ``each``.

    Args:
        methods: By name. ``each: {method.init_args.probes: [1, 3]}`` makes two methods, ``NAME 1`` and ``NAME 3``.

    Returns:
        The methods, in the same order.
    """
    result = {}
    for name, method in methods.items():
        [(path, values)] = method.get("each", {"": [None]}).items()
        plain = {key: value for key, value in method.items() if key != "each"}
        for value in values:
            if not path:
                result[name] = plain
                continue
            change: Any = value
            for key in reversed(path.split(".")):
                change = {key: change}
            result[f"{name} {_words(value)}"] = merged(plain, change)
    return result


def _words(value: Any) -> str:
    if isinstance(value, dict):  # an object: its class, and its arguments
        arguments = ", ".join(f"{name}={argument}" for name, argument in value.get("init_args", {}).items())
        return f"{value['class_path'].rpartition('.')[2]}({arguments})"
    return f"{value:g}" if isinstance(value, float) else str(value)
