"""Configs: presets, config files, command lines, and the errors of invalid ones."""

import dataclasses
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from jaxgpt.config import Config, Data, Mesh, Model, Optim, Run, nanogpt, sections
from jaxgpt.config.command_line import changed_options, parse_config
from jaxgpt.config.files import built_in_configs, load_config
from jaxgpt.config.options import Parser, format_value, parse_value
from jaxgpt.errors import ConfigError

ROOT = Path(__file__).parents[1]
PRESETS = ROOT / "jaxgpt" / "config" / "presets"
NAMES = built_in_configs()


def parse(*argv: str) -> Config:
    """The config that `train fineweb40m` makes of `argv`, which may name another config."""
    with_config = ["--config", "fineweb40m", *argv]
    return parse_config(Parser("train", "test"), with_config)[0]


def refused(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    assert caught.value.exit_status == 2
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_preset_loads_by_name_and_path_and_survives_json(name: str) -> None:
    config = load_config(name)
    assert config == load_config(PRESETS / f"{name}.py")
    assert Config.from_dict(config.to_dict()) == config
    assert "Device:" in (PRESETS / f"{name}.py").read_text()


def test_presets_are_regular_files_of_the_package() -> None:
    """Symlinks break on Windows checkouts and in zips."""
    assert sorted(path.stem for path in PRESETS.iterdir() if path.suffix == ".py") == NAMES
    assert len(NAMES) >= 5
    assert all(path.is_file() and not path.is_symlink() for path in PRESETS.glob("*.py"))


def test_configs_folder_holds_the_presets_byte_for_byte() -> None:
    packaged = {path.name: path.read_bytes() for path in PRESETS.glob("*.py")}
    copies = {path.name: path.read_bytes() for path in (ROOT / "configs").glob("*.py")}
    assert packaged
    assert copies == packaged, "copy jaxgpt/config/presets/*.py to configs/"


def test_presets_load_from_a_zip(tmp_path: Path) -> None:
    archive = tmp_path / "jaxgpt.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (ROOT / "jaxgpt").rglob("*.py"):
            file.write(path, path.relative_to(ROOT))
    code = "from jaxgpt.config.files import *; print(load_config('quickstart').run.name, built_in_configs())"
    env = os.environ | {"PYTHONPATH": str(archive)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.stdout == f"quickstart {NAMES}\n", done.stderr


def test_fineweb40m_has_the_stated_hyperparameters() -> None:
    config = load_config("fineweb40m")
    assert config.tokens_per_step == 524_288
    assert config.tokens_per_step * config.run.steps == 10_485_760_000
    wanted = {"n_layer": 12, "n_head": 12, "n_embd": 384, "block_size": 1024, "vocab_size": 50304, "dropout": 0.1}
    assert wanted.items() <= config.to_dict()["model"].items()
    assert (config.optim.learning_rate, config.optim.min_lr, config.optim.weight_decay) == (1e-3, 1e-4, 0.1)


def test_every_field_has_help_and_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    for section, kind in sections().items():
        for field in dataclasses.fields(kind):
            assert len(field.metadata["help"]) > 5
            assert f"--{section}.{field.name.replace('_', '-')} " in text


@pytest.mark.parametrize(
    ("argv", "label", "value"),
    [
        (["--optim.learning-rate", "3e-4"], "optim.learning_rate", 3e-4),
        (["--optim.learning_rate=3e-4"], "optim.learning_rate", 3e-4),
        (["--learning_rate=1"], "optim.learning_rate", 1.0),
        (["--max_iters=1e4"], "run.steps", 10_000),
        (["--steps", "5_000"], "run.steps", 5000),
        (["--batch_size", "4"], "data.micro_batch", 4),
        (["--gradient_accumulation_steps", "8"], "data.accum", 8),
        (["--warmup_iters", "10"], "optim.warmup_steps", 10),
        (["--lr_decay_iters", "9000"], "optim.decay_steps", 9000),
        (["--dataset=data/x"], "data.path", "data/x"),
        (["--eval_interval", "7"], "run.eval_every", 7),
        (["--device", "cuda"], "mesh.device", "gpu"),
        (["--model.bias"], "model.bias", True),
        (["--model.bias", "false"], "model.bias", False),
        (["--optim.decay-steps", "none"], "optim.decay_steps", None),
        (["--data.sources", "a.parquet", "b.parquet"], "data.sources", ("a.parquet", "b.parquet")),
        (["--corpus", "fineweb"], "data.corpus", "fineweb"),
        (["--unique-tokens", "3.68e9"], "data.unique_tokens", 3_680_000_000),
        (["--data.seed", "9007199254740993"], "data.seed", 9007199254740993),
    ],
)
def test_field_names_and_values_in_many_spellings(argv: list[str], label: str, value: object) -> None:
    section, field = label.split(".")
    assert getattr(getattr(parse(*argv), section), field) == value


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["--config", "configs/run.py"], ["error[C001]: config 'configs/run.py' not found", "quickstart"]),
        (["--optim.learning_rat", "1"], ["C005", "'optim.learning_rat'", "did you mean 'optim.learning_rate'?"]),
        (["--model.n_layer", "twelve"], ["error[C007]: model.n_layer = 'twelve'; a whole number is needed"]),
        (["--model.n_layer", "2.5"], ["C007", "2.5", "whole number"]),
        (["--optim.learning_rate", "nan"], ["error[C008]: optim.learning_rate = nan is not finite"]),
        (["--optim.weight-decay", "inf"], ["C008", "optim.weight_decay = inf"]),
        (["--model.n_layer", "0"], ["error[C009]: model.n_layer = 0; must be 1 or more"]),
        (["--data.micro-batch", "-3"], ["C009", "data.micro_batch = -3"]),
        (["--optim.min-lr", "-1e-4"], ["C009", "optim.min_lr = -0.0001"]),
        (["--n_embd=768", "--n_head=7"], ["error[C010]: n_embd 768 is not divisible by n_head 7", "nearest: 6, 8"]),
        (["--model.architecture", "modern", "--n_embd", "36"], ["C011", "head size 3 is odd"]),
        (["--model.architecture", "modern", "--n_kv_head", "5"], ["C012", "n_kv_head = 5 does not divide n_head = 12"]),
        (["--model.n-kv-head", "4"], ["C012", "n_kv_head = 4"]),
        (["--run.steps", "100"], ["C014", "optim.warmup_steps = 2000 is longer than the run (run.steps = 100)"]),
        (["--optim.min-lr", "0.5"], ["C015", "min_lr = 0.5 is above optim.learning_rate = 0.001"]),
        (["--optim.beta2", "1"], ["C016", "optim.beta2 = 1.0; must be below 1"]),
        (["--optim.schedule", "cosin"], ["C017", "'cosin'", "cosine, linear, constant, wsd"]),
        (["--run.name", "../x"], ["C019", "'../x'"]),
        (["--run.name", "a\x1b[2J"], ["C019", "cannot name a folder"]),
        (["--run.name", "a/b"], ["C019", "'a/b'"]),
        (["--eval_iters", "5"], ["C005", "--run.eval-tokens"]),
        (["--n_layer"], ["C006", "--model.n-layer", "--help"]),
        (["more"], ["C006", "two configs are given: fineweb40m and more"]),
    ],
)
def test_invalid_command_line_is_explained(argv: list[str], wanted: list[str]) -> None:
    message = refused(*argv)
    for part in wanted:
        assert part in message
    assert "\x1b" not in message


