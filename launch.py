"""The command line of diffjax: `python launch.py --help`."""

from diffjax.commands import start

if __name__ == "__main__":
    start()
