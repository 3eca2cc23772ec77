"""The package as a whole: lint, types, layers, lazy import, the docstrings of public names, nothing of one machine."""

import ast
import dataclasses
import inspect
import pkgutil
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Unpack, get_origin

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import hf_warmscale

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent

CHECKS = {"lint": "ruff check", "format": "ruff format --check", "layers": "lint-imports", "types": "mypy"}

HEAVY = ("torch", "transformers", "numpy", "scipy", "matplotlib", "optuna", "datasets", "rich", "yaml")

MACHINE_PATH = re.compile(r"(?<![\w./<{$~*-])/(?:work|farm|root|tmp|opt|mnt|Users|home/(?!me/))")
REPOSITORY = ("*.md", "*.toml", ".ci/*", "hf_warmscale/**/*", "notebooks/**/*", "recipes/**/*", "tests/**/*")
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".ipynb", ".txt", ".sh", ".csv", ""}

LOADS = [
    "checkpoints/loading.py",
    "checkpoints/reader.py",
    "checkpoints/tokenizers.py",
    "decoding/saving.py",
    "resize/grow.py",
    "resize/growing/replay.py",
    "resize/model_source.py",
    "resize/optimizer/state.py",
]
"""Where a model, a config or a tokenizer is loaded by its own class; a new place is to be looked at and listed."""

PACKAGES = sorted(
    f"hf_warmscale.{module.name}" for module in pkgutil.iter_modules(hf_warmscale.__path__) if module.ispkg
)


