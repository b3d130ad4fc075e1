"""``python -m lightning_vamo`` runs the console command ``lightning-vamo``."""

from lightning_vamo.cli import main

if __name__ == "__main__":
    main()
