"""What the contract suites of the ports share: a harness that opens the adapter, and how pytest runs the tests.

Each suite is one class to inherit from, and the user writes one fixture; pandas publishes its suite for extension
arrays in this way. A star import of test functions, as for SQLAlchemy's suite of dialects, cannot be overridden or
linted, and serves one adapter per module; a pytest plugin would run in every project that installs the package. One
class holds the whole contract, so nobody misses a part of it or a test that is added later.

Only those who run a suite need pytest, pytest-asyncio and hypothesis.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from inspect import iscoroutinefunction
from pkgutil import iter_modules

try:
    import hypothesis as _hypothesis  # noqa: F401 - only to say early that it is missing.
    import pytest
    import pytest_asyncio as _pytest_asyncio  # noqa: F401
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"the contract suites need {missing.name}: pip install 'internal-transfer[conformance]'", name=missing.name
    ) from missing


class Harness(ABC):
    """Opens an adapter for a test, closes it, and opens it again with what it recorded.

    A new harness stands for a system that has recorded nothing yet, or for an unused part of a shared one.
    """

    @abstractmethod
    async def open(self) -> None:
        """Opens the adapter with all that was recorded before."""

    @abstractmethod
    async def close(self) -> None:
        """Closes the adapter; what it recorded stays until the harness is opened again."""

    async def reopen(self) -> None:
        """Closes the adapter and opens it again, as when its process is stopped and started."""
        await self.close()
        await self.open()

    async def durable(self) -> None:  # noqa: B027 - most adapters have nothing to wait for.
        """Returns when everything the adapter returned so far is on stable storage; see `ports/durability.py`.

        Override it where calls share a commit; elsewhere there is nothing to wait for.
        """


class ContractTests:
    """A part of a suite; its coroutines run in pytest-asyncio's strict mode as well as in its auto mode."""

    def __init_subclass__(cls) -> None:
        """Marks the coroutines for pytest-asyncio; it warns about marks on other tests."""
        super().__init_subclass__()
        for name, test in vars(cls).items():
            if name.startswith("test_") and iscoroutinefunction(test):
                pytest.mark.asyncio(loop_scope="function")(test)


def explain_failures(package: str, path: Iterable[str]) -> None:
    """Makes pytest show the values in a failed `assert` of a package's modules, as it does in test modules.

    Must be called before those modules are imported.
    """
    pytest.register_assert_rewrite(*(f"{package}.{module.name}" for module in iter_modules(path)))
