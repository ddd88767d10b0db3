"""Prepares a data set on disk: `python -m diffjax.data.prepare emoji --manual_dir=PACKAGES --data_dir=DIR`."""

import argparse
import sys
from collections.abc import Sequence

from diffjax.data import sources
from diffjax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares a data set, or prints how to; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m diffjax.data.prepare",
        description="Prepares a data set of diffjax on disk. For emoji, run `npm install` of the four packages first "
        "(omit --manual_dir to see the command). For other data sets, prints the command that prepares them, if any.",
    )
    parser.add_argument("name", choices=sorted(sources.CLASSES), help="name of the data set")
    parser.add_argument("--data_dir", help="folder of prepared data sets (the config's data.dir)")
    parser.add_argument("--manual_dir", help="emoji: folder with the npm packages")
    parser.add_argument("--image_size", type=int, choices=(32, 64), default=64, help="emoji: pixels (default: 64)")
    args = parser.parse_args(argv)
    try:
        print(_prepare(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _prepare(args: argparse.Namespace) -> str:
    command = sources.preparation_command(args.name, args.data_dir, args.image_size)
    if command is None:
        return f"{args.name} needs no preparation"
    if args.name != "emoji":
        return f"prepare {args.name} with: {command}"
    from diffjax.data import emoji

    if args.manual_dir is None:
        raise UserError(
            f"--manual_dir is not set: run `{emoji.INSTALL}` in a folder and pass that folder as --manual_dir"
        )
    if args.data_dir is None:
        raise UserError("--data_dir is not set: pass the folder of prepared data sets")
    builder = emoji.prepare(args.manual_dir, args.data_dir, args.image_size)
    counts = ", ".join(f"{split} {info.num_examples}" for split, info in builder.info.splits.items())
    return f"emoji of {args.image_size} pixels in {builder.data_dir}: {counts}"


if __name__ == "__main__":
    sys.exit(main())
