from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fedward_common.errors import ConfigError
from fedward_server.deployment.server_file import Namespace, ServerFile, template

GOOD = template("lung", names=("fed.example.org", "192.0.2.7"))
DOCS = Path(__file__).parents[3] / "docs" / "server-file.md"


def changed(line: str, to: str) -> str:
    text = re.sub(rf"(?m)^{line} = .*$", to, GOOD)
    assert text != GOOD
    return text


def test_it_is_a_valid_server_file_and_every_key_of_one_stands_in_it() -> None:
    server = ServerFile.from_toml(GOOD)
    assert (server.name, server.gateway.names) == ("lung", ("fed.example.org", "192.0.2.7"))
    assert tomllib.loads(GOOD).keys() == {field.alias or name for name, field in ServerFile.model_fields.items()}
    for name, table in tomllib.loads(GOOD).items():
        if isinstance(table, dict):
            model = ServerFile.model_fields[name].annotation
            assert table.keys() == model.model_fields.keys()  # type: ignore[union-attr]


def test_only_name_names_host_and_port_differ_from_the_defaults() -> None:
    text = template("lung", names=("a.org",), host="::", port=1)
    bare = ServerFile.from_toml('schema = 1\nname = "lung"\n[gateway]\nnames = ["a.org"]\nhost = "::"\nport = 1\n')
    assert ServerFile.from_toml(text) == bare


def test_the_address_is_what_a_site_types() -> None:
    assert ServerFile.from_toml(GOOD).address == "fed.example.org:8443"
    assert ServerFile.from_toml(template("a", names=("2001:db8::1",))).address == "[2001:db8::1]:8443"


def test_metrics_are_on_loopback_and_can_be_off() -> None:
    assert ServerFile.from_toml(GOOD).metrics.host == "127.0.0.1"
    text = GOOD.replace("port = 9400", "port = 0")
    assert ServerFile.from_toml(text).metrics.port == 0


def test_isolation_is_a_word_of_two() -> None:
    assert ServerFile.from_toml(GOOD).isolation.namespace is Namespace.AUTO
    assert ServerFile.from_toml(GOOD.replace('"auto"  ', '"off"  ')).isolation.namespace is Namespace.OFF


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (changed("schema", "schema = 2"), "schema 2 is not known"),
        (changed("name", 'name = "a/b"'), "name should be 1 to 64"),
        (changed("host", 'host = "example.org"'), "gateway.host should be an IP address"),
        (changed("host", "hots = 1"), "unknown key gateway.hots"),
        (changed("names", "names = []"), "gateway.names"),
        (changed("names", 'names = ["https://a.org"]'), "gateway.names.0 should be a DNS name"),
        (changed("names", 'names = ["a.org:8443"]'), "gateway.names.0 should be a DNS name"),
        (changed("names", 'names = ["10.0.0.300"]'), "gateway.names.0 should be a DNS name"),
        (changed("names", 'names = ["-a.org"]'), "gateway.names.0 should be a DNS name"),
        (changed("names", 'names = ["fe80::1%eth0"]'), "gateway.names.0 should be a DNS name"),
        (changed("names", 'name = "a"'), "unknown key gateway.name"),
        (changed("port", "port = 65536").replace("port = 65536", "port = 65536", 1), "port should be less than"),
        (changed("max_body_bytes", "max_body_bytes = 5242880"), "gateway.max_body_bytes should be greater"),
        (changed("requests_per_s", "requests_per_s = 0"), "gateway.requests_per_s should be greater"),
        (changed("burst", "burst = true"), "gateway.burst should be a valid integer"),
        (changed("namespace", 'namespace = "on"'), "isolation.namespace should be 'auto' or 'off'"),
        (changed("restarts", "restarts = -1"), "runs.restarts should be greater than or equal to 0"),
        (GOOD.replace("port = 8000", "port = 9400"), "must differ from each other"),
        (GOOD.replace("port = 9400", "port = 8443"), "must differ from each other"),
        ("schema = = 1", "is not TOML"),
        ("", "schema, gateway are missing"),
    ],
)
def test_each_error_names_the_dotted_path(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        ServerFile.from_toml(text)
    assert caught.value.hint


def test_a_file_that_cannot_be_read_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "binary"):
        with pytest.raises(ConfigError, match="cannot read server file"):
            ServerFile.load(path)


def test_a_template_of_wrong_values_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gateway\.port"):
        template("a", names=("a.org",), port=0)
    with pytest.raises(ConfigError, match=r"gateway\.names"):
        template("a", names=('a"]\n[runs]\nrestarts = 9',))


def test_the_docs_list_every_key_and_no_other() -> None:
    documented = set(re.findall(r"(?m)^\| `([a-z_]+)` \|", DOCS.read_text(encoding="utf-8")))
    tables = [value for value in tomllib.loads(GOOD).values() if isinstance(value, dict)]
    assert documented == {key for table in tables for key in table}


def test_the_docs_example_is_valid() -> None:
    found = re.search(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.S)
    assert found
    ServerFile.from_toml(found.group(1))
