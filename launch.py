"""The command line of diffjax: `python launch.py --help`."""

import sys

from diffjax.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
