"""The table of options: one meaning in Python, in TOML and on the command line."""

import argparse
import dataclasses
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydilate.config import Config, add_arguments, given_options
from tinydilate.errors import ConfigError
from tinydilate.options import expectation, read_options

FIELDS = dataclasses.fields(Config)


def values(field):
    """Values that an option may have."""
    notes = field.metadata
    if notes["choices"]:
        return st.sampled_from(notes["choices"])
    least, most = notes["least"], min(notes["below"], 1e9) if notes["least"] is not None else None
    if field.type == "bool":
        return st.booleans()
    if field.type == "float":
        return st.floats(least, most, exclude_max=True)
    whole = st.integers(int(least), int(most) - 1)
    return whole if field.type == "int" else st.lists(whole, min_size=1, max_size=9).map(tuple)


configs = st.fixed_dictionaries({field.name: values(field) for field in FIELDS})


def flags(options):
    """The options as command-line arguments."""
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{flag}", text]
    return words


def parser():
    made = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_arguments(made)
    return made


@given(options=configs)
def test_the_same_from_python_toml_and_the_command_line(options):
    config = Config.of(options)
    assert Config.of(tomllib.loads(config.to_toml())) == config
    assert Config.of(given_options(parser().parse_args(flags(options)))) == config


def test_what_was_not_given_is_left_to_the_file():
    assert given_options(parser().parse_args([])) == {}
    assert given_options(parser().parse_args(["--batch", "3"])) == {"batch": 3}


def test_every_option_is_explained_with_its_default():
    text = " ".join(parser().format_help().split())
    for field in FIELDS:
        assert f"--{field.name.replace('_', '-')}" in text
        assert " ".join(field.metadata["meaning"].split()) in text
    assert text.count("(default: ") == len(FIELDS)


def test_a_configuration_file_explains_itself():
    lines = Config().to_toml().splitlines()
    assert lines[0] == "seed = 0  # makes scenes, first weights and the order of batches"
    assert len(lines) == len(FIELDS)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bach": 16}, "got 'bach', which is none. Did you mean batch?"),
        ({"qqq": 16}, "got 'qqq', which is none. They are seed, train_scenes, "),
        ({"batch": 0}, "expected batch to be a whole number of at least 1; got 0."),
        ({"batch": 2.0}, "expected batch to be a whole number of at least 1; got 2.0."),
        ({"batch": "2"}, "got '2'."),
        ({"batch": True}, "got True."),
        ({"front_lr": -1}, "expected front_lr to be a finite number of at least 0; got -1."),
        ({"front_lr": float("nan")}, "got nan."),
        ({"front_lr": [1]}, "got [1]."),
        ({"momentum": 1.0}, "a finite number of at least 0 and below 1; got 1.0."),
        ({"comparison": 1}, "expected comparison to be true or false; got 1."),
        ({"optimizer": "adm"}, "expected optimizer to be one of adam, sgd; got 'adm'."),
        ({"dilations": []}, "whole numbers such as 1,1,2,4, each of at least 1; got []."),
        ({"dilations": [1, 0]}, "got [1, 0]."),
        ({"dilations": 3}, "got 3."),
    ],
)
def test_refused(options, text):
    with pytest.raises(ConfigError) as error:
        Config.of(options)
    assert text in str(error.value)
    with pytest.raises(ConfigError) as error:
        Config.of(options, "demo.toml")
    assert "demo.toml" in str(error.value)


def test_whole_numbers_serve_as_fractions():
    assert Config(front_lr=1).front_lr == 1.0
    assert isinstance(Config(front_lr=1).front_lr, float)


def test_the_command_line_refuses_in_the_same_words():
    with pytest.raises(argparse.ArgumentError) as error:
        parser().parse_args(["--batch", "x"])
    assert "expected batch to be a whole number of at least 1; got 'x'." in str(error.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="expected a configuration file at"):
        read_options(tmp_path / "nothing.toml")
    for content in (b"batch: 16", b"\xff\xfe"):
        (tmp_path / "a.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"expected a TOML file; .*a\.toml is none"):
            read_options(tmp_path / "a.toml")


def test_differences():
    here, there = Config(batch=4), Config(seed=2)
    assert here.differences(there) == ["seed: 0 here, 2 there", "batch: 4 here, 16 there"]
    assert here.differences(here) == []


def test_expectations_read_well():
    by_name = {field.name: field for field in FIELDS}
    assert expectation(by_name["scene_size"]) == "a whole number of at least 36 and below 4096"
