"""The command line of diffjax: `python launch.py --help`."""

import sys

from diffjax import platform

if __name__ == "__main__":
    platform.configure()  # before anything imports jax
    from diffjax.commands import main

    sys.exit(main(sys.argv))
