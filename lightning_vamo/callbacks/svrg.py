"""SVRG: train with the usual gradient, and subtract noise that the gradients at a snapshot have measured."""

from typing import Literal, get_args

from lightning_vamo.callbacks.base import MethodCallback
from lightning_vamo.errors import InvalidArgumentError
from lightning_vamo.loop.control.anchored import AnchoredControl, NamedAlpha
from lightning_vamo.loop.control.base import Control
from lightning_vamo.loop.control.kept_gradients import CacheGradients, CarryGradients, TableType
from lightning_vamo.loop.control.nothing import Nothing
from lightning_vamo.loop.control.recomputed_gradients import RecomputeGradients
from lightning_vamo.loop.gradient.first_order import FirstOrder
from lightning_vamo.loop.ledger.ways import Ways

Gradients = Literal["recompute", "cache", "carry"]


class SVRGCallback(MethodCallback):
    r"""Train a module that has the :class:`~lightning_vamo.VAMOMixin` with SVRG, α-SVRG, or SAGA over batches.

    SVRG takes a snapshot :math:`\tilde x` of the weights, and computes the gradients of the batches there. Each step then
    corrects its gradient with the gradient of its own batch at the snapshot,

    .. math:: v_k = \nabla f_{B_k}(x_k) - \alpha\,\bigl(\nabla f_{B_k}(\tilde x) - \nabla f(\tilde x)\bigr),

    and the optimizer that the module configures steps with :math:`v_k`.

    Cost, beside plain training of ``d`` parameters with ``K`` batches per epoch:

    ================ ================================ ======================== ====================================
    ``gradients``    per step                         per snapshot             memory
    ================ ================================ ======================== ====================================
    ``"recompute"``  one forward and one backward     K forwards, K backwards  3 d numbers: the snapshot, its full
                     pass                                                      gradient, and the row of the step
    ``"cache"``      none                             K forwards, K backwards  the table, K d numbers, and 2 d
    ``"carry"``      none                             none                     the table, K d numbers, and 2 d
    ================ ================================ ======================== ====================================

    Communication under DDP and FSDP2: each of these backward passes communicates as much as that of a training step; FSDP2
    needs three numbers more per step. A checkpoint from within a snapshot holds the tensors of the memory column.

    Logged at the end of each epoch under ``svrg/``: ``alpha``, the mean coefficient; ``variance_removed``, the share of the
    gradient's second moment that the corrections removed; ``forward_evaluations`` and ``backward_evaluations``, the passes over
    a batch so far; ``rows_unused``; ``row_seconds`` where gradients are recomputed. Logged at the step of each snapshot:
    ``sweep_seconds``.

    Args:
        alpha: The mixing coefficient :math:`\alpha`, or a name. ``"adaptive"`` measures the coefficient by a regression of the
            steps' gradients on their rows: it is 1 while the rows are fresh, and 0 when they say nothing any more.
            ``"linear-decay"``, α-SVRG, falls from 0.75 to 0 over the steps of each snapshot. 0 is plain training.
        every_n_epochs: Epochs from one snapshot to the next.
        gradients: Where a step gets its batch's gradient at the snapshot. ``"recompute"`` computes the gradient in the step.
            ``"cache"`` keeps the gradients of the coming epoch's batches, and trains on these very batches. ``"carry"`` takes
            no snapshot: each step puts its gradient into a table, for the next time that its batch is trained on, as SAGA does,
            and the batches keep their composition. The first epoch is plain training, which fills the table.
        table_dtype: Type of the table of gradients: ``"float64"``, ``"float32"`` or ``"bfloat16"``; by default the type of the
            parameters.
        table_device: Device of the table, such as ``"cpu"``; by default the device of the parameters.
        seed: Seed of the order in which batches are trained on again; by default derived from the global seed.
        verbose: Whether to log, after each epoch and at the end of training, what SVRG cost and how much noise it removed.

    Raises:
        InvalidArgumentError: If an argument has a value that is not allowed, or two arguments do not go together.

    References:
        Johnson & Zhang, "Accelerating stochastic gradient descent using predictive variance reduction", NIPS 2013; Yin et al.,
        "A Coefficient Makes SVRG Effective", arXiv:2311.05589; Defazio et al., "SAGA", arXiv:1407.0202; Ying et al.,
        "Convergence of variance-reduced stochastic learning under random reshuffling", arXiv:1708.01383.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[SVRGCallback(alpha="adaptive")], logger=False)
    """

    title = "SVRG"
    prefix = "svrg"
    ways = Ways("gradients='recompute'", "alpha=0", "gradients='carry'", "gradients='cache'", "its row is", "ranks", False)

    def __init__(
        self,
        alpha: float | NamedAlpha = 1.0,
        every_n_epochs: int = 1,
        gradients: Gradients = "recompute",
        table_dtype: TableType | None = None,
        table_device: str | None = None,
        seed: int | None = None,
        verbose: bool = True,
    ) -> None:
        if gradients not in get_args(Gradients):
            names = ", ".join(map(repr, get_args(Gradients)))
            raise InvalidArgumentError(f"`gradients` must be one of {names}, got {gradients!r}.")
        if gradients == "recompute":
            for name, value in (("table_dtype", table_dtype), ("table_device", table_device)):
                if value is not None:
                    raise InvalidArgumentError(
                        f"`{name}={value!r}` concerns the table of gradients, but gradients='recompute' keeps no table: leave"
                        f" `{name}` out, or set gradients='cache' or gradients='carry'."
                    )
        if gradients == "carry" and every_n_epochs != 1:
            raise InvalidArgumentError(
                f"`every_n_epochs={every_n_epochs!r}` says when to take snapshots, but gradients='carry' takes no snapshots:"
                " leave `every_n_epochs` out."
            )
        chosen: AnchoredControl
        if gradients == "recompute":
            chosen = RecomputeGradients(alpha, every_n_epochs)
        else:
            kept = CacheGradients if gradients == "cache" else CarryGradients
            chosen = kept(alpha, every_n_epochs, dtype=table_dtype, device=table_device)
        control: Control = Nothing() if alpha == 0 else chosen
        super().__init__(FirstOrder(), control, seed=seed, verbose=verbose)
