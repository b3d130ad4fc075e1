"""Every method of the package, with what each claims: one contract test goes through the list."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lightning_vamo import MeZOCallback, S2PCallback, SVRGCallback, VAMOCallback, ZOSVRGCallback
from lightning_vamo.callbacks.base import MethodCallback
from lightning_vamo.core.directions import OrthonormalDirections

LOOKS = 1 + 8 + 4
"""Forward passes of a VAMO sweep beside those of its table: a repeated batch, 8 at twice the radius and 4 at half of it."""


@dataclass(frozen=True)
class Claims:
    """What a method is to do.

    Attributes:
        make: Makes the callback; arguments take the place of its defaults.
        forwards: Forward passes of ``epochs`` epochs with ``batches`` batches each.
        backwards: Backward passes of them.
        off: Arguments with which the method is plain training, bit for bit; None if it has none.
        bad: Arguments that are refused when the callback is made, each with a pattern of the message.
        configuration: What a configuration names the method by.
        adds_gradients: Whether gradients of batches add up in ``.grad``, so that the Trainer's flags mean what they mean there.
        nothing: Arguments with which the method does all its work and yet corrects by nothing; None if it has none.
        looks: How often per epoch batches are evaluated outside of a step: in sweeps, and in rows.
        plain_sgd: Whether the method takes no other optimizer than SGD without momentum.
    """

    make: Callable[..., MethodCallback]
    forwards: Callable[[int, int], int]
    backwards: Callable[[int, int], int]
    bad: list[tuple[dict[str, Any], str]]
    configuration: dict[str, Any]
    off: dict[str, Any] | None = None
    adds_gradients: bool = True
    nothing: dict[str, Any] | None = None
    looks: Callable[[int], dict[str, int]] = lambda batches: {}
    plain_sgd: bool = False

    def fitting(self, cls: type) -> type:
        """A module class as it is, or one like it with an optimizer that the method takes."""
        if not self.plain_sgd:
            return cls
        return type(
            cls.__name__, (cls,), {"configure_optimizers": lambda module: torch.optim.SGD(module.parameters(), lr=0.02)}
        )


def _vamo(**arguments: Any) -> MethodCallback:
    return VAMOCallback(**{"probes": 3, "directions": OrthonormalDirections(), "mu": 1e-2, "seed": 1, **arguments})


def _svrg(gradients: str) -> Callable[..., MethodCallback]:
    def make(**arguments: Any) -> MethodCallback:
        return SVRGCallback(**{"alpha": "adaptive", "gradients": gradients, "seed": 1, **arguments})

    return make


def _s2p(variant: str) -> Callable[..., MethodCallback]:
    def make(**arguments: Any) -> MethodCallback:
        distance = {"rho": 0.3} if variant == "vs2p" else {}
        return S2PCallback(**{"variant": variant, **distance, "seed": 1, **arguments})

    return make


_SVRG_BAD = [
    ({"alpha": -1.0}, r"`alpha` must be one of .* or a finite number >= 0, got -1.0"),
    ({"alpha": "theory"}, r"`alpha` must be one of .*got 'theory'"),
    ({"seed": 1.5}, r"`seed` must be a whole number"),
]


def _svrg_claims(
    gradients: str,
    forwards: Callable[[int, int], int],
    looks: Callable[[int], dict[str, int]],
    bad: list[tuple[dict[str, Any], str]],
) -> Claims:
    return Claims(
        make=_svrg(gradients),
        forwards=forwards,
        backwards=forwards,
        off={"alpha": 0.0},
        nothing=None if gradients == "carry" else {"alpha": 1e-300},  # whose batches keep their composition
        bad=[*_SVRG_BAD, *bad],
        looks=looks,
        configuration={"class_path": "SVRGCallback", "init_args": {"gradients": gradients, "alpha": "adaptive"}},
    )


METHODS = {
    "VAMO": Claims(
        make=_vamo,
        forwards=lambda epochs, batches: epochs * (batches * (1 + 3 + 1) + LOOKS),
        backwards=lambda epochs, batches: epochs * batches,
        off={"alpha": 0.0},
        nothing={"alpha": 1e-300},
        bad=[
            ({"probes": -1}, r"`probes` must be"),
            ({"alpha": "best"}, r"`alpha` must be one of"),
            ({"mu": 0.0}, r"`mu` must be"),
            ({"control": "replays"}, r"`control` must be one of"),
        ],
        looks=lambda batches: {"sweep": 1},
        configuration={
            "class_path": "VAMOCallback",
            "init_args": {"probes": 3, "directions": {"class_path": "OrthonormalDirections"}, "mu": 0.01},
        },
    ),
    "SVRG recompute": _svrg_claims(
        "recompute",
        lambda epochs, batches: epochs * batches * 3,
        lambda batches: {"sweep": 1, "row": batches},
        [
            ({"table_dtype": "float32"}, r"`table_dtype='float32'` concerns the table .*leave `table_dtype` out"),
            ({"gradients": "kept"}, r"`gradients` must be one of .*got 'kept'"),
        ],
    ),
    "SVRG cache": _svrg_claims(
        "cache",
        lambda epochs, batches: epochs * batches * 2,
        lambda batches: {"sweep": 1},
        [
            ({"every_n_epochs": 0}, r"`every_n_epochs` must be a whole number >= 1, got 0"),
            ({"table_dtype": "float16"}, r"`table_dtype` must be one of .*got 'float16'"),
            ({"table_device": "nowhere"}, r"`table_device` must be the name of a device.*got 'nowhere'"),
        ],
    ),
    "SVRG carry": _svrg_claims(
        "carry",
        lambda epochs, batches: epochs * batches,
        lambda batches: {},
        [({"every_n_epochs": 2}, r"`every_n_epochs=2` says when to take snapshots, but gradients='carry' takes no snapshots")],
    ),
    "MeZO": Claims(
        make=lambda **arguments: MeZOCallback(**{"probes": 4, "seed": 1, **arguments}),
        forwards=lambda epochs, batches: epochs * batches * 8,
        backwards=lambda epochs, batches: 0,
        bad=[
            ({"probes": 0}, r"`probes` must be a whole number >= 1, got 0"),
            ({"update": "later"}, r"`update` must be one of"),
            ({"clip": 0.0}, r"`clip` must be a positive, finite number or None, got 0.0"),
            ({"parameters": 7}, r"`parameters` must be a pattern of names"),
        ],
        configuration={"class_path": "MeZOCallback", "init_args": {"probes": 4, "parameters": "net.*"}},
    ),
    "MeZO, forward differences": Claims(
        make=lambda **arguments: MeZOCallback(
            **{"probes": 8, "mu": 0.03, "difference": "forward", "update": "gradient", "seed": 1, **arguments}
        ),
        forwards=lambda epochs, batches: epochs * batches * 9,
        backwards=lambda epochs, batches: 0,
        bad=[({"share": "nothing"}, r"`share` must be one of"), ({"difference": "backward"}, r"`difference` must be one of")],
        configuration={
            "class_path": "MeZOCallback",
            "init_args": {"directions": {"class_path": "RademacherDirections"}, "difference": "forward", "update": "gradient"},
        },
    ),
    "ZO-SVRG": Claims(
        make=lambda **arguments: ZOSVRGCallback(**{"probes": 8, "mu": 0.03, "seed": 1, **arguments}),
        # A step's own, those at the snapshot, the sweep's, and what a sweep looks at beside.
        forwards=lambda epochs, batches: epochs * (batches * (16 + 17 + 17) + 1 + 2 * (8 + 4)),
        backwards=lambda epochs, batches: 0,
        bad=[
            ({"alpha": -1.0}, r"`alpha` must be .*a finite number >= 0, got -1.0"),
            ({"control": "carry"}, r"`control` must be Recompute\(...\) or Replay\(...\), got 'carry'"),
        ],
        looks=lambda batches: {"sweep": 1, "row": batches},
        configuration={
            "class_path": "ZOSVRGCallback",
            "init_args": {"probes": 2, "control": {"class_path": "Recompute", "init_args": {"every_n_train_steps": 3}}},
        },
    ),
    **{
        name: Claims(
            make=_s2p(name.lower()),
            forwards=lambda epochs, batches, points=points: epochs * batches * points,
            backwards=lambda epochs, batches: 0,
            bad=[({"variant": "best"}, r"`variant` must be one of"), ({"rho": 0}, r"`rho` must be a positive, finite number")],
            adds_gradients=False,
            configuration={"class_path": "S2PCallback", "init_args": {"variant": name.lower()}},
            plain_sgd=True,
        )
        for name, points in (("S2P", 2), ("STP", 3), ("VS2P", 2))
    },
}
