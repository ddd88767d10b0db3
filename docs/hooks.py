"""Hooks of mkdocs: the pages that are generated from the code, links to files outside docs/, source code and formulas.

Nothing that is generated is committed. A page writes `<!-- source: FILE NAME -->` for the source of a function, and
`<!-- README: HEADING -->` for a section of the README. Formulas become MathML, which browsers show without a script.
"""

import ast
import html
import importlib
import inspect
import json
import os
import posixpath
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from absl import flags as absl_flags  # noqa: E402

from configs import common  # noqa: E402
from diffjax import cli  # noqa: E402
from diffjax.cli.flags import flag_groups  # noqa: E402
from diffjax.models.diffusion.axes import AXES  # noqa: E402
from diffjax.models.diffusion.process import INJECTED_ARGUMENTS  # noqa: E402
from diffjax.registry import choices  # noqa: E402

# Pages of files outside docs/.
COPIES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
# A link or image, whose text may contain an image; or code, where nothing is a link.
_LINK = re.compile(
    r"(?P<image>!?)\[(?P<label>(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\((?P<target>[^)\s]+)\)|^```.*?^```|`[^`\n]+`",
    re.DOTALL | re.MULTILINE,
)
# Pages of the Python reference: title, introduction, and objects by heading.
PYTHON = {
    "runs": (
        "Runs in Python",
        "[Python](../python.md) shows how these are used. `diffjax.load` and the other functions are those of "
        "`diffjax.api`.",
        {
            "Functions": [f"diffjax.api.{name}" for name in ("train", "load", "import_weights", "image_grid")],
            "Runs": ["diffjax.api.Run", "diffjax.api.RunDenoiser"],
            "Results": ["diffjax.evaluation.sweep.SweepResult"],
            "Data": ["diffjax.data.open_dataset"],
            "Errors": ["diffjax.errors.UserError"],
        },
    ),
    "diffusion": (
        "diffjax.diffusion",
        "Pure functions on arrays: [Mathematics](../mathematics.md) derives them, and "
        "[Choices of diffusion](choices.md) lists those that a config can name.",
        {
            **{
                name: [f"diffjax.diffusion.{name}"]
                for name in ("noise", "denoiser", "guidance", "sampling", "likelihood", "straightness", "masked")
            },
            # modules of the choices: those of a package, for samplers
            **{axis.name: sorted({f.__module__ for f in choices(axis.module).values()}) for axis in AXES},
        },
    ),
    "models": (
        "diffjax.models",
        "What a model can do is its classes. [Architecture](../architecture.md#models) has the overview.",
        {"base": ["diffjax.models.base"], "capabilities": ["diffjax.models.capabilities"]},
    ),
    "latents": (
        "diffjax.latents",
        "The mathematics of latents, of which [autoencoders](../autoencoders.md) are made.",
        {
            name: [f"diffjax.latents.{name}"]
            for name in (
                *("gaussian", "codebook", "quantizers", "gumbel_softmax"),
                *("output_distributions", "token_sampling"),
            )
        },
    ),
    "metrics": (
        "diffjax.metrics",
        "The mathematics of metrics: pure functions on arrays. [Metrics and sweeps](../evaluation.md) has their names.",
        {
            name: [f"diffjax.metrics.{name}"]
            for name in (
                *("frechet", "kernel", "neighbours", "inception_score"),
                *("similarity", "alignment", "resampling"),
            )
        },
    ),
}


# Generated pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    pages = {path: (ROOT / source).read_text() for path, source in COPIES.items()}
    pages |= {f"reference/{name}.md": page() for name, page in REFERENCE.items()}
    pages |= {f"reference/{name}.md": _python_page(*content) for name, content in PYTHON.items()}
    pages |= {f"notebooks/{path.stem}.md": _notebook(path) for path in sorted((DOCS / "notebooks").glob("*.ipynb"))}
    pages["reports/index.md"] = _reports()
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def commands() -> str:
    """Returns the page of every verb's flags."""
    lines = [
        "# Commands",
        "",
        "`python launch.py VERB --flags`, or `diffjax VERB --flags`. A flag is written `--name=value` or "
        "`--name value`. Verbs that have `--config` override any field of it by `--config.path.to.field=value`: "
        "[config fields](config_fields.md).",
    ]
    for verb in cli.VERBS:
        module = importlib.import_module(f"diffjax.cli.{verb}")
        flags = absl_flags.FlagValues()
        module.define(flags)
        lines += ["", f"## {verb}", "", _doc(module.__doc__)]
        for group, names in flag_groups(verb, flags).items():
            rows = [(_code(_syntax(flags[name])), _default(flags[name].value), flags[name].help) for name in names]
            lines += ["", f"**{group.capitalize()}**", "", *_table(("flag", "default", "meaning"), rows)]
    return "\n".join(lines)


