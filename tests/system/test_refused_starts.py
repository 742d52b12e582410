"""Starts that must be refused: the server ends with 1 and says on standard error what is wrong and what to do."""

import json
import shutil
import sqlite3

import pytest

from internal_transfer.settings.demo_issuer import DemoIssuer
from internal_transfer.simulation.scenarios.process import PROGRAM
from internal_transfer.simulation.scenarios.server_process import ServerProcess, run_command, run_program


async def refused(place, *words):
    """What a server that must not start says; it is given a free port and the settings of the scenarios."""
    ran = await run_program("serve", "--data", str(place / "data"), "--port", "0", "--admin-port", "0", *words)
    assert ran.exit_code == 1, (ran.output, ran.errors)
    assert ran.output == ""
    assert "Traceback" not in ran.errors
    return ran.errors


async def test_held_directory(server, place):
    """A second server on the same data directory is refused, names the first, and does it no harm."""
    await server.start()
    said = await refused(place, "--demo")
    assert f"held by another server (process {server.pid})" in said
    assert "give --data another directory" in said
    await server.expect_clean()


async def test_port_in_use(server, place):
    """A port that another program uses is named, and so is what to do, on the command line and with make."""
    await server.start()
    port = server.address.rpartition(":")[2]
    for taken, free in (("--port", "--admin-port"), ("--admin-port", "--port")):
        ran = await run_program("serve", "--data", str(place / "other"), free, "0", taken, port, "--demo")
        assert ran.exit_code == 1
        assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in ran.errors
        variable = {"--port": "PORT", "--admin-port": "ADMIN_PORT"}[taken]
        assert f"or give another port: {taken} N, or make run {variable}=N" in ran.errors
        assert "Traceback" not in ran.errors


async def test_a_directory_is_for_a_demonstration_or_for_real(server, place):
    """What a directory was first used for it stays for: made-up money never comes to real money, nor the reverse."""
    (place / "keys.json").write_text(json.dumps(DemoIssuer.create(place).public_keys()))
    real = place / "real.toml"
    issuers = '[[issuers]]\nissuer = "x"\nkeys_file = "keys.json"\n'
    await server.start()
    assert await server.stop() == 0
    real.write_text(server.config.read_text() + issuers)
    said = await refused(place, "--config", str(real))
    assert "was first used with --demo, and its money is made up" in said
    assert "give --data another directory" in said
    async with ServerProcess(place / "other", real, options=()) as other:
        # A start that fails for lack of an issuer decides nothing.
        ran = await run_program("serve", "--data", str(other.data), "--port", "0", "--admin-port", "0")
        assert "issuers" in ran.errors
        await other.start()
        assert await other.stop() == 0
        words = ["serve", "--data", str(other.data), "--port", "0", "--admin-port", "0", "--demo"]
        ran = await run_program(*words, "--config", str(server.config))
        assert (ran.exit_code, ran.output) == (1, "")
        assert "was first used without --demo" in ran.errors
        assert not (other.data / "demo-issuer.json").exists()
        assert (await other.admin("audit", "list")).object() == {"entries": []}
        assert await other.launch()


async def test_demo_on_every_address(place):
    """A demonstration, which gives everybody tokens, is refused on an address that others can reach."""
    assert "loopback only" in await refused(place, "--demo", "--host", "0.0.0.0")
    assert not (place / "data").exists()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ("[assets.USDT]\nscale = 31\n", "assets.USDT.scale"),
        ("[assets.USDT]\nsclae = 6\n", "assets.USDT.sclae"),
        ('[[routes]]\nfrom = "funding"\nto = "savings"\n', "routes[0].to"),
        ('[rate_limit]\nper_minute = "many"\n', "rate_limit.per_minute"),
        ('[tiers.standard.limits]\nUSDT = { min = "1", max = "0.5", daily = "2" }\n', "tiers.standard.limits.USDT.max"),
        ("[scanner\n", "settings.toml"),
    ],
)
async def test_wrong_settings(place, settings, key):
    """A wrong setting stops the start and is named by its key."""
    config = place / "settings.toml"
    config.write_text(settings)
    assert key in await refused(place, "--demo", "--config", str(config))


async def test_no_issuer(place):
    """A server that could believe nobody's tokens is refused, and says which setting names an issuer."""
    assert "issuers" in await refused(place)


async def test_pinned_setting(server, place):
    """A scale that changed after it was first used is refused, with both values and the way back."""
    await server.start()
    assert await server.stop() == 0
    server.config.write_text(server.config.read_text() + "[assets.USDT]\nscale = 8\n")
    said = await refused(place, "--demo", "--config", str(server.config))
    assert "assets.USDT.scale: is '8' in the settings, but was '6' when first used" in said
    assert "put the old value back" in said


async def test_pinned_asset_that_is_missing(server, place):
    """An asset that was used and is not in the settings any more stops the start, until it is back, if only closed."""
    new = "[assets.NEW]\nnumber = 99\nscale = 2\nprecision = 2\n"
    before = server.config.read_text()
    server.config.write_text(before + new)
    await server.start()
    assert await server.stop() == 0
    server.config.write_text(before)
    said = await refused(place, "--demo", "--config", str(server.config))
    assert "assets.NEW: missing from the settings" in said
    assert "`closed = true`" in said
    server.config.write_text(before + new + "closed = true\n")
    await server.start()


@pytest.mark.parametrize("damage", [(0, b"this is no database file, but a letter."), (100, b"\xff" * 3000)])
async def test_damaged_database(server, place, damage):
    """A database file with bytes overwritten, or of another kind, is refused and left as it is."""
    await server.start()
    assert await server.stop() == 0
    database = server.data / "internal-transfer.db"
    offset, text = damage
    with database.open("r+b") as file:
        file.seek(offset)
        file.write(text)
    damaged = database.read_bytes()
    said = await refused(place, "--demo")
    assert "the file is damaged; keep it, and restore a copy" in said
    assert database.read_bytes() == damaged


async def test_newer_database(server, place):
    """A database that a newer release wrote is refused rather than misread."""
    await server.start()
    assert await server.stop() == 0
    connection = sqlite3.connect(server.data / "internal-transfer.db")
    with connection:
        connection.execute("UPDATE schema_component SET version = 99 WHERE name = 'trading_core'")
    connection.close()
    assert "written by a newer release" in await refused(place, "--demo")


async def test_unwritable_directory(place):
    """A data directory that the server may not write to is refused, and it says what to give."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv (Debian: apt install util-linux): root may write everywhere, whatever the mode")
    directory = place / "data"
    directory.mkdir(mode=0o500)
    # Root without these capabilities, and everybody else anyway, has to respect the mode.
    words = ["serve", "--data", str(directory), "--port", "0", "--admin-port", "0", "--demo"]
    ran = await run_command(setpriv, "--bounding-set=-dac_override,-dac_read_search", *PROGRAM, *words)
    assert ran.exit_code == 1, ran.errors
    assert f"cannot write to the data directory {directory}: Permission denied" in ran.errors
    assert "give --data a directory that this user may write to" in ran.errors


async def test_failpoint_without_demo(place):
    """A failpoint is a wrong use of a server that is no demonstration."""
    ran = await run_program("serve", "--data", str(place / "data"), "--failpoint", "after_hold")
    assert ran.exit_code == 2
    assert "--demo" in ran.errors
