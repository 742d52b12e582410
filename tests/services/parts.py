"""Ports for a test of a single part, which needs only a few of them."""

import dataclasses
from typing import Any

from internal_transfer.ports.all_ports import Ports
from internal_transfer.telemetry import Telemetry


def ports_of(clock: Any, **given: Any) -> Ports:
    """Ports of which only these can be used."""
    parts = {field.name: None for field in dataclasses.fields(Ports)}
    return Ports(**parts | {"clock": clock, "telemetry": Telemetry()} | given)
