from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.config import (
    DEFAULT_STAGES,
    DataConfig,
    Method,
    PrivacyConfig,
    RunConfig,
    StageConfig,
    TaskConfig,
    Weights,
)
from fedward_common.errors import ConfigError
from fedward_common.privacy.guarantee import Unit

HEAD = "schema = 1\n"
TABLES = '[data]\ntrain = "notes.csv"\n[task]\nlabels = ["yes", "no"]\n'
STAGE = '[[stages]]\nname = "one"\ntrain = ["head"]\nrounds = 2\n'
TWO_STAGES = STAGE + '[[stages]]\nname = "two"\ntrain = ["adapter"]\nrounds = 3\n'


def config(*overrides: str, stages: str = "") -> RunConfig:
    return RunConfig.from_toml(HEAD + TABLES + stages, overrides=overrides)


def refused(text: str, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_toml(text, overrides=overrides, source="run.toml")
    assert caught.value.hint
    return caught.value


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "known"),
    [
        (HEAD + "colour = 1\n" + TABLES, "colour", "adapter, data, model, name"),
        (HEAD + TABLES + "[privacy]\nsigma = 1.0\n", "privacy.sigma", "clip_norm, delta, epsilon"),
        (HEAD + TABLES + STAGE + "sigma = 1.0\n", "stages.0.sigma", "evaluate_every, learning_rate, local_steps"),
    ],
)
def test_an_unknown_key_is_named_and_the_hint_lists_the_known_ones(text: str, path: str, known: str) -> None:
    error = refused(text)
    assert str(error) == f"run.toml: unknown key {path}"
    assert known in error.hint


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("privacy.epsilon=0", "privacy.epsilon"),
        ("privacy.epsilon=-1.0", "privacy.epsilon"),
        ("privacy.epsilon=nan", "privacy.epsilon"),
        ("privacy.epsilon=inf", "privacy.epsilon"),
        ("privacy.epsilon=abc", "privacy.epsilon"),
        ("privacy.epsilon=true", "privacy.epsilon"),
        ('privacy.epsilon="8"', "privacy.epsilon"),
        ("privacy.epsilon=" + "9" * 400, "privacy.epsilon"),
        ("privacy.delta=0", "privacy.delta"),
        ("privacy.delta=1.0", "privacy.delta"),
        ("privacy.delta=nan", "privacy.delta"),
        ("privacy.clip_norm=inf", "privacy.clip_norm"),
        ("privacy.metrics_share=1.01", "privacy.metrics_share"),
        ("privacy.metrics_share=nan", "privacy.metrics_share"),
        ("privacy.unit=person", "privacy.unit"),
        ("privacy.max_records_per_unit=2.0", "privacy.max_records_per_unit"),
        ("data.test_fraction=nan", "data.test_fraction"),
        ("data.test_fraction=0.51", "data.test_fraction"),
        ("data.text=[]", "data.text"),
        ("data.text=[1]", "data.text.0"),
        ('data.text=["a", "b", "c"]', "data.text"),
        ("data=3", "data"),
        ("task.labels=[1, 2]", "task.labels.0"),
        ('task.labels=["a"]', "task.labels"),
        ('task.labels=["a", "a"]', "task.labels"),
        ('task.labels=["a", ""]', "task.labels.1"),
        ('task.kind="regression"', "task.kind"),
        ("seed=1.0", "seed"),
        ("seed=-1", "seed"),
        ("seed=9223372036854775808", "seed"),
        ("adapter.rank=true", "adapter.rank"),
        ('adapter.rank="16"', "adapter.rank"),
        ("adapter.rank=1979-05-27", "adapter.rank"),
        ('adapter.freeze_a="yes"', "adapter.freeze_a"),
        ("adapter.freeze_a=1", "adapter.freeze_a"),
        ("adapter.freeze_a=true", "adapter"),
        ("adapter.method=dora", "adapter.method"),
        ("adapter.target_modules=[]", "adapter.target_modules"),
        ("model.revision=main", "model.revision"),
        ("model.max_tokens=7", "model.max_tokens"),
        ("name=../up", "name"),
        ("name=1", "name"),
        ("stages=[]", "stages"),
        ("stages=[1]", "stages.0"),
        ("stages.0.rounds=0", "stages.0.rounds"),
        ("stages.0.sampling_rate=0", "stages.0.sampling_rate"),
        ("stages.0.learning_rate=-inf", "stages.0.learning_rate"),
        ('stages.0.train=["head", "head"]', "stages.0.train"),
        ('stages.0.train=["head", "nose"]', "stages.0.train.1"),
        ("rounds.minimum=0", "rounds.minimum"),
        ("rounds.goal=-1", "rounds.goal"),
        ("rounds.goal=1.0", "rounds.goal"),
        ("rounds.set_aside_after=-1", "rounds.set_aside_after"),
        ("rounds.set_aside_after=1001", "rounds.set_aside_after"),
        ("partition.sigma=0", "partition.sigma"),
        ("partition.labels_per_site=0", "partition.labels_per_site"),
        ("partition.units=some", "partition.units"),
        ("partition.sites=10001", "partition.sites"),
        ("simulation.dropout=1.5", "simulation.dropout"),
        ("simulation.poisoned=1.0", "simulation.poisoned"),
        ("simulation.poison=hemlock", "simulation.poison"),
        ("simulation=7", "simulation"),
        ("schema=true", "schema"),
    ],
)
def test_a_bad_value_is_refused_with_its_path(override: str, path: str) -> None:
    error = refused(HEAD + TABLES + STAGE, override)
    assert re.match(rf"run\.toml: {re.escape(path)}:? ", str(error))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("schema=2", "schema 2 is not known"),
        ("stages.1.name=one", "two stages share a name"),
        ("privacy.unit=patient", "data.unit names no column"),
        ("partition.method=natural", "data.site names no column"),
        ("stages.0.evaluate_every=2", "validation_fraction is 0"),
        ("rounds.cohort=2", "rounds.minimum exceeds rounds.cohort"),
        ("rounds.goal=2", "rounds.minimum exceeds rounds.goal"),
        ("rounds={minimum = 3, cohort = 4, goal = 5}", "rounds.goal exceeds rounds.cohort"),
        ("simulation.jitter_sigma=1", "spread compute_s, which is 0"),
        ("simulation={strict = 0.5, spent = 0.6}", "together exceed 1"),
    ],
)
def test_parts_that_do_not_agree_are_refused(override: str, words: str) -> None:
    overrides = ["privacy.validation_fraction=0.0", "rounds.minimum=3", override]
    assert words in str(refused(HEAD + TABLES + TWO_STAGES, *overrides))


