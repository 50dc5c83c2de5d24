"""The command `keras-bridle`."""

from pathlib import Path

import pytest

from keras_bridle.__main__ import COMMANDS, main

RECIPES = Path(__file__).parents[1] / "recipes"
pytestmark = pytest.mark.one_backend


def test_every_recipe_is_a_command():
    assert set(COMMANDS.values()) == {path.stem for path in RECIPES.glob("*.py")}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_take_the_flags_of_their_recipe(command, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program"])
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    assert f"usage: keras-bridle {command} " in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--no-such-flag"])
    assert end.value.code == 2


def test_unknown_commands(capsys):
    main([])
    assert "keras-bridle fine-tune" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["pretrain", "smell"])
    assert end.value.code == 2 and "pretrain smell" in capsys.readouterr().err
