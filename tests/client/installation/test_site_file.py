from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_client.installation.site_file import PolicyTable, ReleaseAt, SiteFile, template
from fedward_client.policy import Hours, SitePolicy
from fedward_common.codec import key_fingerprint
from fedward_common.config import Method
from fedward_common.errors import ConfigError
from fedward_common.privacy.grants import Budget
from fedward_common.privacy.guarantee import Unit
from support.nouns import KEY
from support.sites import filled

DOCS = Path(__file__).parents[3] / "docs" / "site-file.md"


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        SiteFile.from_toml(text)
    assert error.value.hint
    return str(error.value)


def changed(old: str, new: str, **values: str) -> str:
    text = filled(**values)
    assert old in text, old
    return text.replace(old, new, 1)


# ---- the template ------------------------------------------------------------------
def test_the_template_is_toml_and_refused_until_it_is_filled_in() -> None:
    tomllib.loads(template("a-site"))
    assert refused(template("a-site")) == (
        "site.toml: data.id, data.path, data.text, data.label, data.nominal_units, task.labels, policy.unit, "
        "policy.models, policy.run_epsilon, policy.run_delta, policy.life_epsilon, policy.life_delta, "
        "coordinator.public_key are missing"
    )


def test_with_its_lines_uncommented_the_template_is_a_site_file() -> None:
    site = SiteFile.from_toml(re.sub(r"(?m)^#> ", "", template("a-site")))
    assert site.name == "a-site"


def test_every_key_stands_in_the_template_with_its_default() -> None:
    text = re.sub(r"(?m)^#> ", "", template("a-site"))
    given = tomllib.loads(text)
    commented = set(re.findall(r"(?m)^# (\w+) = ", text))
    for table, model in SiteFile.model_fields.items():
        if not isinstance(model.annotation, type) or not hasattr(model.annotation, "model_fields"):
            continue
        rows = given[model.alias or table]
        for name, field in model.annotation.model_fields.items():
            assert name in rows or name in commented, name
            if name in rows and not field.is_required() and (model.alias or table) == "policy":
                assert getattr(SiteFile.from_toml(text).policy_table, name) == field.get_default(), name


def test_the_docs_name_every_key_and_no_other() -> None:
    text = DOCS.read_text(encoding="utf-8")
    sections = re.split(r"(?m)^## `\[(\w+)\]`", text)
    for table, body in zip(sections[1::2], sections[2::2], strict=True):
        field = next(f for n, f in SiteFile.model_fields.items() if table in (n, f.alias))
        documented = set(re.findall(r"(?m)^\| `(\w+)` \|", body.split("\n## ")[0]))
        model: Any = field.annotation
        assert documented == set(model.model_fields), table
    assert set(sections[1::2]) == {f.alias or n for n, f in SiteFile.model_fields.items()} - {"schema", "name"}


# ---- values ------------------------------------------------------------------------
def test_replies_leave_in_slots_unless_the_site_says_otherwise() -> None:
    default = SiteFile.from_toml(re.sub(r"(?ms)^\[network\]$.*?(?=^\[)", "", filled())).network
    assert (default.release_at, default.slot_s, default.door) == (ReleaseAt.SLOT, 30, "")
    assert SiteFile.from_toml(filled()).network == default
    assert SiteFile.from_toml(changed('release_at = "slot"', 'release_at = "ready"')).network.release_at == "ready"
    for value in ("0", "3601", "1.5", '"30"'):
        assert "network.slot_s" in refused(changed("slot_s = 30", f"slot_s = {value}"))
    assert "network.release_at" in refused(changed('release_at = "slot"', 'release_at = "soon"'))


