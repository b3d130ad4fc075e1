"""``python -m lightning_vamo`` is the console command."""

from lightning_vamo.cli import main

if __name__ == "__main__":
    main()