@pytest.mark.parametrize("text", ["[data", "a = ", "[data]\n[data]\n", "x = " + "9" * 5000])
def test_text_that_is_not_toml_is_refused(text: str) -> None:
    assert str(refused(text)).startswith("run.toml is not TOML")


@pytest.mark.parametrize("missing", ["data", "task"])
def test_a_missing_table_is_named(missing: str) -> None:
    text = {"data": '[task]\nlabels = ["a", "b"]\n', "task": '[data]\ntrain = "x"\n'}[missing]
    assert str(refused(text)) == f"run.toml: {missing} is missing"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "run.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent.toml", tmp_path, binary):
        with pytest.raises(ConfigError, match="cannot read run file") as caught:
            RunConfig.load(path)
        assert str(path) in str(caught.value)
        assert caught.value.hint


def test_a_file_is_read_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(HEAD + TABLES, encoding="utf-8")
    assert RunConfig.load(path, overrides=["name=other"]).name == "other"


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config().name = "other"


# ---- --set -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("privacy.epsilon=4", lambda c: c.privacy.epsilon, 4.0),
        (" privacy.epsilon =4", lambda c: c.privacy.epsilon, 4.0),
        ("name=bare", lambda c: c.name, "bare"),
        ('name="quoted"', lambda c: c.name, "quoted"),
        ("data.label=a=b", lambda c: c.data.label, "a=b"),
        ("data.text=note", lambda c: c.data.text, ("note",)),
        ('data.text=["a", "b"]', lambda c: c.data.text, ("a", "b")),
        ("stages.two.rounds=9", lambda c: c.stages[1].rounds, 9),
        ("stages.1.rounds=9", lambda c: c.stages[1].rounds, 9),
        ("task.labels.1=maybe", lambda c: c.task.labels, ("yes", "maybe")),
        ("server.weights=equal", lambda c: c.server.weights, Weights.EQUAL),
        ("adapter.method=lora", lambda c: c.adapter.method, Method.LORA),
        ("partition={sites=3}", lambda c: c.partition.sites, 3),
    ],
)
def test_set_takes_the_paths_of_the_file(override: str, read: Any, value: Any) -> None:
    assert read(config(override, stages=TWO_STAGES)) == value


def test_the_last_of_two_overrides_wins() -> None:
    assert config("seed=1", "seed=2").seed == 2


