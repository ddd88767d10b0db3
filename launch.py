"""The command line of diffjax: `python launch.py --help`."""

from diffjax.cli import start

if __name__ == "__main__":
    start()
