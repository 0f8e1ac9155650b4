"""`python -m lightning_ligo` is `lightning-ligo`."""

from lightning_ligo.cli import main

if __name__ == "__main__":
    main()
