"""The prose of code and docs uses the field's terms: CONTRIBUTING.md, "Style"."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = ("diffjax", "configs", "experiments", "launch.py", "setup.py", "docs/figures.py")
OPENINGS = re.compile(r"^(Of|That|Those|What|Which|One|And|Whether|How|Where|As|It|Such|None of|For what)\b")
WORDS = re.compile(
    r"\b(told|tells|asked|asks|said|says|saying|stands? (for|beside|behind|in|on)|withheld|withhold|let in|"
    r"leads? away from|behind|beside|mend(s|ed)?|goes on|go on|is none|are none|ha(s|ve) not(?! been)|doors?|"
    r"games?|pictures?|sheets?|draw(s|n|ing|ings)?|drew|which is no|that is no|hears?|heard|spoilt)\b",
    re.IGNORECASE,
)
NAMES = {"told", "asked", "said", "own", "made", "found", "given", "kept", "says", "tried", "varied", "again", "beside"}
ALLOWED = re.compile(
    r"is None|are None|DrawBench|"
    r"`[^`]*`|https?://\S+"  # code and addresses
)


def prose_of(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yields the line, text, and whether it is a docstring, of each docstring, comment and message of a file."""
    source = path.read_text()
    tree = ast.parse(source)
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            docstrings.add(id(node.body[0].value))
            yield node.body[0].lineno, ast.get_docstring(node), True
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
        if is_text and " " in node.value.strip():
            yield node.lineno, node.value, False
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string, False


def names_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the line and name of each function, parameter, attribute and variable that a file defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def faults_of_code(path: Path, names: set[str] = NAMES) -> list[str]:
    faults = []
    for line, text, is_docstring in prose_of(path):
        text = ALLOWED.sub("", text)
        if is_docstring and (match := OPENINGS.match(text)):
            faults.append(f"{line}: a docstring opens with {match[0]!r}")
        faults += [f"{line}: {match[0]!r}" for match in WORDS.finditer(text)]
    faults += [f"{line}: the name {name!r}" for line, name in names_of(path) if name in names]
    return faults


def faults_of_page(path: Path) -> list[str]:
    text = re.sub(r"```[\s\S]*?```|^    .*$", lambda code: "\n" * code[0].count("\n"), path.read_text(), flags=re.M)
    lines = enumerate(text.splitlines(), 1)
    return [f"{i}: {match[0]!r}" for i, line in lines for match in WORDS.finditer(ALLOWED.sub("", line))]


def files(suffix: str, places: tuple[str, ...]) -> list[Path]:
    paths = (path for place in places for path in ROOT.glob(place))
    return sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob(f"*{suffix}")))


@pytest.mark.parametrize("place", [*CODE, "tests", "pages"])
def test_prose(place):
    if place == "tests":
        others = [path for path in files(".py", ("tests",)) if path != Path(__file__)]
        faults_by_path = {path: faults_of_code(path, NAMES - {"found"}) for path in others}
    elif place == "pages":
        faults_by_path = {path: faults_of_page(path) for path in [*ROOT.glob("*.md"), *files(".md", ("docs",))]}
    else:
        faults_by_path = {path: faults_of_code(path) for path in files(".py", (place,))}
    lines = [f"{path.relative_to(ROOT)}:{fault}" for path, faults in faults_by_path.items() for fault in faults]
    assert not lines, f"{len(lines)} faults\n" + "\n".join(lines)


def main(places: list[str]) -> None:
    """Prints the faults of files or folders: python tests/test_prose.py diffjax/nn."""
    for path in files(".py", tuple(places)) + [file for file in files(".md", tuple(places)) if file.suffix == ".md"]:
        for fault in faults_of_page(path) if path.suffix == ".md" else faults_of_code(path):
            print(f"{path.relative_to(ROOT)}:{fault}")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
