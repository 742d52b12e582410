"""schemathesis against a real server: what /openapi.json promises is what is served."""

import subprocess
import sys
from pathlib import Path

from e2e.server import Server

SETTINGS = """
[rate_limit]
per_minute = 10_000_000
burst = 10_000_000
"""


def test_no_answer_is_undocumented_and_none_is_a_server_error(tmp_path):
    """All phases, with valid and with invalid data: every status, media type, header and body is as documented.

    `positive_data_acceptance` alone is left out: a schema cannot say that two accounts must differ, which assets are
    offered, or that a key was used before, and such requests are refused with documented answers.
    """
    server = Server(tmp_path, SETTINGS)
    try:
        command = [str(Path(sys.executable).with_name("st")), "run", f"{server.url}/openapi.json"]
        command += ["--header", f"Authorization: Bearer {server.token('alice')}", "--mode", "all"]
        command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--max-examples", "60"]
        command += ["--generation-database", ":memory:", "--no-color"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    finally:
        assert server.stop() == 0