def test_the_policy_of_a_site_file() -> None:
    fingerprint = "ab" * 32
    site = SiteFile.from_toml(
        filled(
            models=f'["{fingerprint}"]',
            methods='["core"]',
            target_modules='["query"]',
            max_rank="8",
            run_epsilon="4",
            run_delta="1e-6",
            max_steps="100",
            max_sampling_rate="0.5",
            max_clip_norm="2",
            max_records_per_unit="3",
            max_update_bytes="1000",
            minimum_units="30",
            hours='["19:00-06:30"]',
            metrics_may_leave="false",
            coordinator_states_min_sites="5",
            waivers='["allow_network"]',
        )
    )
    assert site.policy() == SitePolicy(
        unit=Unit.RECORD,
        base_fingerprints=frozenset({fingerprint}),
        methods=frozenset({Method.CORE}),
        target_modules=frozenset({"query"}),
        max_rank=8,
        max_epsilon=4.0,
        max_delta=1e-6,
        max_steps=100,
        max_sampling_rate=0.5,
        max_clip_norm=2.0,
        max_records_per_unit=3,
        max_update_bytes=1000,
        minimum_units=30,
        validation_fraction=0.05,
        hours=(Hours(start=19 * 60, end=6 * 60 + 30),),
        metrics_may_leave=False,
        coordinator_states_min_sites=5,
        waivers=frozenset({"allow_network"}),
    )


def test_every_field_of_the_policy_table_reaches_policy_or_budget() -> None:
    elsewhere = {"models", "run_epsilon", "run_delta", "life_epsilon", "life_delta", "filter", "rdp_order"}
    assert set(PolicyTable.model_fields) - elsewhere <= set(SitePolicy.__dataclass_fields__)


def test_the_budget_of_a_site_file() -> None:
    site = SiteFile.from_toml(filled(filter='"rdp"', rdp_order="16"))
    assert site.budget() == Budget(
        epsilon=16.0, delta=1e-3, unit=Unit.RECORD, run_epsilon=8.0, run_delta=1e-4, renyi_order=16
    )
    assert SiteFile.from_toml(filled()).budget().renyi_order is None


def test_the_operators_key() -> None:
    site = SiteFile.from_toml(filled())
    assert key_fingerprint(site.operator()) == key_fingerprint(KEY.public_key())


def test_a_relative_path_counts_from_the_sites_folder(tmp_path: Path) -> None:
    assert SiteFile.from_toml(filled()).source(tmp_path) == tmp_path / "notes.csv"
    assert SiteFile.from_toml(filled(path='"/data/x.csv"')).source(tmp_path) == Path("/data/x.csv")


def test_the_unit_column_is_the_patient_or_the_records_own_id(tmp_path: Path) -> None:
    assert SiteFile.from_toml(filled()).columns(tmp_path).unit is None
    assert SiteFile.from_toml(filled(record_id='"note_id"')).columns(tmp_path).unit == "note_id"
    patient = changed('\nunit = "record"', '\nunit = "patient"').replace('# unit = "patient_id"', 'unit = "patient"')
    columns = SiteFile.from_toml(patient).columns(tmp_path)
    assert (columns.unit, columns.text, columns.label) == ("patient", ("note",), "organ")


def test_the_digest_names_every_value() -> None:
    digest = SiteFile.from_toml(filled()).digest
    assert digest == SiteFile.from_toml(filled() + "\n# a comment\n").digest
    assert digest != SiteFile.from_toml(filled(max_rank="63")).digest


def test_a_site_file_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SiteFile.from_toml(filled()).policy_table.max_rank = 3


