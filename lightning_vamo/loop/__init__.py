"""Everything that touches Lightning, in folders and files, each of which imports only what is below it in this list.

=============== =====================================================================================================
``checkpoint/``  Save the state of a run in a checkpoint, and resume a run from a checkpoint.
``run/``         Everything that one fit owns on one rank. Only the run assigns its snapshot and its parts.
``step/``        The manual training step: the driver that answers ``training_step``, the closure, the correction.
``gradient/``    Gradients of steps: by backpropagation, from forward passes, by direct search. No import of ``control/``.
``control/``     Control variates: snapshots, and the rows of their steps. No import of ``gradient/``.
``sweep/``       Evaluate the user's loss: the oracle, and batches at a snapshot and at points around the snapshot.
``plan/``        The batches of an epoch: record them, know them in advance, replay them, read them again.
``guards/``      Leave no trace: put back what the user's code changes while it is evaluated.
``ledger/``      The costs and the benefit of a run: totals, clocks, warnings, seeds.
``observer``     Hooks that are called when a run probes, takes a snapshot, or corrects a gradient.
``checks``       Refuse a Trainer or a module that cannot be trained.
``parameters``   The parameters that a method moves or corrects.
``compat/``      Every access to Lightning's private parts.
=============== =====================================================================================================

The data goes from the DataLoader through ``plan`` and ``sweep`` to ``control``, which keeps the rows. At a step, ``gradient``
fills ``.grad``, the rows correct ``.grad``, and the user's optimizer steps. ``make rooms`` prints the imports between folders.
"""