@pytest.mark.parametrize("stage", ["adapter", "1"])
def test_set_reaches_the_default_stages_of_a_file_without_stages(stage: str) -> None:
    changed = config(f"stages.{stage}.rounds=2")
    second = DEFAULT_STAGES[1].model_copy(update={"rounds": 2})
    assert changed.stages == (DEFAULT_STAGES[0], second, *DEFAULT_STAGES[2:])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("privacy.epsilon", "is not of the form a.b=value"),
        ("=4", "is not of the form a.b=value"),
        ("privacy..epsilon=4", "is not of the form a.b=value"),
        ("stages.three.rounds=1", "'three' is neither a name nor a number"),
        ("stages.9.rounds=1", "'9' is neither a name nor a number"),
        ("stages.-1.rounds=1", "'-1' is neither a name nor a number"),
        ("stages.².rounds=1", "'²' is neither a name nor a number"),
        ("task.labels.7=x", "'7' is neither a name nor a number"),
        ("data.train.x=1", "train is no table"),
        ("data.train.x.y=1", "nothing lies below 'x'"),
        ("privacy.sigma=1", "unknown key privacy.sigma"),
        ("nothing.there=1", "unknown key nothing"),
    ],
)
def test_a_bad_path_is_refused(override: str, words: str) -> None:
    assert words in str(refused(HEAD + TABLES + TWO_STAGES, override))


# ---- what comes out --------------------------------------------------------------------------------------------------

words = st.text(min_size=1, max_size=20)  # any unicode but lone surrogates: quotes, controls, newlines
finite = st.floats(min_value=5e-324, max_value=1e300)
rates = st.floats(min_value=5e-324, max_value=1.0)


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    stages = tuple(
        StageConfig(
            name=name,
            train=draw(st.sampled_from([("head",), ("adapter",), ("adapter", "head")])),
            rounds=draw(st.integers(1, 10_000)),
            sampling_rate=draw(rates),
            server_learning_rate=draw(st.none() | finite),
            evaluate_every=draw(st.integers(0, 5)),
        )
        for name in draw(st.lists(words, min_size=1, max_size=3, unique=True))
    )
    unit = draw(st.sampled_from(Unit))
    return RunConfig(
        name=draw(st.sampled_from(["run", "a.b-c_d"])),
        seed=draw(st.integers(0, 2**63 - 1)),
        output=draw(st.none() | words),
        task=TaskConfig(labels=tuple(draw(st.lists(words, min_size=2, max_size=5, unique=True)))),
        data=DataConfig(
            train=draw(words),
            test=draw(st.none() | words),
            text=tuple(draw(st.lists(words, min_size=1, max_size=2))),
            label=draw(words),
            unit=None if unit is Unit.RECORD else draw(words),
        ),
        privacy=PrivacyConfig(unit=unit, epsilon=draw(finite), delta=draw(rates) * 0.999),
        stages=stages,
    )


@given(configs())
@settings(deadline=None, max_examples=80)
def test_to_toml_is_read_back_to_an_equal_config(original: RunConfig) -> None:
    back = RunConfig.from_toml(original.to_toml())
    assert back == original
    assert back.digest == original.digest


@pytest.mark.parametrize("character", ["\x7f", "\x00", "\x1f", '"', "\\", "\r\n", "\u2028", "\U0001f600", "'''", "#"])
def test_a_column_may_have_any_name(character: str) -> None:
    data = DataConfig(train="x", label=f"a{character}b")
    original = RunConfig(task=TaskConfig(labels=("a", character)), data=data)
    assert RunConfig.from_toml(original.to_toml()) == original


def test_defaults_written_out_change_nothing() -> None:
    assert RunConfig.from_toml(config().to_toml()).digest == config().digest


def test_the_digest_is_stable() -> None:
    # changes only when a default or a key of the run file changes, which the changelog must then say
    assert config().digest == "2ecafcd801f36afdd0cda47a72aefd2fc45e30be3afcebabca7694d7bfb90491"


@pytest.mark.parametrize(
    "override", ["name=x", "seed=1", "privacy.epsilon=7.9", "stages.head.rounds=61", 'task.labels=["no", "yes"]']
)
def test_the_digest_changes_with_any_value(override: str) -> None:
    assert config(override).digest != config().digest


def test_an_integer_may_stand_for_a_float_and_is_the_same_config() -> None:
    assert config("privacy.epsilon=8").digest == config("privacy.epsilon=8.0").digest


def test_rounds_and_evaluations_are_counted_over_all_stages() -> None:
    changed = config("stages.one.rounds=7", "stages.one.evaluate_every=3", "stages.two.rounds=4", stages=TWO_STAGES)
    assert (changed.total_rounds, changed.evaluations) == (11, 2)
    assert config("stages.one.evaluate_every=0", stages=STAGE).evaluations == 0
    assert config("stages.one.evaluate_every=3", stages=STAGE).evaluations == 0  # two rounds: never the third
