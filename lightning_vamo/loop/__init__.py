"""Everything that touches Lightning, in rooms. Each imports only rooms below it in this list.

=============== =====================================================================================================
``checkpoint/``  What a checkpoint holds of a run, and how a run resumes from it.
``run/``         Everything that one fit owns on one rank. Only the run assigns its snapshot and its parts.
``step/``        The manual training step: the driver that answers ``training_step``, the closure, the correction.
``gradient/``    Where the gradient of a step comes from. It knows nothing of ``control/``.
``control/``     What is taken out of the gradient: snapshots, and where the rows of their steps come from. It knows
                 nothing of ``gradient/``.
``sweep/``       Evaluating the user's loss: the oracle, batches at a snapshot and at points around it.
``plan/``        The batches of an epoch: recorded, told beforehand, replayed, read again.
``guards/``      Leave no trace: put back what the user's code changes while it is evaluated.
``ledger/``      What a run costs and what it was worth: totals, clocks, warnings, seeds.
``observer``     Hooks that are called where a run probes, takes a snapshot, and corrects a gradient.
``checks``       Every refusal that concerns the Trainer and the module.
``parameters``   The parameters that a method moves.
``compat/``      Every access to Lightning's private parts.
=============== =====================================================================================================

The way of the data: DataLoader, ``plan``, ``sweep``, ``control`` (the rows), ``gradient`` at the step, the correction in
``.grad``, the user's optimizer. ``make rooms`` prints the arrows between the rooms.
"""