def test_value_that_looks_like_code_stays_text(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    code = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    assert "a whole number is needed" in refused("--model.n_layer", code)
    assert parse("--data.path", code).data.path == code
    assert not trap.exists()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x = 1\nif:\n", "error[C002]: {path}:2: invalid syntax"),
        ("x = 1\n", "error[C003]: {path} defines no 'config = Config(...)'"),
        ("config = 3\n", "C003"),
        ("x = 1\n\nraise RuntimeError('no luck')\n", "error[C004]: {path}:3: RuntimeError: no luck"),
        ("from jaxgpt.config import *\n\nconfig = Config(model=Model(n_layer=0))\n", "{path}:3"),
        ("from jaxgpt.config import *\nconfig = Config(model=Model(n_layers=0))\n", "n_layers"),
        ("from jaxgpt.config import *\nconfig = Config(model=Model(n_layer=True))\n", "C008]: model.n_layer = True"),
        ("from jaxgpt.config import *\nconfig = Config(run=Run(steps='x'))\n", "error[C007]: run.steps = 'x'"),
        ("from jaxgpt.config import *\nconfig = Config(data=Data(sources='x'))\n", "C007"),
        ("from jaxgpt.config import *\nconfig = Config(data=Model())\n", "a Data(...) is needed"),
    ],
)
def test_error_in_a_config_file_names_its_line(tmp_path: Path, text: str, wanted: str) -> None:
    path = tmp_path / "run.py"
    path.write_text(text)
    assert wanted.format(path=path) in refused("--config", str(path))


def test_binary_config_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.py"
    path.write_bytes(b"PK\x03\x04\xff\xfe")
    assert "C002" in refused("--config", str(path))


def test_sections_are_frozen_and_check_each_other() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().run.steps = 3  # type: ignore[misc]
    with pytest.raises(ConfigError, match="C014"):
        Config(optim=Optim(schedule="wsd", warmup_steps=10, decay_steps=100), run=Run(steps=50))
    with pytest.raises(ConfigError, match="C014"):
        Config(optim=Optim(warmup_steps=10, decay_steps=5), run=Run(steps=50))
    with pytest.raises(ConfigError, match="C021"):
        Model(architecture="modern", bias=True)


