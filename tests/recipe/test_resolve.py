"""One recipe from four layers: who wins, what is refused, and that the YAML which is written reads back the same."""

from __future__ import annotations

import doctest
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from appliance.errors import RecipeError
from appliance.recipe import fields as recipe_fields
from appliance.recipe import resolve
from appliance.recipe.resolve import Resolved, load, shipped

MINIMAL = "name: shop\nmodel: {id: demo}\ndata: {csv: data/train.csv}\n"


def _load(tmp_path: Path, text: str = MINIMAL, *overrides: str, **environ: str) -> Resolved:
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return load(str(path), overrides=overrides, environ=environ)


def _refused(tmp_path: Path, text: str = MINIMAL, *overrides: str, **environ: str) -> str:
    with pytest.raises(RecipeError) as caught:
        _load(tmp_path, text, *overrides, **environ)
    assert caught.value.hint or "expected sections" in str(caught.value)
    return str(caught.value)


# --- precedence and origins


def test_each_layer_wins_over_the_one_before(tmp_path: Path) -> None:
    text = MINIMAL + "train: {epochs: 2, patience: 7, seed: 1}\n"
    environ = {"APPLIANCE_TRAIN__EPOCHS": "4", "APPLIANCE_TRAIN__SEED": "5"}
    resolved = _load(tmp_path, text, "train.epochs=6", **environ)
    train = resolved.recipe.train
    assert (train.min_delta, train.patience, train.seed, train.epochs) == (0.001, 7, 5, 6)
    origins = [resolved.origins[f"train.{name}"] for name in ("min_delta", "patience", "seed", "epochs")]
    assert origins == ["default", "my.yaml", "APPLIANCE_TRAIN__SEED", "--set"]


def test_every_leaf_has_an_origin(tmp_path: Path) -> None:
    assert set(_load(tmp_path).origins) == {key for key, _ in recipe_fields.fields()}


def test_the_last_set_wins(tmp_path: Path) -> None:
    assert _load(tmp_path, MINIMAL, "train.epochs=1", "train.epochs=2").recipe.train.epochs == 2


def test_empty_variable_is_unset(tmp_path: Path) -> None:
    resolved = _load(tmp_path, APPLIANCE_TRAIN__EPOCHS="", APPLIANCE_NAME="")
    assert (resolved.recipe.train.epochs, resolved.origins["train.epochs"]) == (3, "default")


def test_the_process_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_TRAIN__EPOCHS", "9")
    path = tmp_path / "my.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    assert load(str(path)).recipe.train.epochs == 9


def test_a_variable_reaches_the_third_level_and_a_section_that_the_file_leaves_out(tmp_path: Path) -> None:
    resolved = _load(tmp_path, APPLIANCE_DATA__COLUMNS__INPUT="문맥", APPLIANCE_EVALUATE__MAX_ROWS="5")
    assert (resolved.recipe.data.columns.input, resolved.recipe.evaluate.max_rows) == ("문맥", 5)


def test_variables_of_the_command_line_are_no_recipe_fields(tmp_path: Path) -> None:
    _load(tmp_path, APPLIANCE_RUNS_DIR="/runs", APPLIANCE_CACHE_DIR="/cache", PATH="/bin", MY_APPLIANCE_X="1")


def test_no_variable_that_the_program_reads_is_taken_for_a_field(tmp_path: Path) -> None:
    """A key for `serve` that stays set in a shell must not stop `run`."""
    package = Path(resolve.__file__).parents[1]
    code = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    read = set(re.findall(r'"(APPLIANCE(?:_[A-Z]+)+)"', code))
    assert {"APPLIANCE_API_KEY", "APPLIANCE_WATCH_TOKEN", "APPLIANCE_RUNS_DIR"} <= read
    fields = {"APPLIANCE_" + key.upper().replace(".", "__") for key in resolve._leaves()}
    _load(tmp_path, **dict.fromkeys(read - fields, "something"))


def test_a_run_directory_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(MINIMAL, encoding="utf-8")
    assert load(str(tmp_path), environ={}).origins["name"] == "recipe.yaml"


# --- unknown names