def config_fields() -> str:
    """Returns the page of every config field."""
    sections: dict[str, list] = {}
    for name, (default, text) in common.FIELDS.items():
        sections.setdefault(name.rpartition(".")[0], []).append((name, default, text))
    lines = [
        "# Config fields",
        "",
        "A config has the sections that its model reads. `launch.py train --config=FILE --print_config` prints the "
        "values of a config. On the command line a field is set by `--config.NAME=VALUE`, and in a config file by "
        "`config.NAME = VALUE`. Fields of part `x` of a pipeline are `parts.x.NAME`.",
    ]
    for section, fields in sections.items():
        rows = [(_code(name), type(default).__name__, _code(repr(default)), text) for name, default, text in fields]
        title = f"`{section}`" if section else "Run, and the models that it uses"
        lines += ["", f"## {title}", "", *_table(("field", "type", "default", "meaning"), rows)]
    return "\n".join(lines)


def choices_of_diffusion() -> str:
    """Returns the page of the choices of each axis, with options, summary and reference."""
    lines = [
        "# Choices of diffusion",
        "",
        "A choice is written `name` or `name(option=value, ...)`, in a config and on the command line. "
        "[Diffusion](../diffusion.md) describes them, [Combinations](../combinations.md) lists what combines, and each "
        "name links to its function.",
    ]
    for axis in AXES:
        names = ", ".join(map(_code, filter(None, (axis.field, axis.flag))))
        lines += ["", f"## {axis.title}", "", f"Set by {names}.", ""]
        lines += _table(("choice", "options", "summary", "reference"), _choices(axis.module))
    return "\n".join(lines)


def _choices(module: ModuleType) -> Iterator[tuple[str, ...]]:
    for name, function in choices(module).items():
        parameters = inspect.signature(function).parameters.values()
        options = [
            _code(f"{p.name}={_plain(p.default)}" if p.default is not p.empty else p.name)
            for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.name not in INJECTED_ARGUMENTS
        ]
        doc = inspect.getdoc(function) or ""
        reference = re.search(r"^References?: ((?:.+\n?)+)", doc, re.MULTILINE)
        link = f"[`{name}`](diffusion.md#{function.__module__}.{name})"
        yield link, ", ".join(options), doc.splitlines()[0], " ".join(reference[1].split()) if reference else ""


def config_files() -> str:
    """Returns the page of all config files."""
    intro = "A file has a header with the command, the time and the score, and sets what differs from the "
    return _sources(
        "Config files",
        intro + "[defaults](config_fields.md).",
        [path for folder in ("configs", "configs/published") for path in sorted((ROOT / folder).glob("*.py"))],
    )


def experiment_files() -> str:
    """Returns the page of all experiment files."""
    intro = "An experiment declares a published table. [Experiments](../experiments.md) has the outcomes, and "
    return _sources(
        "Experiment files",
        intro + "[Reproduce a table](../tutorials/reproduce.md) shows how one is run.",
        sorted((ROOT / "experiments").glob("*.py")),
    )


REFERENCE: Mapping[str, Callable[[], str]] = {
    "commands": commands,
    "config_fields": config_fields,
    "choices": choices_of_diffusion,
    "configs": config_files,
    "experiments": experiment_files,
}


def _sources(title: str, intro: str, paths: Sequence[Path]) -> str:
    """Returns a page with the header of each file, and its source in a block that opens."""
    lines = [f"# {title}", "", intro]
    for path in paths:
        source = path.read_text()
        if path.name == "common.py":
            continue
        header = ast.get_docstring(ast.parse(source)) or ""
        body = source.partition('"""\n\n')[2].strip()
        lines += ["", f"## `{path.relative_to(ROOT)}` {{ #{_anchor(path)} }}", "", _doc(header), ""]
        lines += ['??? quote "Source"', "", *textwrap.indent(f"```python\n{body}\n```", "    ").splitlines()]
    return "\n".join(lines)


