"""What jax says when it ends a process because another one is gone, in one line. Run as a file, between two streams.

jax then logs a stack trace from C++ and aborts, where Python has no say; so standard error goes through this process.
"""

import re
import sys
from collections.abc import Iterable, Iterator

FATAL = "Terminating process because the JAX distributed service detected fatal errors"
_DETAIL = re.compile(r"^[IWEF]\d{4} .*coordination_service(_agent)?\.cc")  # the same, told before


def in_one_line(lines: Iterable[str]) -> Iterator[str]:
    """The lines as they come; from the one on which says that jax ends the process, one line instead of them."""
    lines, passing = iter(lines), True
    for line in lines:
        if FATAL in line:
            yield f"error: {_reason(line + ''.join(lines))}\n"
            return
        passing = not _DETAIL.match(line) and (passing or bool(re.match(r"[IWEF]\d{4} |error: ", line)))
        if passing:
            yield line


def _reason(log: str) -> str:
    restart = "start all of them again: they continue at the last checkpoint"
    if "unhealthy" in log:
        gone = re.findall(r"^(\d+)$", log, re.MULTILINE)
        return f"process {', '.join(gone) or 'another'} stopped or does not answer; {restart}"
    if "Failed to send RPC" in log or ("DEADLINE_EXCEEDED" in log and "RegisterTask" not in log):
        return f"process 0, the coordinator, stopped or does not answer; {restart}"
    if "RegisterTask" in log:
        if "DEADLINE_EXCEEDED" in log:
            return "not all processes came in time: start them all, with the same --processes, or raise --wait"
        status = re.search(r"absl::Status: (.*)", log)
        return (
            f"the coordinator refuses this process ({status.group(1)[:120] if status else 'unknown'}): start each "
            "--process once, with the same --processes"
        )
    status = re.search(r"absl::Status: (.*)", log)
    return f"jax ends this process ({status.group(1)[:200] if status else 'no reason given'}); {restart}"


if __name__ == "__main__":
    for line in in_one_line(sys.stdin):
        sys.stderr.write("\n" * line.startswith("error: ") + line)  # a progress bar may stand in its line
        sys.stderr.flush()
    for _ in sys.stdin:  # read to its end, so that nobody writes to a closed pipe
        pass