@pytest.mark.parametrize(
    ("text", "overrides", "environ", "seen"),
    [
        ("train: {lerning_rate: 1}\n", (), {}, "train.lerning_rate: no such field; did you mean `train.learning_rate`"),
        ("learning_rate: 1\n", (), {}, "learning_rate: no such field; did you mean `train.learning_rate`"),
        ("trian: {epochs: 1}\n", (), {}, "trian: no such field; did you mean `train`"),
        ("", ("train.epoch=1",), {}, "--set train.epoch: no such field; did you mean `train.epochs`"),
        ("", ("epochs=1",), {}, "--set epochs: no such field; did you mean `train.epochs`"),
        ("", ("train.epochs",), {}, "--set train.epochs: expected KEY=VALUE"),
        ("", ("model=demo",), {}, "--set model: no such field"),
        ("", (), {"APPLIANCE_TRAIN__EPOCH": "1"}, "APPLIANCE_TRAIN__EPOCH: no such field; did you mean `train.epochs`"),
        ("", (), {"APPLIANCE_TRAIN": "1"}, "APPLIANCE_TRAIN: no such field"),
        ("", (), {"APPLIANCE_TRAIN": '{"epochs": 1}'}, "APPLIANCE_TRAIN: no such field"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(
    tmp_path: Path, text: str, overrides: tuple[str, ...], environ: dict[str, str], seen: str
) -> None:
    assert seen in _refused(tmp_path, MINIMAL + text, *overrides, **environ)


def test_an_unknown_field_unlike_any_other_gets_no_suggestion(tmp_path: Path) -> None:
    assert "did you mean" not in _refused(tmp_path, MINIMAL + "zzz: 1\n")


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = "name: a/b\nmodel: {revision: main}\ndata: {csv: x, split: random}\ntrain: {epochs: 0, foo: 1}\n"
    message = _refused(tmp_path, text, "train.seed=-1", "nonsense", APPLIANCE_TUNING__R="x", APPLIANCE_OTHER="1")
    for key in (
        "name (my.yaml)",
        "model.id: required (Base model",
        "data.split (my.yaml)",
        "train.epochs (my.yaml)",
        "train.foo: no such field",
        "train.seed (--set)",
        "--set nonsense",
        "tuning.r (APPLIANCE_TUNING__R)",
        "APPLIANCE_OTHER: no such field",
    ):
        assert message.count(key) == 1, (key, message)
    assert "found 'a/b'" in message
    assert "found '-1'" in message


def test_a_wrong_value_names_its_layer_not_the_one_below(tmp_path: Path) -> None:
    message = _refused(tmp_path, MINIMAL + "train: {epochs: 2}\n", APPLIANCE_TRAIN__EPOCHS="viele")
    assert "train.epochs (APPLIANCE_TRAIN__EPOCHS)" in message
    assert "found 'viele'" in message
    assert "train.epochs (my.yaml)" not in message


# --- types


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('train: {epochs: "3"}', "train.epochs"),
        ("train: {seed: 1.0}", "train.seed"),
        ("train: {seed: true}", "train.seed"),
        ("train: {learning_rate: .inf}", "train.learning_rate"),
        ("train: {weight_decay: .nan}", "train.weight_decay"),
        ("model: {id: 7}", "model.id"),
        ("model: {id: ''}", "model.id"),
        ("model: {id: x, load_in_4bit: 1}", "model.load_in_4bit"),
        ("model: {id: x, max_seq_length: longest}", "model.max_seq_length"),
        ("tuning: {target_modules: [1]}", "tuning.target_modules.0"),
        ("evaluate: {stop: END}", "evaluate.stop"),
        ("engine: tpu", "engine"),
        ("train: 3", "train"),
        ("train: ", "train"),
        ("1: x", "1"),
    ],
)
def test_yaml_values_are_not_converted(tmp_path: Path, line: str, key: str) -> None:
    given = yaml.safe_load(MINIMAL) | yaml.safe_load(line)
    assert re.search(rf"\n  {re.escape(key)}( \(my\.yaml\))?: ", _refused(tmp_path, yaml.safe_dump(given)))


@pytest.mark.parametrize("text", ["2e-4", "2E-4", "2.0e-4", "0.0002", "+2e-4", "2.e-04"])
def test_an_exponent_in_yaml_is_a_number(tmp_path: Path, text: str) -> None:
    assert _load(tmp_path, MINIMAL + f"train: {{learning_rate: {text}}}\n").recipe.train.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("name=007", "007"),
        ("name=null", "null"),
        ("model.revision=1e3", "1e3"),
        ("model.revision=null", None),
        ("model.revision=None", None),
        ("model.revision=~", None),
        ("model.max_seq_length=auto", "auto"),
        ("model.max_seq_length=128", 128),
        ("model.load_in_4bit=false", False),
        ("data.csv=a=b.csv", "a=b.csv"),
        ("data.csv=[1].csv", "[1].csv"),
        ("data.csv=질문 #1.csv", "질문 #1.csv"),
        ("train.max_steps=null", None),
        ("train.max_steps=40", 40),
        ("train.epochs=1", 1.0),
        ("train.epochs=0.5", 0.5),
        ("train.learning_rate=2e-4", 2e-4),
        ("tuning.target_modules=[q_proj,v_proj]", ["q_proj", "v_proj"]),
        ("tuning.target_modules=all-linear", "all-linear"),
        ('evaluate.stop=["### 질문:", "\\n\\n"]', ["### 질문:", "\n\n"]),
        ("evaluate.stop=[]", []),
        ("publish.adapter=no", False),
    ],
)
@pytest.mark.parametrize("layer", ["--set", "environment"])
def test_text_becomes_the_type_of_its_field(tmp_path: Path, item: str, value: Any, layer: str) -> None:
    key, _, text = item.partition("=")
    variable = "APPLIANCE_" + key.upper().replace(".", "__")
    resolved = _load(tmp_path, MINIMAL, item) if layer == "--set" else _load(tmp_path, **{variable: text})
    found = dict(resolve.flatten(resolved.recipe.model_dump()))[key]
    assert (found, type(found)) == (value, type(value))
    assert resolved.origins[key] == ("--set" if layer == "--set" else variable)


