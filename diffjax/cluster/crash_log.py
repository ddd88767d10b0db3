"""Shortens the log of jax to one line when jax ends a process because another process is gone.

jax then logs a C++ stack trace and aborts without returning to Python. So standard error passes through this script,
which runs in a process of its own.
"""

import re
import sys
from collections.abc import Iterable, Iterator

FATAL = "Terminating process because the JAX distributed service detected fatal errors"
_DETAIL = re.compile(r"^[IWEF]\d{4} .*coordination_service(_agent)?\.cc")  # earlier reports of the same error


def in_one_line(lines: Iterable[str]) -> Iterator[str]:
    """Yields the lines; the message that jax ends the process, and all lines after it, become one line."""
    iterator, passing = iter(lines), True
    for line in iterator:
        if FATAL in line:
            yield f"error: {_reason(line + ''.join(iterator))}\n"
            return
        passing = not _DETAIL.match(line) and (passing or bool(re.match(r"[IWEF]\d{4} |error: ", line)))
        if passing:
            yield line


def _reason(log: str) -> str:
    """Returns the cause of the abort and its remedy."""
    restart = "start all processes again to continue at the last checkpoint"
    if "unhealthy" in log:
        numbers = re.findall(r"^(\d+)$", log, re.MULTILINE)
        return f"process {', '.join(numbers) or 'another'} stopped or does not answer; {restart}"
    if "Failed to send RPC" in log or ("DEADLINE_EXCEEDED" in log and "RegisterTask" not in log):
        return f"process 0, the coordinator, stopped or does not answer; {restart}"
    if "RegisterTask" in log:
        if "DEADLINE_EXCEEDED" in log:
            return "not all processes joined in time; start them all with the same --processes, or raise --wait"
        status = re.search(r"absl::Status: (.*)", log)
        return (
            f"the coordinator refuses this process ({status.group(1)[:120] if status else 'unknown'}); start each "
            "--process once, with the same --processes"
        )
    status = re.search(r"absl::Status: (.*)", log)
    return f"jax ends this process ({status.group(1)[:200] if status else 'no reason given'}); {restart}"


if __name__ == "__main__":
    for line in in_one_line(sys.stdin):
        sys.stderr.write("\n" * line.startswith("error: ") + line)  # ends the line of a progress bar
        sys.stderr.flush()
    for _ in sys.stdin:  # so that no process writes to a closed pipe
        pass
