"""The command line of diffjax: `python launch.py --help`."""

from diffjax.__main__ import main

if __name__ == "__main__":
    main()
