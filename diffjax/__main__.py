"""`python -m diffjax`: the same command line as launch.py and the console script `diffjax`."""

from diffjax.cli import start

if __name__ == "__main__":
    start()
