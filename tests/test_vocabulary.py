"""One vocabulary of flags over all commands, and the list of these."""

import argparse
import importlib
import re

import pytest

import experiments.__main__ as listing
from docs._ext.generated import command_names
from experiments.lmms.model_args import INFORMATION
from models.cli import RENAMED
from tokencarve_jax.scores.information import ROUTES

COMMANDS = command_names()


class _Seen(Exception):
    """Carries a command's parser."""


def parser_of(name: str) -> argparse.ArgumentParser:
    def stop(parser, args=None, namespace=None):
        raise _Seen(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        patch.setattr("models.cli.Parser.parse_known_args", stop)
        try:
            importlib.import_module(name).main([])
        except _Seen as seen:
            return seen.args[0]
    raise AssertionError(f"{name} reads no flags")


@pytest.fixture(scope="module")
def flags():
    """{command: {flag: its action}}."""
    return {name: parser_of(name)._option_string_actions for name in COMMANDS}


def test_a_flag_counts_the_same_in_every_command(flags):
    meanings = {"--limit": r"scenes|questions", "--repeats": "tim|calls", "--max-new-tokens": "answer|decode|greedy"}
    for flag, meaning in meanings.items():
        found = {name: own[flag] for name, own in flags.items() if flag in own}
        assert len(found) > 2
        assert all(re.search(meaning, action.help) for action in found.values()), flag
    assert {own["--limit"].metavar for own in flags.values() if "--limit" in own} == {"COUNT"}
    old = set(RENAMED) - set(RENAMED.values())
    assert not [(name, flag) for name, own in flags.items() for flag in own if flag in old]


@pytest.mark.parametrize("old", RENAMED)
def test_an_earlier_name_is_refused_and_the_new_one_named(old, flags, capsys):
    new = RENAMED[old]
    names = [name for name, own in flags.items() if new in own and old not in own]
    assert names
    for name in names:
        with pytest.raises(SystemExit):
            importlib.import_module(name).main([f"{old}=3"])
        assert capsys.readouterr().err == f"python -m {name}: error: argument {old}: it is called {new} now\n"


def test_information_has_the_same_names_everywhere(flags):
    assert set(INFORMATION) <= set(ROUTES)
    assert set(flags["experiments.bench"]["--information"].choices) == set(ROUTES)
    assert set(flags["experiments.reproduce"]["--information"].choices) == set(INFORMATION)


def test_no_default_is_a_path_to_the_shipped_model(flags):
    for name, own in flags.items():
        if "--model" in own:
            assert "(default: the small trained model" in own["--model"].help or name == "experiments.reproduce"


def test_all_commands_are_listed_with_a_line_and_a_time(capsys):
    assert sorted(listing.COMMANDS) == sorted(COMMANDS)
    assert listing.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, time in listing.COMMANDS.items():
        (line,) = [line for line in lines if line.split()[:3] == ["python", "-m", name]]
        assert time in line
        assert line.endswith(listing.purpose(name))
        assert listing.purpose(name).endswith((".", "?"))