def test_derived_sizes() -> None:
    assert Model().inner == 4 * 768
    assert Model(architecture="modern", n_embd=384, n_head=6).inner == 1024
    assert (Model().epsilon, Model(architecture="modern").epsilon, Model(norm_eps=0.1).epsilon) == (1e-5, 1e-6, 0.1)
    assert Model(n_embd=384, n_head=12).head_size == 32
    assert Config(data=Data(micro_batch=2, accum=3), mesh=Mesh(device="cpu")).tokens_per_step == 6 * 1024
    assert math.isclose(Optim(learning_rate=1).learning_rate, 1.0)


def test_list_option_leaves_the_config_after_it() -> None:
    config, options = parse_config(Parser("train", "test"), ["--data.sources", "a", "b", "quickstart"])
    assert (options.config, config.run.name, config.data.sources) == ("quickstart", "quickstart", ("a", "b"))
    path = str(PRESETS / "books.py")
    assert parse_config(Parser("train", "test"), ["--data.sources", "a", path])[0].data.sources == ("a",)
    only_sources = parse_config(Parser("train", "test"), ["books", "--data.sources", "a", "quickstart"])[0]
    assert only_sources.data.sources == ("a", "quickstart")


@pytest.mark.parametrize("argv", [[], ["--run.steps", "30"], ["--data.sources", "a", "b"]])
def test_no_config_is_an_error_that_lists_them(argv: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Parser("train", "test"), argv)
    message = str(caught.value)
    assert message.startswith("error[C006]: no config is given")
    assert all(name in message for name in NAMES)


def test_negative_number_is_not_joined_to_a_complete_option() -> None:
    message = refused("--run.steps=30", "-1")
    assert "30=-1" not in message
    assert "'-1' is not an option or a config" in message


@pytest.mark.parametrize("value", [None, (), ("a", "b"), True, False, 0.1 + 0.2, 1.23456789e-5, 2**60 + 1, "", "x y"])
def test_printed_value_parses_back_exactly(value: Any) -> None:
    kinds = {type(None): int | None, tuple: tuple[str, ...]}
    kind = kinds.get(type(value), type(value))
    words = format_value(value)
    assert parse_value(words if isinstance(value, tuple) else words[0], kind) == value


def test_options_of_a_changed_config_parse_back_exactly() -> None:
    base = load_config("quickstart")
    changes: dict[str, dict[str, Any]] = {
        "model": {"tie_embeddings": False, "n_inner": 300},
        "data": {"sources": (), "seed": 2**60 + 1},
        "optim": {"learning_rate": 0.00123456789, "min_lr": 0.1 / 3e3, "decay_steps": 77},
        "mesh": {"device": "gpu"},
        "run": {"sample_prompt": "-1 'x' $y", "trackers": ()},
    }
    config = base.replace(changes)
    words = changed_options(config, base)
    assert parse_config(Parser("train", "test"), ["--config", "quickstart", *words])[0] == config
    assert changed_options(base, base) == []
    back = ["--config", "quickstart", *words, *changed_options(base, config)]
    assert parse_config(Parser("train", "test"), back)[0] == base


def test_command_option_wins_over_field_of_same_name() -> None:
    parser = Parser("train", "test")
    parser.add_argument("--corpus")
    config, options = parse_config(parser, ["--corpus", "c4", "quickstart"])
    assert (options.corpus, config.data.corpus) == ("c4", "")


def test_config_json_of_older_versions_still_loads() -> None:
    values = load_config("fineweb40m").to_dict()
    del values["data"]["corpus"], values["data"]["unique_tokens"]
    values["data"]["slots"] = values["data"].pop("prefetch_buffers") + 5
    del values["run"]["trackers"]
    values["run"]["tensorboard"] = False
    loaded = Config.from_dict(values)
    assert loaded.data.prefetch_buffers == 9
    assert loaded.run.trackers == ()
    assert (loaded.data.corpus, loaded.data.unique_tokens) == ("", None)


def test_unknown_field_of_config_json_is_named() -> None:
    with pytest.raises(ConfigError, match=r"optim\.dampening"):
        Config.from_dict({"optim": {"dampening": 0.9}})


def test_nanogpt_aliases_name_existing_fields() -> None:
    fields = {f"{name}.{field.name}" for name, kind in sections().items() for field in dataclasses.fields(kind)}
    assert set(nanogpt.ALIASES.values()) <= fields


@pytest.mark.parametrize(
    ("word", "value"), [("resume", ""), ("scratch", ""), ("gpt2-xl", "gpt2-xl"), ("out/ckpt.pt",) * 2]
)
def test_nanogpts_init_from(word: str, value: str) -> None:
    """A run resumes by itself, and starts from scratch unless weights are named."""
    assert parse(f"--init_from={word}").run.init_from == value


@pytest.mark.parametrize("value", ["20", "a:b", "5:5", "9:2", "-1:3"])
def test_a_profile_needs_two_steps_in_order(value: str) -> None:
    assert "error[C009]: run.profile" in refused(f"--run.profile={value}")
