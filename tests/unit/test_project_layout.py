import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions, requires
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ROOMS = (
    ".ci/run",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "assets/__init__.py",
    "benchmarks",
    "checks/__init__.py",
    "constraints.txt",
    "contracts/profile.yaml",
    "dagster.yaml",
    "docs",
    "platform_defs/definitions.py",
    "profilehouse/__init__.py",
    "pyproject.toml",
    "services/__init__.py",
    "tests",
    "workspace.yaml",
)
MADE_HERE = {".git", ".venv", ".hypothesis", ".dagster_home", "data", "build", "dist"}
# Joined here, so that this file does not name them itself.
REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("anaconda", "org"),
        ("docker", "io"),
        ("jfrog", "io"),
    )
]


def files_of_the_project(folder: Path = ROOT) -> Iterator[Path]:
    for path in folder.iterdir():
        if folder == ROOT and path.name in MADE_HERE:
            continue
        if path.name.endswith(("__pycache__", "_cache", ".egg-info")):
            continue
        if path.is_dir():
            yield from files_of_the_project(path)
        else:
            yield path


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pinned}


def installed(name: str) -> bool:
    return next(distributions(name=name), None) is not None


def direct_dependencies() -> list[Requirement]:
    project = PYPROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(text) for group in groups for text in group]
    return [r for r in requirements if r.name != project["name"]]


def test_every_room_exists() -> None:
    assert [entry for entry in ROOMS if not (ROOT / entry).exists()] == []


def test_no_file_names_a_registry_host() -> None:
    naming = {
        (path.relative_to(ROOT).as_posix(), host)
        for path in files_of_the_project()
        for host in REGISTRY_HOSTS
        if host.encode() in path.read_bytes()
    }
    assert naming == set()


def test_constraints_hold_exact_pins_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert [line for line in pinned if not re.fullmatch(r"[\w.-]+==[\w.+!]+", line)] == []
    assert len(pins()) == len(pinned)


def test_every_direct_dependency_is_pinned_to_a_version_it_allows() -> None:
    pinned = pins()
    dependencies = direct_dependencies()
    assert len(dependencies) > 20
    wrong = [
        f"{dependency} is pinned to {pinned.get(canonicalize_name(dependency.name))}"
        for dependency in dependencies
        if not dependency.specifier.contains(pinned.get(canonicalize_name(dependency.name), "0"))
    ]
    assert wrong == []


def test_what_the_dependencies_need_is_pinned_as_well() -> None:
    pinned = pins()
    to_visit, reached = direct_dependencies(), set[tuple[str, str]]()
    while to_visit:
        requirement = to_visit.pop()
        for extra in requirement.extras | {""}:
            name = canonicalize_name(requirement.name)
            if (name, extra) in reached or not installed(name):
                continue
            reached.add((name, extra))
            needs = map(Requirement, requires(name) or [])
            to_visit += [n for n in needs if not n.marker or n.marker.evaluate({"extra": extra})]
    names = {name for name, _ in reached}
    assert len(names) > 100
    assert names - set(pinned) - {"pip", "setuptools", "wheel"} == set()


def test_the_workspace_file_and_dg_load_the_same_module_by_the_same_name() -> None:
    (location,) = yaml.safe_load((ROOT / "workspace.yaml").read_text("utf-8"))["load_from"]
    project = PYPROJECT["tool"]["dg"]["project"]
    assert location["python_module"]["module_name"] == project["code_location_target_module"]
    assert location["python_module"]["location_name"] == project["code_location_name"]


def test_there_is_no_lock_file_that_would_name_registries() -> None:
    locks = {"uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock"}
    assert locks.isdisjoint(path.name for path in files_of_the_project())
