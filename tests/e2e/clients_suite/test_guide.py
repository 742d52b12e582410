"""The guide of the clients: what it tells a reader to type, typed."""

import re
import subprocess
import sys
from pathlib import Path

GUIDE = (Path(__file__).parents[3] / "docs" / "guides" / "ccxt.md").read_text()


def blocks(language):
    """Returns the guide's blocks of code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def test_guide(server, tmp_path, monkeypatch):
    """With the key that the guide's command makes, its programs print what it says, one after the other."""
    [command] = re.findall(r"^internal-transfer api-key create .*$", GUIDE, re.MULTILINE)
    assert command.count("./data") == 1
    monkeypatch.chdir(tmp_path)
    server.run_command(command.replace("./data", str(server.data)))
    programs = blocks("python")
    assert [program.count("http://127.0.0.1:8080") for program in programs] == [1, 1]
    for program, printed in zip(programs, blocks("text"), strict=True):
        ran = subprocess.run(
            [sys.executable, "-c", program.replace("http://127.0.0.1:8080", server.url)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert ran.stdout == printed
