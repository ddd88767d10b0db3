"""Prepares a data set on disk: `python -m diffjax.data.prepare emoji --manual_dir=PACKAGES --data_dir=DIR`."""

import argparse
import sys
from collections.abc import Sequence

from diffjax.data import sources
from diffjax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m diffjax.data.prepare",
        description="Prepares a data set of diffjax on disk. For emoji, run `npm install` of the four packages first "
        "(leave out --manual_dir to see the line). For the other sets it says which command prepares them, if any.",
    )
    parser.add_argument("name", choices=sorted(sources.CLASSES), help="the data set")
    parser.add_argument("--data_dir", help="the folder that prepared data sets lie in (the config's data directory)")
    parser.add_argument("--manual_dir", help="emoji: the folder in which the npm packages were installed")
    parser.add_argument("--image_size", type=int, choices=(32, 64), default=64, help="emoji: pixels (default: 64)")
    args = parser.parse_args(argv)
    try:
        print(_prepare(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _prepare(args: argparse.Namespace) -> str:
    command = sources.preparation(args.name, args.data_dir, args.image_size)
    if command is None:
        return f"{args.name} needs no preparation"
    if args.name != "emoji":
        return f"prepare {args.name} with: {command}"
    from diffjax.data import emoji

    if args.manual_dir is None:
        raise UserError(f"--manual_dir is not set: run `{emoji.INSTALL}` in a folder and give it as --manual_dir")
    if args.data_dir is None:
        raise UserError("--data_dir is not set: name the folder that prepared data sets lie in")
    builder = emoji.prepare(args.manual_dir, args.data_dir, args.image_size)
    counts = ", ".join(f"{split} {info.num_examples}" for split, info in builder.info.splits.items())
    return f"emoji of {args.image_size} pixels in {builder.data_dir}: {counts}"


if __name__ == "__main__":
    sys.exit(main())