@pytest.mark.parametrize(
    "item",
    [
        "train.max_steps=0",
        "train.epochs=inf",
        "train.epochs=nan",
        "train.epochs=",
        "train.epochs=null",
        "name=a b",
        "name=../x",
        "name=.hidden",
        "engine=unsloth2",
        "tuning.target_modules=[q_proj",
        "tuning.target_modules=[1]",
        "tuning.target_modules=q_proj",
        "data.test_fraction=1",
        "data.test_fraction=0",
        "train.seed=1.5",
    ],
)
def test_bad_text_is_refused_by_name(tmp_path: Path, item: str) -> None:
    assert item.partition("=")[0] in _refused(tmp_path, MINIMAL, item)


def test_fractions_must_leave_train_rows(tmp_path: Path) -> None:
    assert "less than a tenth" in _refused(tmp_path, MINIMAL, "data.test_fraction=0.5", "data.val_fraction=0.4")
    _load(tmp_path, MINIMAL, "data.test_fraction=0.5", "data.val_fraction=0.4", "data.split=notebook")


@pytest.mark.parametrize("line", ["name: other", "data: {csv: b}", "train: {seed: 1, seed: 2}"])
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, line: str) -> None:
    assert "appears twice" in _refused(tmp_path, MINIMAL + line + "\n")