def _python_page(title: str, intro: str, objects: Mapping[str, Sequence[str]]) -> str:
    lines = [f"# {title}", "", intro]
    for heading, names in objects.items():
        is_module = names == [f"{title}.{heading}"]
        options = "\n    options: {show_root_heading: false, show_root_toc_entry: false}" if is_module else ""
        lines += ["", f"## {heading}"] + [f"\n::: {name}{options}" for name in names]
    return "\n".join(lines)


def _reports() -> str:
    """Returns the gallery of reports: the image of each, and a link."""
    lines = [
        "# Reports",
        "",
        "One report per published table, with our values, the paper's, and a verdict on each claim.",
    ]
    lines += ["[Experiments](../experiments.md) lists the claims and outcomes of all of them.", ""]
    lines += ['<div class="grid cards" markdown>', ""]
    for path in sorted((DOCS / "reports").glob("*/report.md")):
        title = path.read_text().splitlines()[0].removeprefix("# ")
        image = "curves.png" if (path.parent / "curves.png").exists() else "samples.png"
        link = f"{path.parent.name}/report.md"
        lines += [f"-   **[{title}]({link})**", "", f"    [![{title}]({path.parent.name}/{image})]({link})", ""]
    return "\n".join([*lines, "</div>"])


def _notebook(path: Path) -> str:
    """Returns a notebook as a page, with its text and images."""
    lines = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        lines += [source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```", ""]
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            image = next((data[kind] for kind in ("image/png", "image/jpeg") if kind in data), None)
            text = "".join(data.get("text/plain", "")).rstrip()
            if image:
                kind = "png" if "image/png" in data else "jpeg"
                lines += [f"![Output](data:image/{kind};base64,{''.join(image).strip()})", ""]
            elif text:
                lines += [f"```text\n{text}\n```", ""]
    head, _, body = "\n".join(lines).partition("\n")
    name = path.relative_to(DOCS)
    return f"{head}\n\nThis page is the notebook `docs/{name}`: `jupyter lab docs/{name}`.\n{body}"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the reports to the navigation, and to How-to the pages of docs/ that mkdocs.yml does not list."""
    reports = ["reports/index.md"] + [f"reports/{path.name}/report.md" for path in sorted((DOCS / "reports").iterdir())]
    sections = {name: content for entry in config.nav or [] for name, content in entry.items()}
    listed = set(re.findall(r"'([^']+\.md)'", repr(config.nav)))
    sections["How-to"] += sorted({path.name for path in DOCS.glob("*.md")} - listed)
    sections["Results"].append({"Reports": reports})
    return config


# Pages as they are written


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Inserts sections of the README and source code, and rewrites links to files outside docs/."""
    path = page.file.src_uri
    folder = posixpath.dirname(COPIES.get(path, f"docs/{path}"))
    readme = (ROOT / "README.md").read_text()

    def section(match: re.Match) -> str:
        text = re.search(rf"^## {re.escape(match[1])}\n(.*?)(?=^## |\Z)", readme, re.DOTALL | re.MULTILINE)
        return _with_links(f"## {match[1]}\n{text[1].rstrip()}", "", page, config, files)

    markdown = _with_links(markdown, folder, page, config, files)
    markdown = re.sub(r"^<!-- README: (.+?) -->$", section, markdown, flags=re.MULTILINE)
    return re.sub(r"^<!-- source: (\S+) (\S+) -->$", lambda m: _source(m[1], m[2]), markdown, flags=re.MULTILINE)


def _with_links(markdown: str, folder: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns a text with its links as the site has them.

    Files that have no page are links to `repo_url` of mkdocs.yml, or plain text if that is not set.
    """

    def link(match: re.Match) -> str:
        image, label, target = match.group("image", "label", "target")
        if target is None:  # a block or span of code
            return match[0]
        place, hash, anchor = target.partition("#")
        if not place or ":" in place:
            return match[0]
        file = posixpath.normpath(posixpath.join(folder, place))
        uri = {source: copy for copy, source in COPIES.items()}.get(file)
        if file == "README.md":
            uri, anchor = "index.md", anchor if anchor in ("install", "first-run") else ""
            hash = "#" * bool(anchor)
        elif file.startswith("docs/"):
            uri = re.sub(r"\.ipynb$", ".md", file.removeprefix("docs/"))
        elif file.startswith(("configs/", "experiments/")) and file.endswith(".py"):
            uri, hash, anchor = f"reference/{file.split('/')[0]}.md", "#", _anchor(Path(file))
        if uri and (uri in files.src_uris or not (ROOT / file).exists()):
            if re.fullmatch(r"[\w/]+\.(md|ipynb)", label):
                label = _title(ROOT / file) or label
            uri = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
            return f"{image}[{label}]({uri}{hash}{anchor})"
        return f"[{label}]({config.repo_url}/blob/main/{file})" if config.repo_url else label

    return _LINK.sub(link, markdown)


def _title(path: Path) -> str | None:
    """Returns the title of a page or notebook, for links that have the name of its file."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "".join(json.loads(text)["cells"][0]["source"])
    match = re.search(r"^# (.+)$", text, re.MULTILINE)
    return match and match[1]


def _source(path: str, name: str) -> str:
    """Returns the source of a function without its docstring, as a block of code."""
    source = (ROOT / path).read_text()
    node = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name)
    lines = source.splitlines()
    doc = node.body[0] if ast.get_docstring(node) else None
    body = [i for i in range(node.lineno, node.end_lineno + 1) if not (doc and doc.lineno <= i <= doc.end_lineno)]
    code = re.sub(r":\n\n+", ":\n", "\n".join(lines[i - 1] for i in body), count=1)
    return f'```python title="{path}"\n{code}\n```'


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Converts formulas to MathML."""
    return re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', _formula, content, flags=re.DOTALL)


def _formula(match: re.Match) -> str:
    display = "block" if match[1] == "div" else "inline"
    formula = convert(html.unescape(match[2]).strip(), display=display)
    return re.sub(r"(<mi>log</mi>)(?=<mi)", r'\1<mspace width="0.17em"/>', formula)


# Text


def _doc(doc: str | None) -> str:
    """Returns a docstring as Markdown: its indented lines are blocks of code."""
    lines, code = [], False
    for line in inspect.cleandoc(doc or "").splitlines():
        indented = line.startswith("  ") and not line.lstrip().startswith("- ")
        if indented != code and line.strip():
            lines += ["", "```text"] if indented else ["```", ""]
            code = indented
        lines.append(line.removeprefix("  ") if code else re.sub(r"^(Time|Score|Setting):", r"\n**\1**:", line))
    text = "\n".join([*lines, *(["```"] if code else [])])
    return _flags_as_code(re.sub(r"\n+```\n", "\n```\n", text.replace("```text", "\n```text")))


def _flags_as_code(text: str) -> str:
    """Returns Markdown with flags as code, and brackets that are not links."""

    def outside_code(text: str) -> str:
        text = re.sub(r"(?<![\w-])(--[a-z_.]+(?:=[\w./:*|-]*[\w*])?)", r"`\1`", text)
        return re.sub(r"`[^`]*`|\[", lambda match: r"\[" if match[0] == "[" else match[0], text)

    parts = re.split(r"(```.*?```|`[^`]*`)", text, flags=re.DOTALL)
    return "".join(part if i % 2 else outside_code(part) for i, part in enumerate(parts))


def _table(head: Sequence[str], rows: Any) -> list[str]:
    lines = [head, ["---"] * len(head), *([_cell(text) for text in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cell(text: str) -> str:
    """Returns a text as a cell: on one line, without the separator of cells outside of code."""
    parts = re.split(r"(`[^`]*`)", _flags_as_code(" ".join(text.split())))
    return "".join(
        part if part.startswith("`") else html.escape(part, quote=False).replace("|", r"\|") for part in parts
    )


def _syntax(flag: absl_flags.Flag) -> str:
    return f"--{flag.name}" if flag.boolean else f"--{flag.name}=..."


def _default(value: Any) -> str:
    return "" if value in (None, "", False, []) else _code(_plain(value))


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _code(text: str) -> str:
    return f"`{text}`"


def _anchor(path: Path) -> str:
    return "published_" * ("published" in path.parts) + path.stem
