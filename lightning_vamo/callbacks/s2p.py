"""Direct search: each step moves the weights to the best of two or three points, without a gradient."""

from typing import ClassVar

from lightning_vamo.callbacks.base import MethodCallback
from lightning_vamo.loop.gradient.direct_search import RHO, DirectSearch, Variant, check_variant


class S2PCallback(MethodCallback):
    r"""Train a module that has the :class:`~lightning_vamo.VAMOMixin` by direct search: each step moves to the better point.

    Each step draws one random direction :math:`s \sim \mathcal{N}(0, I_d)`, and evaluates the loss of its batch on both sides
    of the weights. The step length :math:`\alpha` is the learning rate of the parameters' group, so schedulers work.

    - ``"s2p"``, stochastic two-point search: the weights go to the better of :math:`x + \alpha s` and :math:`x - \alpha s`.
    - ``"stp"``, stochastic three points: the weights may also stay where they are, so a step never raises the loss of its
      batch.
    - ``"vs2p"``, with variable step length: the weights go against the slope,

      .. math:: x \leftarrow x - \operatorname{sign}(\gamma)\,\frac{\alpha\rho}{\tau_b\,\sigma/|\gamma| + \tau_b/\tau_a}\, s,
          \qquad \gamma = f_B(x + \rho s) - f_B(x - \rho s), \qquad \tau_a = \tau_b = 3.

      The step is longer where the loss is steeper than in recent steps. Here :math:`\alpha` has no unit: the step is at most
      :math:`\alpha\rho` times :math:`s`, so learning rates are of the order of 1.

    Two details of ``"vs2p"`` are not taken from its paper. :math:`\sigma` is the root mean square of :math:`\gamma` over the
    last 100 steps, including the present step: the mean of :math:`\gamma` is 0, as :math:`s` and :math:`-s` are equally likely.
    A scheduler of the learning rate has to make the step length decay.

    Cost of a step: two forward passes of each batch (``"stp"``: three), and no backward pass. An epoch costs nothing in
    addition to its steps. Memory: that of a forward pass without gradients, a copy of the batch, and about a hundredth of the
    weights' memory for their way back; twice the memory of the weights, where they are no more than eight million numbers.
    Communication of a step under DDP: two numbers per rank (three), in one exchange.

    The optimizer has to be ``torch.optim.SGD`` without momentum and weight decay, since there is no gradient for another
    optimizer. The logs and counters of ``training_step`` count once per batch, from the first evaluation. With gradient
    accumulation, the losses of the batches are added up before they are compared. If the module defines ``probe_loss``, its
    value is minimised, and needs no gradient.

    Logged at the end of each epoch under ``s2p/``: ``probes``, which is 1; ``moved``, the share of steps that moved the
    weights; ``length``, the mean length of the moves relative to :math:`\alpha s`; ``forward_evaluations`` and
    ``backward_evaluations``, the passes over a batch so far.

    Args:
        variant: ``"s2p"``, ``"stp"`` or ``"vs2p"``.
        rho: :math:`\rho`, the distance at which ``"vs2p"`` evaluates the loss: each weight moves by about so much. The other
            variants evaluate the loss where they may step to, and take no ``rho``.
        seed: Seed of the directions; by default derived from the global seed. The global generator is never touched.
        verbose: Whether to log, at the end of training, what the method cost.

    Raises:
        InvalidArgumentError: If an argument has a value that is not allowed.

    References:
        S2P and VS2P: "Stochastic Two Points Method for Deep Model Zeroth-order Optimization", arXiv:2402.01621. STP: Bergou,
        Gorbunov & Richtárik, "Stochastic Three Points Method for Unconstrained Smooth Minimization", arXiv:1902.03591.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[S2PCallback("stp")], logger=False)
    """

    prefix: ClassVar[str] = "s2p"
    title: ClassVar[str] = "S2P"

    def __init__(self, variant: Variant = "s2p", rho: float = RHO, seed: int | None = None, verbose: bool = True) -> None:
        check_variant(variant, rho)
        super().__init__(DirectSearch(variant, rho), seed=seed, verbose=verbose)
        self.title = variant.upper()  # type: ignore[misc]  # reports name the variant