@pytest.mark.parametrize("text", ["", "- a\n", "just text\n", "7\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "expected sections such as `model:`" in _refused(tmp_path, text)


@pytest.mark.parametrize("text", ["name: {{ x }}\n", "name: [\n", "a: &a {b: *a}\n", "\x07: 1\n", "!!python/none x\n"])
def test_unreadable_yaml_is_refused(tmp_path: Path, text: str) -> None:
    assert "not a readable YAML file" in _refused(tmp_path, text)


READ_TWICE = [
    *("a: 2e-4", "a: 1_0e3", "a: 2e-4x", "a: 0x1F", "a: on", "a: 1:30", "a: 2026-01-02", "a: ~", "a: [1, {b: '2'}]"),
    *(
        "a: |\n  텍스트\n  둘",
        'a: "\\u0001"',
        "a: &x {b: 1}\nc: {<<: *x, d: 2}",
        "%YAML 1.2\n---\na: 1",
        "a:\tb",
        "- 1",
    ),
    *("a: 1\na: 2", "a: {b", "{{ x }}: 1", "a: !!python/name:os.system x", "a: !!timestamp x", "a: b: c", "a: %b"),
]


@pytest.mark.parametrize("text", READ_TWICE)
def test_libyaml_reads_what_the_slower_loader_reads(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Any:
        try:
            return resolve._read_yaml(path)
        except RecipeError as error:
            return str(error), error.hint

    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    fast = found()
    monkeypatch.setattr(resolve, "_FastLoader", resolve._Loader)
    assert fast == found()


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(MINIMAL.replace("shop", "가게").encode("cp949"))
    with pytest.raises(RecipeError, match="not a readable YAML file"):
        load(str(path), environ={})
    path.write_bytes(MINIMAL.replace("shop", "가게").encode("utf-8-sig"))
    assert load(str(path), environ={}).recipe.name == "가게"


def test_a_missing_source_names_the_nearest_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load("chatbot-cqu")
    assert "neither a shipped recipe, nor a file, nor a run directory" in str(caught.value)
    assert "did you mean 'chatbot-cpu'?" in caught.value.hint
    with pytest.raises(RecipeError) as caught:
        load(str(tmp_path))
    assert str(caught.value) == f"{tmp_path} is a folder without a recipe.yaml"
    assert "the command that started it" in caught.value.hint


# --- the recipe itself


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    made = _load(tmp_path).recipe
    with pytest.raises(ValidationError, match="frozen"):
        made.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        made.data.columns.input = "other"


def test_every_field_is_documented_and_none_holds_a_secret() -> None:
    for key, info in recipe_fields.fields():
        assert info.description, key
        assert not {"token", "password", "key", "secret", "credential"} & set(key.replace(".", "_").split("_")), key
    documented = {key: (default, meaning) for key, default, meaning in recipe_fields.documentation()}
    assert documented["model.id"][0] == "(required)"
    assert documented["train.max_steps"] == ("null", "Stop after this many steps, regardless of epochs.")
    assert documented["data.columns.input"][0] == "input"


def test_every_section_is_strict_and_frozen() -> None:
    sections: list[type[BaseModel]] = [recipe_fields.Recipe]
    for section in sections:
        assert (section.model_config.get("extra"), section.model_config.get("strict")) == ("forbid", True), section
        assert section.model_config.get("frozen"), section
        kinds = [info.annotation for info in section.model_fields.values()]
        sections += [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    assert len(sections) == 9


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_recipe_loads_and_says_what_it_is_for(name: str) -> None:
    made = load(name, environ={}).recipe
    assert made.name == name
    assert shipped()[name].read_text(encoding="utf-8").startswith("# ")
    assert len(resolve.headline(shipped()[name])) > 20
    assert load(name, overrides=["data.csv=x.csv"], environ={}).recipe.data.csv == "x.csv"


def test_recipes_are_shipped() -> None:
    assert {"chatbot-cpu", "demo"} <= set(shipped())


# --- the YAML that is written

_ODD = st.one_of(
    st.sampled_from(
        ["yes", "no", "on", "null", "~", "1e3", "007", "0x1f", "1_000", "12:30:45", "2024-01-01", "---", "..."]
    ),
    st.sampled_from(
        ["가격표.csv", "a: b", "a #b", "#a", "'", '"', "a\nb", "a\r\nb", "\ta", " a ", "%a", "@a", "`a", "&a", "*a"]
    ),
    st.sampled_from(
        ["!a", "|", ">", "-", "- a", "? a", "{a}", "[a]", ",", "\\", "\x00", "\x85", "\u2028", "\ufeffa", "\x7f", "😀"]
    ),
    st.text(min_size=1, max_size=12),
    st.text(alphabet="aA/é가.-_ :#'\"\n\\", min_size=1, max_size=200),
)


@settings(max_examples=100, deadline=None)
@given(csv=_ODD, stop=st.lists(_ODD, max_size=3))
def test_the_written_yaml_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, csv: str, stop: list[str]
) -> None:
    given = {"name": "shop", "model": {"id": csv}, "data": {"csv": csv}, "evaluate": {"stop": stop}}
    made = recipe_fields.Recipe.model_validate(given)
    resolved = Resolved(made, {key: "default" for key, _ in resolve.flatten(made.model_dump())})
    path = tmp_path_factory.getbasetemp() / "again.yaml"
    path.write_text(resolved.to_yaml(), encoding="utf-8")
    assert load(str(path), environ={}).recipe == made


def test_the_written_yaml_is_for_people_too(tmp_path: Path) -> None:
    text = _load(
        tmp_path, MINIMAL, "data.csv=가격 표.csv", "train.learning_rate=1e-5", f"evaluate.stop=[{'a b ' * 50}]"
    ).to_yaml()
    lines = text.splitlines()
    assert lines[0] == "name: shop  # my.yaml"
    assert '  csv: "가격 표.csv"  # --set' in lines
    assert "  columns:" in lines
    assert "    instruction: instruction  # default" in lines
    assert "  max_steps: null  # default" in lines
    assert "  learning_rate: 1.0e-05  # --set" in lines
    assert len(lines) == len(list(recipe_fields.fields())) + 8  # a line a field, and one a section


def test_numbers_survive_the_written_yaml(tmp_path: Path) -> None:
    resolved = _load(tmp_path, MINIMAL, f"train.learning_rate={math.pi / 1e7!r}", "train.epochs=1e22")
    (tmp_path / "again.yaml").write_text(resolved.to_yaml(), encoding="utf-8")
    assert load(str(tmp_path / "again.yaml"), environ={}).recipe == resolved.recipe


def test_the_examples_in_resolve_run() -> None:
    assert doctest.testmod(resolve).failed == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ('evaluate.stop=[""]', "at least 1 character"),
        ("train.seed=4294967296", "less than 4294967296"),
        ("tuning.target_modules=[]", "at least 1 item"),
        ("tuning.target_modules=[q_proj,lm_head]", "lm_head cannot be tuned here"),
    ],
)
def test_values_that_would_fail_late_are_refused_first(override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        load("demo", overrides=[override], environ={})


def test_a_release_of_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="nothing would be released"):
        load("demo", overrides=["publish.adapter=false", "publish.merged=false"], environ={})


def test_a_shipped_name_is_not_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("no recipe", encoding="utf-8")
    assert load("demo", environ={}).recipe.name == "demo"
    with pytest.raises(RecipeError, match="expected sections"):
        load("./demo", environ={})


def test_a_run_directory_remembers_where_its_values_came_from(tmp_path: Path) -> None:
    first = load("demo", overrides=["data.csv=a  # b.csv"], environ={"APPLIANCE_TRAIN__SEED": "9"})
    (tmp_path / "recipe.yaml").write_text(first.to_yaml(), encoding="utf-8")
    again = load(str(tmp_path), overrides=["train.patience=9"], environ={})
    assert again.origins == {**first.origins, "train.patience": "--set"}


def test_without_a_name_the_recipe_beside_the_csv_is_taken_else_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve.usual_recipe() == "default"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "recipe.yaml").write_text(MINIMAL, encoding="utf-8")
    assert load(resolve.usual_recipe(), environ={}).recipe.name == "shop"


def test_what_differs_from_the_defaults() -> None:
    settings = ["train.epochs=2", "train.patience=3", "evaluate.stop=[x]", "model.revision=null"]
    recipe = resolve.load("chatbot-cpu", overrides=settings).recipe
    usual = dict(recipe_fields.fields())["train.patience"].default
    given = resolve.differing(recipe)
    assert given["train.epochs"] == 2
    assert given["evaluate.stop"] == ["x"]
    assert given["name"] == "chatbot-cpu"
    assert ("train.patience" in given) == (usual != 3)
    assert "model.revision" not in given
    assert set(given) < {key for key, _ in recipe_fields.fields()}
