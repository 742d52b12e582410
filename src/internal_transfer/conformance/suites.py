"""What the contract suites of the ports have in common: a harness, and how pytest is to run them.

Both suites are classes to inherit from, with one fixture to write: pandas offers its suite for extension arrays in the
same way. Against a star import of test functions (as SQLAlchemy's suite for dialects is used) they can be read,
linted and overridden like any class, and two adapters can be tested in one module. Against a pytest plugin they need no
options and nothing that runs where nobody asked for it. And one class per port holds the whole of its contract, so that
a test added here is run by everybody.

Only whoever runs a suite needs pytest, pytest-asyncio and hypothesis.
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

    A new harness stands for a system that has recorded nothing yet, or for a part of one that nobody else uses.
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
        """Returns when all that the adapter returned so far is on stable storage; see `ports/durability.py`.

        At once, unless the adapter shares commits.
        """


class ContractTests:
    """A part of a suite, whose coroutines pytest-asyncio runs in its strict mode too."""

    def __init_subclass__(cls) -> None:
        """Marks the tests that are coroutines, and only those: pytest-asyncio warns of marks on the others."""
        super().__init_subclass__()
        for name, test in vars(cls).items():
            if name.startswith("test_") and iscoroutinefunction(test):
                pytest.mark.asyncio(loop_scope="function")(test)


def explain_failures(package: str, path: Iterable[str]) -> None:
    """Has pytest show the values of a failed `assert` in a package's modules, as it does in test modules.

    Must be called before they are imported.
    """
    pytest.register_assert_rewrite(*(f"{package}.{module.name}" for module in iter_modules(path)))
