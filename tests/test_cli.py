import resource
import subprocess
import sys

import pytest

from llava.cli import COMMANDS, main


def test_help_imports_neither_torch_nor_transformers():
    script = (
        "import sys; from llava.cli import main; status = main(['--help']);"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)
    assert end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime < 1.0


def test_unknown_command_is_one_clear_line_and_status_2(capsys):
    assert main(["trian"]) == 2
    assert "error: unknown command 'trian'" in capsys.readouterr().err


def test_a_user_error_is_printed_without_traceback(capsys, tmp_path):
    assert main(["data", "check", str(tmp_path / "missing.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: mixture ")
    assert "missing.yaml" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    assert "usage" in capsys.readouterr().out
