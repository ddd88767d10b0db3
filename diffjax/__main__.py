"""Entry point of `python launch.py`, `python -m diffjax` and the console script `diffjax`."""

import sys

from diffjax import platform


def main() -> None:
    """Runs the command line on sys.argv and exits with its code."""
    platform.configure()  # before anything imports jax
    from diffjax.commands import main as run

    sys.exit(run(sys.argv))


if __name__ == "__main__":
    main()
