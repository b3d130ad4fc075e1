"""Train a module with VAMO from Python: the mixin in front of the class, the callback on the Trainer.

python examples/python_api.py
"""

import lightning as L
from digits import Digits, DigitsClassifier

from lightning_vamo import VAMOCallback, VAMOMixin


class VAMODigitsClassifier(VAMOMixin, DigitsClassifier):
    """The classifier, which knows nothing of VAMO, with the mixin in front."""


if __name__ == "__main__":
    L.seed_everything(0)
    vamo = VAMOCallback(probes=8)
    trainer = L.Trainer(max_epochs=10, accelerator="cpu", callbacks=[vamo], log_every_n_steps=10)
    trainer.fit(VAMODigitsClassifier(), Digits())
    print(vamo.report)
