"""The contract of `ports/trading_core.py`, kept by a core behind Aeron.

The tests are those of `contracts/test_trading_core.py` that need nothing but a core.
"""

import inspect

import pytest

from contracts import test_trading_core as contract
from contracts.trading_cores import AnsweringCore

for _name, _test in list(vars(contract).items()):
    if _name.startswith("test_") and [*inspect.signature(_test).parameters][:1] == ["core"]:
        globals()[_name] = _test
del _name, _test


@pytest.fixture
def core(pair) -> AnsweringCore:
    service, _ = pair
    return AnsweringCore(service.core, service.bus)


def test_the_contract_is_not_empty():
    """The contract's tests were found: an empty suite would show nothing."""
    assert sum(name.startswith("test_") for name in globals()) > 12
