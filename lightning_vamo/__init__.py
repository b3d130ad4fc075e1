"""VAMO for PyTorch Lightning: put a mixin in front of a module, add a callback to the Trainer, and train.

References:
    Chen & Ma, "VAMO: Efficient Zeroth-Order Variance Reduction for SGD with Faster Convergence", arXiv:2505.13954.
"""

from lightning_vamo.callbacks.mezo import MeZOCallback
from lightning_vamo.callbacks.s2p import S2PCallback
from lightning_vamo.callbacks.svrg import SVRGCallback
from lightning_vamo.callbacks.vamo import VAMOCallback
from lightning_vamo.callbacks.zosvrg import ZOSVRGCallback
from lightning_vamo.core.gradient.estimate import estimate_gradient
from lightning_vamo.errors import InvalidArgumentError, NonFiniteLossError, UnsupportedError, VAMOError
from lightning_vamo.finder.find import find_probes
from lightning_vamo.finder.finding import ProbeFigures, ProbeFinding
from lightning_vamo.loop.control.carried import Carry
from lightning_vamo.loop.control.recompute import Recompute
from lightning_vamo.loop.control.replayed import Replay
from lightning_vamo.loop.observer import RunObserver
from lightning_vamo.mixin import VAMOMixin, with_vamo
from lightning_vamo.report import MethodReport

__version__ = "0.2.0"

__all__ = [
    "Carry",
    "InvalidArgumentError",
    "MeZOCallback",
    "MethodReport",
    "NonFiniteLossError",
    "ProbeFigures",
    "ProbeFinding",
    "Recompute",
    "Replay",
    "RunObserver",
    "S2PCallback",
    "SVRGCallback",
    "UnsupportedError",
    "VAMOCallback",
    "VAMOError",
    "VAMOMixin",
    "ZOSVRGCallback",
    "__version__",
    "estimate_gradient",
    "find_probes",
    "with_vamo",
]