# ---- what is refused ---------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_rank", "0"), ("max_rank", "true"), ("max_rank", '"8"'), ("max_rank", "1.5"), ("max_rank", "1025"),
        ("run_epsilon", "0"), ("run_epsilon", "-1"), ("run_epsilon", "nan"), ("run_epsilon", "inf"),
        ("run_epsilon", "true"), ("run_delta", "0"), ("run_delta", "1"), ("run_delta", "nan"), ("life_delta", "1.5"),
        ("max_sampling_rate", "0"), ("max_sampling_rate", "1.01"), ("max_clip_norm", "inf"), ("max_steps", "0"),
        ("max_steps", "100001"), ("max_update_bytes", "0"), ("minimum_units", "0"), ("nominal_units", "0"),
        ("nominal_units", "1e3"), ("models", '["abc"]'), ("models", f'["{"AB" * 32}"]'), ("models", '"x"'),
        ("methods", '["qlora"]'), ("methods", "[]"), ("target_modules", "[1]"), ("hours", '["25:00-26:00"]'),
        ("hours", '"19:00-06:30"'), ("metrics_may_leave", "1"), ("metrics_may_leave", '"yes"'),
        ("coordinator_states_min_sites", "0"), ("waivers", '["seeded_randomness"]'), ("filter", '"pld"'),
        ("labels", '["one"]'), ("labels", '["a", "a"]'), ("labels", '"a"'), ("kind", '"image"'), ("pooling", '"max"'),
        ("max_tokens", "7"), ("id", '"two words"'), ("path", '""'), ("text", "[]"), ("text", '["a", "b", "c"]'),
        ("public_key", '"ab"'), ("public_key", "7"), ("name", '"../up"'), ("name", '""'), ("schema", "2"),
        ("schema", '"1"'),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_its_dotted_path(key: str, value: str) -> None:
    assert key in refused(filled(**{key: value}))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("max_rank", "max_rnk", "unknown key policy.max_rnk"),
        ("[coordinator]", "[proxy]\nport = 1\n[coordinator]", "unknown key proxy"),
        ("run_epsilon = 8.0", "run_epsilon = 20.0", "more than the data's whole life"),
        ("run_delta = 1e-4", "run_delta = 1e-2", "more than the data's whole life"),
        ('filter = "sum"', 'filter = "rdp"', "rdp_order goes with"),
        ('filter = "sum"', 'filter = "sum"\nrdp_order = 4', "rdp_order goes with"),
        ('filter = "sum"', 'filter = "rdp"\nrdp_order = 2\n', ""),
        ("minimum_units = 20", "minimum_units = 41", "exceeds data.nominal_units"),
        ('\nunit = "record"', '\nunit = "patient"', "data.unit names no column"),
        ('# unit = "patient_id"', 'unit = "patient"', "leave one of them out"),
        ("[model]", "[model", "is not TOML"),
        ("max_rank = 64", f"max_rank = {'9' * 5000}", "is not TOML"),
    ],
)
def test_what_does_not_fit_together_is_refused(old: str, new: str, expected: str) -> None:
    if not expected:
        assert SiteFile.from_toml(changed(old, new)).budget().renyi_order == 2
    else:
        assert expected in refused(changed(old, new))


def test_an_order_at_which_not_even_nothing_fits_is_refused() -> None:
    assert "order" in refused(filled(filter='"rdp"', rdp_order="2", run_epsilon="1", life_epsilon="2"))


def test_an_id_of_records_and_a_patient_column_exclude_each_other() -> None:
    text = changed('\nunit = "record"', '\nunit = "patient"', record_id='"note_id"')
    assert "record_id is for the unit" in refused(text.replace('# unit = "patient_id"', 'unit = "patient"'))


def test_an_unknown_key_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        SiteFile.from_toml(changed("max_rank", "max_rnk"))
    assert "max_rank" in error.value.hint
    assert "life_epsilon" in error.value.hint


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x00"])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "site.toml").write_bytes(content)
    with pytest.raises(ConfigError):
        SiteFile.load(tmp_path / "site.toml")


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        SiteFile.load(tmp_path / "site.toml")
    assert "init" in error.value.hint


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_whatever_stands_for_a_value_gives_a_site_file_or_a_config_error(value: Any) -> None:
    from pydantic import ValidationError

    for path in (
        ("policy", "max_rank"),
        ("policy", "hours"),
        ("data",),
        ("coordinator", "public_key"),
        ("task", "labels"),
    ):
        table: Any = tomllib.loads(filled())
        node = table
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        try:
            SiteFile.model_validate(table)
        except ValidationError as error:
            from fedward_common.strict import explain

            assert isinstance(explain(error, source="site.toml", model=SiteFile, docs="docs"), ConfigError)
