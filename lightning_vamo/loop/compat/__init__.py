"""Every access to Lightning's private parts, in one place.

Checked with Lightning 2.6.0 and 2.6.6. Each function names the private part that it uses, or says why no public part is enough.
"""

from lightning_vamo.loop.compat.attributes import replaced
from lightning_vamo.loop.compat.hooks import backward, drop_gradients, optimizer_step, step_context, zero_grad
from lightning_vamo.loop.compat.launch import FitEnded, fit_until_ended, fits_in_other_processes, launched, parts
from lightning_vamo.loop.compat.loaders import before_transfer, loader_mode, to_device, train_loader
from lightning_vamo.loop.compat.logs import log_state, metric_states, quick_logs, set_log_state, set_metric_states
from lightning_vamo.loop.compat.random import generators, rng_states, set_rng_states
from lightning_vamo.loop.compat.resume import (
    continued,
    end_batch_on_resume,
    ended_epoch,
    in_validation,
    last_reload,
    position,
    resume_schedulers,
    set_last_reload,
    step_plateau_schedulers,
)
from lightning_vamo.loop.compat.steps import (
    accumulates,
    backward_is_watched,
    has_no_optimizer,
    is_compiled,
    manual,
    manual_steps,
    run_training_step,
    skips_backward,
    step_arguments,
    step_loss,
    step_output,
    trainer_of,
    within_step,
    without_gradient_sync,
)
from lightning_vamo.loop.compat.strategies import (
    autocast_dtype,
    averages_gradients,
    flushed_static_graph,
    grad_scale,
    resharding,
    shares_weights,
    without_buffer_sync,
)

__all__ = [
    "FitEnded",
    "accumulates",
    "autocast_dtype",
    "averages_gradients",
    "backward",
    "backward_is_watched",
    "before_transfer",
    "continued",
    "drop_gradients",
    "end_batch_on_resume",
    "ended_epoch",
    "fit_until_ended",
    "fits_in_other_processes",
    "flushed_static_graph",
    "generators",
    "grad_scale",
    "has_no_optimizer",
    "in_validation",
    "is_compiled",
    "last_reload",
    "launched",
    "loader_mode",
    "log_state",
    "manual",
    "manual_steps",
    "metric_states",
    "optimizer_step",
    "parts",
    "position",
    "quick_logs",
    "replaced",
    "resharding",
    "resume_schedulers",
    "rng_states",
    "run_training_step",
    "set_last_reload",
    "set_log_state",
    "set_metric_states",
    "set_rng_states",
    "shares_weights",
    "skips_backward",
    "step_arguments",
    "step_context",
    "step_loss",
    "step_output",
    "step_plateau_schedulers",
    "to_device",
    "train_loader",
    "trainer_of",
    "within_step",
    "without_buffer_sync",
    "without_gradient_sync",
    "zero_grad",
]
