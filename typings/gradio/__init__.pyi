"""Types of gradio, which is in the extra `demo`: any."""

from typing import Any

def __getattr__(name: str) -> Any: ...
