"""What ccxt makes of an answer, asked of a process in its own environment: it pins versions of what we use too."""

import json
import subprocess
from pathlib import Path

import pytest
from servers.environment import locked_environment

from real_servers import Missing, do_without

LOCK = Path(__file__).parents[3] / "requirements" / "clients.lock"
PROGRAM = """
import json, sys
import ccxt
okx = ccxt.okx()
for line in sys.stdin:
    status, text = json.loads(line)
    raised = []
    try:
        okx.handle_errors(status, "", "", "POST", {}, text, json.loads(text), {}, "")
    except ccxt.BaseError as error:
        raised = [each.__name__ for each in type(error).__mro__]
    print(json.dumps(raised), flush=True)
"""


@pytest.fixture(scope="session")
def raised_by_ccxt():
    """Returns the name of the exception that ccxt raises for an answer, and asserts that it is of these classes too."""
    try:
        python = locked_environment("clients", LOCK)
    except Missing as reason:
        do_without("ccxt", reason)
    process = subprocess.Popen([python, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(response, *classes):
        process.stdin.write(json.dumps([response.status_code, response.text]) + "\n")
        process.stdin.flush()
        names = json.loads(process.stdout.readline())
        assert names, f"ccxt takes this for a success: {response.text}"
        assert set(classes) <= set(names)
        return names[0]

    yield ask
    process.communicate()
