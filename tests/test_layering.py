"""Imports between packages follow the order of docs/architecture.md."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "diffjax"
SHARED = {
    "__version__",
    "compositing",
    "errors",
    "io",
    "numbers",
    "parsing",
    "progress",
    "registry",
    "remote",
    "typing",
}
MAY_IMPORT = {  # by package or root module, which may also import itself
    "diffusion": set(),
    "latents": {"typing"},
    "published": SHARED,
    "nn": {"latents", "published"} | SHARED,
    "models": {"diffusion", "latents", "nn"} | SHARED,
    "data": SHARED,
    "cluster": {"errors"},
    "metrics": {"diffusion", "nn"} | SHARED,
    "runs": {"cluster", "data", "models", "nn", "published"} | SHARED,
    "conversion": {"data", "diffusion", "latents", "models", "nn", "published", "runs"} | SHARED,
    "inference": {"cluster", "data", "diffusion", "metrics", "models", "nn", "runs"} | SHARED,
    "training": {"cluster", "data", "inference", "models", "runs"} | SHARED,
    "evaluation": {"data", "diffusion", "inference", "metrics", "models", "nn", "runs"} | SHARED,
    "benchmark": {"conversion", "latents", "models", "nn", "published", "runs", "training"} | SHARED,
    "reproduce": {"evaluation", "inference", "metrics", "models", "runs", "training"} | SHARED,
    "demo": {"data", "diffusion", "evaluation", "inference", "models", "runs"} | SHARED,
    "__version__": set(),
    "compositing": set(),
    "errors": set(),
    "io": {"errors"},
    "numbers": set(),
    "parsing": {"errors"},
    "progress": set(),
    "registry": {"errors"},
    "remote": {"errors", "io"},
    "typing": set(),
    "xla_flags": {"errors", "io"},
    "api": {"conversion", "diffusion", "errors", "evaluation", "inference", "metrics", "models", "runs", "training"},
    "__init__": {"api", "xla_flags"},
    "__main__": {"cli"},
}
WITHOUT_CONFIGS = ("diffusion", "latents", "published", "nn", "data", "cluster", "metrics")


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("diffjax.")}


def test_every_import_follows_the_order():
    offenders = []
    for path in sorted(PACKAGE.rglob("*.py")):
        package = package_of(path)
        if package == "cli":  # the top: it may import all
            continue
        assert package in MAY_IMPORT, f"{package} is not in MAY_IMPORT"
        if upward := imported_packages(path) - MAY_IMPORT[package] - {package}:
            offenders.append(f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(upward))}")
    assert not offenders


def test_the_order_has_no_cycle():
    order: list[str] = []

    def visit(package: str, above: tuple[str, ...]) -> None:
        assert package not in above, f"cycle: {' -> '.join((*above, package))}"
        if package not in order:
            for below in MAY_IMPORT[package] - {package}:
                visit(below, (*above, package))
            order.append(package)

    for package in MAY_IMPORT:
        if not package.startswith("__"):
            visit(package, ())


def test_mathematics_networks_and_data_do_not_read_configs():
    readers = [
        p for name in WITHOUT_CONFIGS for p in (PACKAGE / name).rglob("*.py") if "ml_collections" in p.read_text()
    ]
    assert not readers


def test_importing_the_package_does_not_import_jax():
    """XLA's flags are set after diffjax and before jax is imported."""
    code = "import sys, diffjax, diffjax.xla_flags; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