@pytest.mark.parametrize("check", CHECKS)
def test_static_checks_pass(check: str) -> None:
    program, *options = CHECKS[check].split()
    result = subprocess.run([SCRIPTS / program, *options], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("module", ["hf_warmscale", "hf_warmscale.cli"])
def test_import_loads_nothing_heavy(module: str) -> None:
    program = f"import {module}, sys; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert module in loaded
    assert not set(HEAVY) & set(loaded)


def test_every_public_name_is_listed_typed_and_there() -> None:
    typed = _names_imported_for_type_checkers(Path(hf_warmscale.__file__))
    assert set(hf_warmscale.__all__) == {"__version__", *hf_warmscale._HOME} == {"__version__", *typed}
    for name in hf_warmscale.__all__:
        assert getattr(hf_warmscale, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="grow_from_pretraind"):
        hf_warmscale.grow_from_pretraind  # noqa: B018


def test_every_imported_package_is_declared() -> None:
    """What another dependency happens to bring along today it may drop tomorrow."""
    imported = {
        name.partition(".")[0]
        for path in (ROOT / "hf_warmscale").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in _imported_modules(node)
    }
    foreign = imported - set(sys.stdlib_module_names) - {"hf_warmscale"}
    distributions = packages_distributions()
    undeclared = {
        name for name in foreign if not _declared() & {_plain(each) for each in distributions.get(name, [name])}
    }
    assert not undeclared


def test_the_lowest_versions_are_those_of_the_ranges() -> None:
    """`.ci/run` tries them; torch is the exception, for want of an older build without CUDA."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = {requirement.name: requirement.specifier for requirement in map(Requirement, project["dependencies"])}
    lines = (ROOT / ".ci" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins.keys() == ranges.keys()
    for name, specifier in ranges.items():
        (floor,) = (Version(part.version) for part in specifier if part.operator == ">=")
        assert name == "torch" or Version(pins[name]) == floor, name


def _imported_modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and node.level == 0 else []


def _declared() -> set[str]:
    """The packages that pyproject.toml names, of the extras only those that the code imports lazily."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lazily = [*extras["deepspeed"], *extras["eval"], *extras["quantization"]]
    return {_plain(re.split(r"[<>=!~\[ ;]", line)[0]) for line in [*project["dependencies"], *lazily]}


def _plain(name: str) -> str:
    """The normal form of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_repository_names_no_path_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in _text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(found)


def _text_files() -> Iterator[Path]:
    for pattern in REPOSITORY:
        for path in ROOT.glob(pattern):
            if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts and path != Path(__file__):
                yield path


# ---- Docstrings ----


def _public(packages: list[str]) -> dict[str, Any]:
    """The public classes and functions by their full name."""
    objects = {
        f"{package}.{name}": getattr(import_module(package), name)
        for package in packages
        for name in getattr(import_module(package), "__all__", ())
    }
    return {name: item for name, item in objects.items() if inspect.isclass(item) or inspect.isfunction(item)}


def test_public_names_have_docstrings_of_the_form() -> None:
    """One line that ends with a full stop, and what is raised."""
    faults = [fault for name, item in _public(PACKAGES).items() for fault in _faults(name, item)]
    assert not faults, "\n".join(faults)


def test_names_of_the_package_document_every_argument_and_show_an_example() -> None:
    names = _public(["hf_warmscale"])
    faults = [
        f"{name}: the argument {argument} is not documented with its type"
        for name, item in names.items()
        for argument in _undocumented(item)
    ]
    faults += [f"{name}: no example" for name, item in names.items() if not _has_example(item)]
    assert not faults, "\n".join(faults)


def _faults(name: str, item: Any) -> Iterator[str]:
    text = inspect.cleandoc(item.__doc__ or "")
    if not text:
        yield f"{name}: no docstring"
    elif not text.split("\n\n")[0].rstrip().endswith((".", ":")):
        yield f"{name}: the first paragraph does not end with a full stop"
    elif _raises_user_error(item) and "Raises:" not in text:
        yield f"{name}: what it raises is not documented"


def _undocumented(item: Any) -> list[str]:
    """The arguments without a line of their own, here or in the function that the docstring sends to."""
    text = inspect.cleandoc(item.__doc__ or "")
    for name in re.findall(r"as for \[`(\w+)`\]", text):
        text += "\n" + inspect.cleandoc(getattr(hf_warmscale, name).__doc__)
    documented = set(re.findall(r"\w+", " ".join(re.findall(r"^ +([\w`, ]+) \(`", text, re.MULTILINE))))
    return [argument for argument in _arguments(item) if argument not in documented]


def _arguments(item: Any) -> list[str]:
    """The named arguments of a function, or the fields of a dataclass of our own."""
    if inspect.isfunction(item):
        parameters = inspect.signature(item).parameters.values()
        return [each.name for each in parameters if _is_named(each)]
    if not (inspect.isclass(item) and dataclasses.is_dataclass(item)):
        return []
    own = inspect.get_annotations(item)
    fields = [field for field in dataclasses.fields(item) if field.init and field.name in own]
    return [field.name for field in fields if "help" not in field.metadata]  # shown by --help


def _is_named(parameter: inspect.Parameter) -> bool:
    """Tell whether a parameter has a meaning of its own: `**sizes: Unpack[Sizes]` does, `**kwargs` does not."""
    if parameter.kind is parameter.VAR_KEYWORD:
        return get_origin(parameter.annotation) is Unpack
    return parameter.kind is not parameter.VAR_POSITIONAL


def _raises_user_error(item: Any) -> bool:
    if not inspect.isfunction(item):
        return False
    tree = ast.parse(textwrap.dedent(inspect.getsource(item)))
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    names = {error.func.id for error in raised if isinstance(error, ast.Call) and isinstance(error.func, ast.Name)}
    return bool(names & {"ValueError", "FileNotFoundError", "OSError"})


def _has_example(item: Any) -> bool:
    """There is one, or a class of ours that it is made of has one."""
    classes = [base for base in getattr(item, "__mro__", ()) if base.__module__.startswith("hf_warmscale")]
    return any(mark in (each.__doc__ or "") for each in [item, *classes] for mark in (">>> ", "```python"))


def _names_imported_for_type_checkers(path: Path) -> set[str]:
    guarded = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    imports = [node for block in guarded for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in imports for alias in node.names}


def test_no_code_that_comes_with_a_model_is_ever_asked_for() -> None:
    """Where nothing is said, transformers asks at the terminal, and a "y" runs the code of the folder."""
    calls = [
        (path.relative_to(ROOT / "hf_warmscale").as_posix(), {keyword.arg for keyword in node.keywords})
        for path in (ROOT / "hf_warmscale").rglob("*.py")
        if path.parent.name != "quickstart"  # reads what it wrote itself
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("Auto")
        if ast.unparse(node.func).endswith(".from_pretrained")
    ]
    assert sorted(where for where, _ in calls) == LOADS
    assert not [where for where, given in calls if "trust_remote_code" not in given]
