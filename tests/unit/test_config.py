"""The configuration: the sample a person starts from, the example file, and one line for every mistake."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import ConfigError
from bus.settings import Config, GlobalSettings, Service
from controller import config
from controller.example import example

ROOT = Path(__file__).parents[2]
SAMPLE = """
[global]
bind_address = "0.0.0.0"
log_level = "debug"
log_dir = "/var/lib/honeypot/logs" # Or default to /var/log/honeypot
max_sessions = 500

[[service]]
name = "fake-ssh"
port = 22
protocol = "tcp"
container_template = "ssh-template" # A nspawn-ready image
capture = { pty = true, pcap = true, metadata = true }
session = { timeout_seconds = 600, max_bytes = 10485760 }

[[service]]
name = "fake-http"
port = 80
protocol = "tcp"
container_template = "http-template"
capture = { pty = false, pcap = true, metadata = true }
"""
SERVICE = '[[service]]\nname = "a"\nport = 22\ncontainer_template = "t"\n'
OTHER = '[[service]]\nname = "b"\nport = 23\ncontainer_template = "t"\n'

MISTAKES = {
    "a misspelt key": (
        '[global]\nlog_levl = "info"',
        'global.log_levl: unknown key; the nearest is "log_level"',
    ),
    "a misspelt table": ("[globl]", 'globl: unknown key; the nearest is "global"'),
    "a key like no other": (
        "[storage]\nzzz = 1",
        "storage.zzz: unknown key; there are: backend, url",
    ),
    "a misspelt key of a service": (
        SERVICE + "prot = 3",
        'service "a": prot: unknown key; the nearest is "port"',
    ),
    "a misspelt required key": (
        SERVICE.replace("port", "prot"),
        'service "a": prot: unknown key; the nearest is "port"',
    ),
    "a misspelt key in a service's table": (
        SERVICE + "pool = { minimm = 1 }",
        'service "a": pool.minimm: unknown key; the nearest is "minimum"',
    ),
    "a service without a port": (
        '[[service]]\nname = "a"\ncontainer_template = "t"',
        'service "a": port: is missing',
    ),
    "a service without a name": (
        '[[service]]\nport = 22\ncontainer_template = "t"',
        "service[1]: name: is missing",
    ),
    "a wrong choice": (
        '[global]\nlog_level = "debg"',
        (
            "global.log_level: \"debg\" is not allowed; allowed: 'debug', 'info', 'warning' or 'error'"
            "; the nearest is 'debug'"
        ),
    ),
    "a number too large": (
        SERVICE.replace("22", "70000"),
        'service "a": port: 70000 is not allowed; allowed: less than or equal to 65535',
    ),
    "a number too small": (
        "[global]\nmax_sessions = 0",
        "global.max_sessions: 0 is not allowed; allowed: greater than or equal to 1",
    ),
    "text for a number": (
        '[global]\nmax_sessions = "many"',
        'global.max_sessions: "many" is not allowed; allowed: a whole number',
    ),
    "a number for text": (
        "[global]\nsensor = 4",
        "global.sensor: 4 is not allowed; allowed: text",
    ),
    "a value for a table": (
        SERVICE + "capture = 3",
        'service "a": capture: 3 is not allowed; allowed: a table',
    ),
    "a value for the services": (
        "service = 3",
        "service: 3 is not allowed; allowed: a list ([[service]] begins each service)",
    ),
    "a name with a blank": (
        SERVICE.replace('"a"', '"A b"'),
        'service "A b": name: "A b" is not allowed; allowed: lower-case letters, digits and hyphens',
    ),
    "no address": (
        '[global]\nbind_address = ["::", "here"]',
        'global.bind_address[2]: "here" is not allowed; allowed: an IPv4 or IPv6 address',
    ),
    "neither lan nor an address": (
        '[webui]\naddress = "wan"',
        "webui.address[1]: \"wan\" is not allowed; allowed: 'lan' or an IPv4 or IPv6 address",
    ),
    "no network": (
        '[webui]\nallow = ["home"]',
        'webui.allow[1]: "home" is not allowed; allowed: a network such as 192.168.0.0/16 or fd00::/8',
    ),
    "a public network": (
        '[webui]\nallow = ["8.8.8.0/24"]',
        "webui: allow: 8.8.8.0/24 is not private",
    ),
    "a pool upside down": (
        SERVICE + "pool = { minimum = 5, maximum = 1 }",
        'service "a": pool: minimum is above maximum',
    ),
    "a port used twice": (
        SERVICE + OTHER.replace("23", "22"),
        'service "b": port: tcp port 22 is used by service "a" already',
    ),
    "the dashboard's port": (
        SERVICE.replace("22", "8000"),
        'service "a": port: tcp port 8000 is used by webui.port already',
    ),
    "a name used twice": (
        SERVICE + OTHER.replace('"b"', '"a"'),
        'service[2].name: "a" is the name of another service already',
    ),
    "two limits for one template": (
        SERVICE + "container = { pids = 64 }\n" + OTHER,
        (
            'service "b": container: differs from that of service "a", and both use template t; '
            "the containers of one template have one set of limits"
        ),
    ),
    "not TOML": ("[global", "not TOML: Expected ']' at the end of a table declaration (at end of document)"),
    "a run directory too long for sockets": (
        f'[global]\nrun_dir = "/{"x" * 100}"',
        f"global.run_dir: /{'x' * 100} is too long a path for sockets under it",
    ),
    "a value of two lines": (
        '[global]\nlog_level = "de\\nbug"',
        (
            "global.log_level: \"de\\nbug\" is not allowed; allowed: 'debug', 'info', 'warning' or 'error'"
            "; the nearest is 'debug'"
        ),
    ),
}


def read(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return config.read(file)


def test_the_sample_loads_as_it_stands_and_says_what_it_says(tmp_path: Path) -> None:
    """Every value of the sample arrives; what it leaves out has its default."""
    found = read(tmp_path, SAMPLE)
    ssh, http = found.service
    assert (found.global_.max_sessions, found.global_.log_level) == (500, "debug")
    assert [str(address) for address in found.global_.bind_address] == ["0.0.0.0"]
    assert found.global_.log_dir == Path("/var/lib/honeypot/logs")
    assert (ssh.name, ssh.port, ssh.session.timeout_seconds, ssh.session.max_bytes) == ("fake-ssh", 22, 600, 10485760)
    assert (http.port, http.container_template, http.capture.pty, http.capture.pcap) == (
        80,
        "http-template",
        False,
        True,
    )


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_one_line_that_names_the_key_and_what_is_right(tmp_path: Path, mistake: str) -> None:
    """The whole line is compared, so that no reader has to guess."""
    text, line = MISTAKES[mistake]
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, text)
    assert str(raised.value) == f"{tmp_path}/config.toml: {line}"
    assert len(str(raised.value).splitlines()) == 1


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        config.read(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("wanted", "built", "recipes", "hint"),
    [
        ("ssh-template", [], ["ssh-template"], "build it: honeypot template build ssh-template"),
        ("ssh-templat", ["ssh-template"], [], 'the nearest is "ssh-template"'),
        ("zzz", ["ssh-template"], ["http-template"], "there are: http-template, ssh-template"),
        ("zzz", [], [], "there are: none"),
    ],
)
def test_a_template_that_is_not_built_is_named_with_what_helps(
    wanted: str, built: list[str], recipes: list[str], hint: str
) -> None:
    service = Service(name="a", port=22, container_template=wanted)
    (line,) = config.template_problems(Config(service=(service,)), built, recipes)
    assert line == f'service "a": container_template: "{wanted}" is not a built template; {hint}'


def test_loading_looks_at_the_templates_on_disk(tmp_path: Path) -> None:
    """A template counts once its build is complete."""
    file = tmp_path / "config.toml"
    file.write_text('[global]\nstate_dir = "state"\n' + SERVICE)
    (tmp_path / "state/templates/t/root").mkdir(parents=True)
    with pytest.raises(ConfigError, match="not a built template"):
        config.load(file)
    (tmp_path / "state/templates/t/template.json").write_text("{}")
    assert config.load(file).service[0].container_template == "t"


def test_relative_directories_are_taken_from_where_the_file_is(tmp_path: Path) -> None:
    found = read(tmp_path, '[global]\nstate_dir = "state"\nrun_dir = "/run/x"')
    assert (found.global_.state_dir, found.global_.run_dir) == (tmp_path / "state", Path("/run/x"))


def test_the_places_of_a_broken_file_are_still_found(tmp_path: Path) -> None:
    """An instance can be taken down although its file is wrong by now."""
    file = tmp_path / "config.toml"
    file.write_text('[global]\nrun_dir = "/run/x"\nlog_levl = 3\n[[service]]\nprot = 1')
    assert config.read_places(file).run_dir == Path("/run/x")


def test_the_example_is_what_the_models_say() -> None:
    """Regenerate it with: python -m controller.example > config.toml.example."""
    assert (ROOT / "config.toml.example").read_text() == example()


def test_the_example_loads_and_shows_every_key_with_its_default(tmp_path: Path) -> None:
    """As it stands, and with every commented setting put in force."""
    shown = re.sub(r"^#(?=[a-z])", "", example(), flags=re.MULTILINE)
    plain, full = read(tmp_path, example()), read(tmp_path, shown)
    assert plain.service[0].model_copy(update={"container_port": 22}) == full.service[0]
    assert plain.global_.model_copy(update={"sensor": "sensor"}) == full.global_
    assert (plain.storage, plain.webui) == (full.storage, full.webui)
    given = tomllib.loads(shown)
    assert set(given["global"]) == set(GlobalSettings.model_fields)
    assert set(given["service"][0]) == set(Service.model_fields)


def test_the_example_has_one_line_for_each_setting() -> None:
    settings = [line for line in example().splitlines() if re.match(r"#?[a-z_.]+ = ", line)]
    assert all(re.search(r"  # [A-Z\"].*", line) for line in settings if not line.startswith(("name", "port", "cont")))


@given(st.integers(1, 7999), st.integers(1, 7999))
def test_two_configurations_have_one_digest_exactly_if_they_say_the_same(one: int, other: int) -> None:
    first, second = (
        Config(global_=GlobalSettings(sensor="s"), service=(Service(name="a", port=port, container_template="t"),))
        for port in (one, other)
    )
    assert (config.digest(first) == config.digest(second)) == (one == other)
    assert re.fullmatch(r"[0-9a-f]{12}", config.digest(first))
