"""The command table: only the named command is imported, and nothing of jax for help."""

import subprocess
import sys

import pytest

from ranvier.cli.main import COMMANDS, main

LIGHT = (
    "import sys; from ranvier.cli.main import main\n"
    "try: main({words!r})\n"
    "except SystemExit: pass\n"
    "names = {{'jax', 'jaxlib', 'numpy', 'starlette', 'uvicorn', 'tokenizers'}}\n"
    "heavy = names & set(sys.modules)\n"
    "assert not heavy, heavy\n"
)


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], *([c.name, "--help"] for c in COMMANDS)]
)
def test_help_and_version_import_nothing_heavy(words):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(words=words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_unknown_command_names_the_nearest(capsys):
    assert main(["serv"]) == 2
    assert "Did you mean serve?" in capsys.readouterr().err


def test_unknown_option_names_the_nearest(capsys):
    assert main(["serve", "model", "--max-model-length", "4"]) == 2
    assert "Did you mean --max-model-len?" in capsys.readouterr().err


def test_options_are_not_abbreviated(capsys):
    assert main(["serve", "model", "--max-model", "4"]) == 2
    assert "Unknown option --max-model" in capsys.readouterr().err


def test_no_model_is_an_error(capsys):
    assert main(["compile"]) == 2
    assert "No model" in capsys.readouterr().err
