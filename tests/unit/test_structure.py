"""The house's rules as tests: linters, types, who imports whom, how long things get, and one catalogue for the bus."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.catalogue import COMMANDS, EVENTS

ROOT = Path(__file__).parents[2]
MANAGERS = ("controller", "listener", "session", "containerd", "recorder", "storage", "webui")
PACKAGES = ("bus", *MANAGERS)
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
# What relays run: forked from the zygote, so nothing that starts threads (docs/ARCHITECTURE.md).
RELAY = "session.zygote"
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> Iterator[str]:
    """Give the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
@pytest.mark.timeout(300)
def test_linters_find_nothing(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_managers_import_only_bus_and_themselves(path: Path) -> None:
    """And the bus imports no manager."""
    own = path.relative_to(ROOT).parts[0]
    ours = {module.partition(".")[0] for module in imported(path)} & {*PACKAGES, "deploy", "tests"}
    assert ours <= {own, "bus"}


def test_a_relay_never_imports_zeromq() -> None:
    """Asked of a real interpreter: what is loaded after importing what relays run."""
    program = f"import sys, {RELAY}; print([name for name in sys.modules if name.split('.')[0] in ('zmq', 'asyncio')])"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert "zmq" not in done.stdout


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=named)
def test_no_file_and_no_function_gets_too_long(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES_MAX, node.name


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_entry_points_are_short() -> None:
    for manager in MANAGERS:
        assert len((ROOT / manager / "__main__.py").read_text().splitlines()) < 40


def test_every_manager_is_a_program_of_supervisord() -> None:
    """Each with its own user, containerd alone as root, and none that outlives supervisord."""
    text = (ROOT / "deploy/supervisord.conf").read_text()
    commands = dict(re.findall(r"^\[program:(\w+)\]\ncommand = (.*)$", text, re.MULTILINE))
    assert set(commands) == set(MANAGERS)
    for manager, command in commands.items():
        assert f"-m {manager} --run-dir" in command
        assert "--pdeathsig=KILL" in command
        assert (f"--reuid=hp-{manager} " in command) == (manager != "containerd")
        assert ("--no-new-privs" in command) == (manager != "containerd")
        assert ("+net_bind_service" in command) == (manager == "listener")


def test_the_wheel_has_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(PACKAGES) <= set(settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])


def test_locked_requirements_name_no_index() -> None:
    """Every package with hashes, and no address of where it came from; the tests' include the others."""
    run, test = ((ROOT / "deploy" / name).read_text() for name in ("requirements.txt", "requirements-test.txt"))
    for text in (run, test):
        assert "://" not in text
        assert all("--hash" in part for part in re.split(r"\n(?=[a-z])", text.replace("\\\n", " ")))
    pins = [set(re.findall(r"^[a-z0-9._-]+==\S+", text, re.MULTILINE)) for text in (run, test)]
    assert pins[0] < pins[1]
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    locked = {pin.partition("==")[0] for pin in pins[0]}
    assert {re.split(r"[<>=]", name)[0].strip() for name in wanted} <= locked


def calls(package: str) -> set[str]:
    """Give the names of everything that a package calls."""
    names: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names.add(node.func.id)
    return names


def handled(package: str) -> set[str]:
    """Give the commands that stand as keys in a package's tables of handlers."""
    known = {command.__name__ for command in COMMANDS.values()}
    names: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Dict):
                names |= {key.id for key in node.keys if isinstance(key, ast.Name)} & known
    return names


def test_every_event_is_emitted_by_the_manager_that_its_sentence_names() -> None:
    for event in EVENTS.values():
        assert event.__doc__
        owner = event.__doc__.partition(":")[0].lower()
        assert event.__name__ in calls(owner), f"{owner} never makes {event.__name__}"
        assert not [p for p in MANAGERS if p != owner and event.__name__ in calls(p)], event.__name__


def test_every_command_is_handled_by_the_manager_that_its_name_begins_with() -> None:
    """Ping and apply are answered for everybody by the bus."""
    expected: dict[str, set[str]] = {package: set() for package in PACKAGES}
    for name, command in COMMANDS.items():
        manager, _, rest = name.partition(".")
        expected[manager if rest else "bus"].add(command.__name__)
    assert {package: handled(package) for package in PACKAGES} == expected


def test_every_command_is_asked_by_somebody() -> None:
    asked = set().union(*(calls(package) for package in PACKAGES))
    by_hand = {"GetContainer"}  # honeypot bus call storage storage.container
    assert {command.__name__ for command in COMMANDS.values()} - asked <= by_hand


def test_the_page_of_the_bus_names_exactly_the_catalogue_with_its_sentences_and_fields() -> None:
    page = (ROOT / "docs/bus.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "| `" in line]
    documented = {row[0].strip("`"): row[1:] for row in rows}
    codes = {"peer_down", "peer_slow", "peer_nonsense", "unknown_command`, `bad_request", "late`, `failed", "not_found"}
    assert set(documented) == {*EVENTS, *COMMANDS, *codes}
    for name, kind in {**EVENTS, **COMMANDS}.items():
        assert documented[name][0] == " ".join((kind.__doc__ or "").split())
        assert re.findall(r"`(\w+)`", documented[name][1]) == list(kind.model_fields)
    for name, command in COMMANDS.items():
        assert re.findall(r"`(\w+)`", documented[name][2]) == list(command.reply.model_fields)
