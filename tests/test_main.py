"""The command line."""

import subprocess
import sys

import pytest

import fastmtl
from fastmtl import __main__ as command_line


def test_info_prints_the_configuration(capsys):
    command_line.main(["info"])
    printed = capsys.readouterr().out
    config = fastmtl.get_config()
    assert f"fastmtl         {fastmtl.__version__}" in printed
    assert config["simd"] in printed and config["simd"] in config["simd_available"]


def test_demo_runs_and_shared_plus_specific_wins(capsys, monkeypatch):
    monkeypatch.setattr(command_line, "SEEDS", range(1))
    command_line.main(["demo"])
    lines = capsys.readouterr().out.splitlines()
    quality = [
        (line.split("  ")[1].strip(), float(line.split()[-2]))
        for line in lines
        if line.startswith("  ")
        and line.split()[-1].replace(".", "").isdigit()
        and "camera" not in line
    ]
    digits, diabetes = quality[:4], quality[4:]
    assert max(digits, key=lambda row: row[1])[0] == "shared + specific"
    assert len(diabetes) == 4 and diabetes[-1][0].startswith("MultiOutputClassifier")


def test_an_unknown_command_names_the_known(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["fit"])
    assert "demo" in capsys.readouterr().err


@pytest.mark.parametrize("path", fastmtl.get_config()["simd_available"])
def test_the_simd_path_can_be_forced(path, monkeypatch):
    monkeypatch.setenv("FASTMTL_SIMD", path)
    code = "import fastmtl; print(fastmtl.get_config()['simd'])"
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert finished.stdout.strip() == path


def test_an_unknown_simd_path_is_refused(monkeypatch):
    monkeypatch.setenv("FASTMTL_SIMD", "mmx")
    finished = subprocess.run(
        [sys.executable, "-c", "import fastmtl"], capture_output=True, text=True
    )
    assert finished.returncode != 0
    assert "FASTMTL_SIMD is 'mmx'" in finished.stderr
