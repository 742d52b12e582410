import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from internal_transfer.domain.account import Holder
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX
from internal_transfer.domain.rules import Limit, Route
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.ports.ledger import account_flags
from internal_transfer.settings.load import SECRETS, load
from internal_transfer.settings.pins import check_pins, pins
from internal_transfer.settings.settings import fingerprint


@pytest.fixture
def settings_of(tmp_path):
    """Loads a settings file with this text, without an environment."""

    def load_text(text, environment=None):
        path = tmp_path / "settings.toml"
        path.write_text(text)
        return load(path, environment or {})

    return load_text


def test_the_shipped_settings_are_whole():
    """The service starts without a file: thirty assets, five account types, and the default times of the design."""
    settings = load(None, {})
    assert len(settings.rules.assets) == 30
    assert {name: (kind.code, kind.holder, kind.core) for name, kind in settings.rules.account_types.items()} == {
        "funding": (1, Holder.LEDGER, ""),
        "spot": (2, Holder.CORE, "core"),
        "margin": (3, Holder.CORE, "core"),
        "futures": (4, Holder.CORE, "core"),
        "earn": (5, Holder.LEDGER, ""),
    }
    others = ("spot", "margin", "futures", "earn")
    assert settings.rules.routes == {Route("funding", x) for x in others} | {Route(x, "funding") for x in others}
    assert settings.tiers == {"standard", "vip"}
    times = settings.transfers
    assert (times.wait_seconds, times.deadline_seconds) == (0.5, 20)
    assert (times.lease_seconds, times.expiry_seconds, times.core_silence_seconds) == (3, 900, 60)
    assert settings.scanner.interval_seconds == 5
    assert (settings.retries.first_seconds, settings.retries.longest_seconds) == (1, 300)
    assert (settings.alerts.stuck_seconds, settings.alerts.alert_seconds) == (60, 1800)
    assert settings.alerts.critical_seconds == 7200
    assert (settings.rate_limit.per_minute, settings.rate_limit.burst) == (60, 60)
    assert settings.issuers == ()


@pytest.mark.parametrize(
    ("code", "scale", "precision"),
    [("BTC", 8, 8), ("ETH", 18, 8), ("USDT", 6, 6), ("SOL", 9, 9), ("XRP", 6, 6), ("EUR", 2, 2), ("JPY", 0, 0)],
)
def test_the_shipped_assets_have_their_real_scales(code, scale, precision):
    """The ledger holds as many places of an asset as the asset has."""
    asset = load(None, {}).rules.assets[code]
    assert (asset.scale, asset.precision) == (scale, precision)


def test_every_shipped_asset_has_limits_in_every_tier():
    """No shipped asset is offered without limits, and the documented figures of USDT are the shipped ones."""
    settings = load(None, {})
    for tier in settings.tiers:
        assert settings.rules.limits[tier].keys() == settings.rules.assets.keys()
    assert settings.rules.limits["standard"]["USDT"] == Limit(10_000, 10**12, 10**13)


def test_the_documented_example_is_accepted(settings_of, tmp_path):
    """The example of the documentation starts, and its lists replace the shipped lists."""
    (tmp_path / "keys.json").write_text('{"keys": []}')
    settings = settings_of("""
        [assets.USDT]
        number = 1
        scale = 6
        precision = 6
        [account_types.funding]
        code = 1
        holder = "ledger"
        [account_types.spot]
        code = 2
        holder = "core"
        [[routes]]
        from = "funding"
        to = "spot"
        [tiers.standard.limits.USDT]
        min = "0.01"
        max = "1000000"
        daily = "10000000"
        [rate_limit]
        per_minute = 60
        burst = 60
        [[issuers]]
        issuer = "https://id.example.com"
        audience = "internal-transfer"
        keys_file = "keys.json"
    """)
    assert settings.rules.routes == {Route("funding", "spot")}
    assert settings.issuers[0].issuer == "https://id.example.com"
    assert Path(settings.issuers[0].keys_file) == tmp_path / "keys.json"


def test_tables_merge_key_by_key(settings_of):
    """A file needs only the keys that differ: one key of one asset changes, everything else stays as shipped."""
    settings = settings_of('[assets.USDT]\nclosed = true\n[tiers.vip.limits.BTC]\nmin = "0.5"')
    shipped = load(None, {})
    assert settings.rules.assets["USDT"].closed
    assert settings.rules.assets["USDT"].scale == 6
    assert settings.rules.assets["BTC"] == shipped.rules.assets["BTC"]
    assert settings.rules.limits["vip"]["BTC"].min_units == 50_000_000
    assert settings.rules.limits["vip"]["BTC"].max_units == shipped.rules.limits["vip"]["BTC"].max_units
    assert settings.rules.routes == shipped.rules.routes


def test_own_numbers_without_the_shipped_assets(settings_of):
    """With `shipped_assets = false` only the file's assets exist, so its numbers cannot collide."""
    settings = settings_of("""
        shipped_assets = false
        [assets.GOLD]
        number = 1
        scale = 4
        precision = 2
        [tiers.standard.limits.GOLD]
        min = "0.01"
        max = "5"
        daily = "5"
    """)
    assert list(settings.rules.assets) == ["GOLD"]
    assert settings.rules.limits == {"standard": {"GOLD": Limit(100, 50_000, 50_000)}}


def test_sub_accounts_are_by_master(settings_of):
    """A master may name its sub-accounts."""
    settings = settings_of('[[sub_accounts]]\nmaster = "42"\nsubs = ["42.a", "42.b"]')
    assert settings.rules.sub_accounts == {"42": frozenset({"42.a", "42.b"})}


ASSET = "[assets.NEW]\nnumber = 100\nscale = 6\nprecision = 6\n"
LIMIT = "[tiers.standard.limits.USDT]\n"

WRONG = [
    ("colour = 1", "colour: is not a setting"),
    ("[server]\ncolour = 1", "server.colour: is not a setting; the shipped defaults.toml has all of them"),
    ("[sever]\nhttp_workers = 1", "sever: is not a setting; did you mean 'server'?"),
    ("[assets.USDT]\nsclae = 1", "assets.USDT.sclae: is not a setting; did you mean 'scale'?"),
    ('[[routes]]\nform = "spot"\nto = "earn"', "routes[0].form: is not a setting; did you mean 'from'?"),
    ("[rate_limit]\nshipped_assets = false", "rate_limit.shipped_assets: belongs at the top of the file"),
    ("[assets]\nshipped_assets = false", "assets.shipped_assets: belongs at the top of the file"),
    (
        '[[routes]]\nfrom = "spot"\nto = "earn"\nshipped_assets = false',
        "routes[0].shipped_assets: belongs at the top of the file, above the first table",
    ),
    ("[assets.USDT]\ncolour = 1", "assets.USDT.colour: is not a setting"),
    ("[assets.NEW]\nnumber = 100\nscale = 6", "assets.NEW.precision: must be given"),
    ("[assets.USDT]\nscale = 31", "assets.USDT.scale: must be a whole number <= 30"),
    ("[assets.USDT]\nscale = -1", "assets.USDT.scale: must be a whole number >= 0"),
    ('[assets.USDT]\nscale = "6"', "assets.USDT.scale: must be a whole number, not text in quotes"),
    ("[assets.USDT]\nscale = true", "assets.USDT.scale: must be a whole number, not true or false"),
    ("[assets.USDT]\nscale = 6.0", "assets.USDT.scale: must be a whole number, not a number"),
    ("[assets.USDT]\nclosed = 1", "assets.USDT.closed: must be true or false, not a whole number"),
    ("[assets.USDT]\nprecision = 7", "assets.USDT.precision: must be at most the scale (6)"),
    ("[assets.USDT]\nnumber = 0", "assets.USDT.number: must be a whole number >= 1"),
    ("[assets.USDT]\nnumber = 4294967296", "assets.USDT.number: must be a whole number <= 4294967295"),
    ("[assets.USDT]\nnumber = 3", "assets.BTC.number: must be unique: 3 is already USDT's"),
    ("[assets.usdt]\nnumber = 100", "assets.usdt: must be named by"),
    ("assets = 1", "assets: must be a table"),
    ("assets.USDT = 1", "assets.USDT: must be a table"),
    ("assets.NEW = 1", "assets.NEW: must be a table, not a whole number"),
    ("[account_types.earn]\ncode = 1", "account_types.earn.code: must be unique: 1 is already funding's"),
    ("[account_types.earn]\ncode = 65000", "account_types.earn.code: must be a whole number <= 64999"),
    ('[account_types.earn]\nholder = "bank"', 'account_types.earn.holder: must be "ledger" or "core"'),
    ('[account_types.earn]\ncore = "core"', "account_types.earn.core: must be left out"),
    ('[account_types.spot]\ncore = "No Name"', "account_types.spot.core: must be text in quotes matching regex"),
    ('[account_types.Spot]\ncode = 9\nholder = "core"', "account_types.Spot: must be named by"),
    ('[[routes]]\nfrom = "funding"\nto = "moon"', "routes[0].to: must be an account type; 'moon' is not one"),
    ('[[routes]]\nfrom = "moon"\nto = "funding"', "routes[0].from: must be an account type; 'moon' is not one"),
    ('[[routes]]\nfrom = "spot"\nto = "spot"', "routes[0].to: must differ from `from`"),
    ('[[routes]]\nfrom = "spot"\nto = "earn"\n' * 2, "routes[1]: must not repeat the route from spot to earn"),
    ('[[routes]]\nfrom = "spot"', "routes[0].to: must be given"),
    ("routes = 1", "routes: must be a list, not a whole number"),
    (LIMIT + "min = 1", "tiers.standard.limits.USDT.min: must be text in quotes, not a whole number"),
    (LIMIT + 'min = "1_000"', "tiers.standard.limits.USDT.min: must be a decimal string"),
    (LIMIT + 'min = "0"', "tiers.standard.limits.USDT.min: must be more than zero"),
    (LIMIT + 'min = "0.0000001"', "tiers.standard.limits.USDT.min: must have at most 6 decimal places"),
    (LIMIT + 'min = "2000000"', "tiers.standard.limits.USDT.max: must be at least min (2000000)"),
    (LIMIT + 'daily = "5"', "tiers.standard.limits.USDT.daily: must be at least max (1000000)"),
    (
        LIMIT + f'daily = "{AMOUNT_UNITS_MAX}"',
        "tiers.standard.limits.USDT.daily: must be more than zero and less than 2^112",
    ),
    ('[tiers.standard.limits.MOON]\nmin = "1"', "tiers.standard.limits.MOON: must be an asset in [assets]"),
    ("[tiers.Gold]\nlimits = {}", "tiers.Gold: must be named by"),
    ("[tiers.gold]\ncolour = 1", "tiers.gold.colour: is not a setting"),
    ("[tiers.gold]\nlimits = 1", "tiers.gold.limits: must be a table, not a whole number"),
    ("[transfers]\nwait_seconds = nan", "transfers.wait_seconds: must be a number >= 0.0"),
    ("[transfers]\nexpiry_seconds = nan", "transfers.expiry_seconds: must be a number > 0.0"),
    ("[transfers]\nexpiry_seconds = inf", "transfers.expiry_seconds: must be a number <= 31536000"),
    ("[transfers]\nexpiry_seconds = 0", "transfers.expiry_seconds: must be a number > 0"),
    ("[transfers]\nbatch_max = 2001", "transfers.batch_max: must be a whole number <= 2000"),
    ("[retries]\nfirst_seconds = 301", "retries.longest_seconds: must be at least first_seconds (301.0)"),
    ("[alerts]\nstuck_seconds = 1801", "alerts.alert_seconds: must be at least stuck_seconds (1801.0)"),
    ("[alerts]\nalert_seconds = 7201", "alerts.critical_seconds: must be at least alert_seconds (7201.0)"),
    ("[rate_limit]\nper_minute = 0", "rate_limit.per_minute: must be a whole number >= 1"),
    ('[[issuers]]\nissuer = "x"\nkeys_file = "no.json"', "issuers[0].keys_file: must be a file"),
    ('[[issuers]]\nissuer = "x"\nkeys_file = "settings.toml"\n' * 2, "issuers[1].issuer: must not repeat 'x'"),
    (
        '[[issuers]]\nissuer = ""\nkeys_file = "settings.toml"',
        "issuers[0].issuer: must be text in quotes of length >= 1",
    ),
    ('[[sub_accounts]]\nmaster = "a b"\nsubs = ["c"]', "sub_accounts[0].master: must be 1 to 64 of"),
    ('[[sub_accounts]]\nmaster = "a"\nsubs = ["b c"]', "sub_accounts[0].subs: must be 1 to 64 of"),
    ('[[sub_accounts]]\nmaster = "a"\nsubs = []', "sub_accounts[0].subs: must be a list of length >= 1"),
    (
        '[[sub_accounts]]\nmaster = "a"\nsubs = [1]',
        "sub_accounts[0].subs[0]: must be text in quotes, not a whole number",
    ),
    ('[[sub_accounts]]\nmaster = "a"\nsubs = ["a"]', "sub_accounts[0].subs: must not name the master"),
    (
        '[[sub_accounts]]\nmaster = "a"\nsubs = ["b", "b"]',
        "sub_accounts[0].subs: must not repeat 'b', a sub-account of 'a'",
    ),
    (
        '[[sub_accounts]]\nmaster = "a"\nsubs = ["b"]\n[[sub_accounts]]\nmaster = "a"\nsubs = ["c"]',
        "sub_accounts[1].master: must not repeat 'a'",
    ),
    ("this is not TOML", "cannot be read as TOML"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_setting_stops_the_start_and_names_its_key(settings_of, text, message):
    """Each wrong value is refused with the path of its key and what it must be."""
    with pytest.raises(StartRefusedError) as refused:
        settings_of(text)
    assert message in str(refused.value)


def test_a_missing_or_unreadable_file_is_refused(tmp_path):
    """A file that is not there, is a directory or is not UTF-8 is named in the refusal."""
    (tmp_path / "latin").write_bytes(b'x = "\xe9"')
    for path in (tmp_path / "none", tmp_path, tmp_path / "latin"):
        with pytest.raises(StartRefusedError, match="cannot be read as TOML") as refused:
            load(path, {})
        assert str(path) in str(refused.value)


def test_secrets_come_from_the_environment_and_are_never_shown(settings_of):
    """Every listed variable is read; none of the values shows in the representation of the settings."""
    environment = {name: f"hidden-{number}" for number, name in enumerate(SECRETS)} | {"PATH": "ignored"}
    secrets = settings_of("", environment).secrets
    assert [secrets.postgres_url, secrets.redis_url, secrets.kafka_password, secrets.cql_password] == [
        "hidden-0",
        "hidden-1",
        "hidden-2",
        "hidden-3",
    ]
    assert repr(secrets) == "Secrets(postgres_url, redis_url, kafka_password, cql_password)"
    assert "hidden" not in repr(settings_of("", environment))


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("INTERNAL_TRANSFER_POSTGRESS_URL", "x", "is not read; these are"),
        ("INTERNAL_TRANSFER_REDIS_URL", " ", "must not be empty"),
    ],
)
def test_a_slip_in_the_environment_stops_the_start(name, value, rule):
    """An unknown variable with our prefix, or an empty secret, is refused and not ignored."""
    with pytest.raises(StartRefusedError, match=f"^{name}: {rule}"):
        load(None, {name: value})


def test_what_is_pinned():
    """Numbers, scales, codes, holders, cores and flags are pinned, numbers and codes in both directions."""
    pinned = pins(load(None, {}))
    assert len(pinned) == 30 * 3 + 5 * 5
    assert pinned["assets.ETH.number"] == "4"
    assert pinned["assets.ETH.scale"] == "18"
    assert pinned["numbers.4"] == "ETH"
    assert {key: value for key, value in pinned.items() if key.startswith("account_types.spot.")} == {
        "account_types.spot.code": "2",
        "account_types.spot.holder": "core",
        "account_types.spot.core": "core",
        "account_types.spot.flags": "0",
    }
    assert pinned["account_types.funding.flags"] == "2"
    assert pinned["account_types.funding.core"] == ""
    assert pinned["codes.2"] == "spot"


def test_only_ledger_held_accounts_have_a_limit():
    """A ledger-held account may not go below zero; the mirror of a core-held one may."""
    kinds = load(None, {}).rules.account_types
    assert account_flags(kinds["funding"]) == 2
    assert account_flags(kinds["spot"]) == 0


def test_a_value_pinned_otherwise_stops_the_start():
    """The refusal names every key with its value in the settings and its first value."""
    wanted = pins(load(None, {}))
    check_pins(wanted, {})
    check_pins(wanted, wanted | {"directory.kind": "real"})
    with pytest.raises(StartRefusedError) as refused:
        check_pins(wanted, wanted | {"assets.USDT.scale": "8", "numbers.4": "ETC"})
    assert str(refused.value) == (
        "assets.USDT.scale: is '6' in the settings, but was '8' when first used: put the old value back; "
        "numbers.4: is 'ETH' in the settings, but was 'ETC' when first used: put the old value back"
    )


def test_another_holder_is_named_alone(settings_of):
    """Core and flags of an account type follow from its holder, so they are not named as well."""
    wanted = pins(settings_of('[account_types.spot]\nholder = "ledger"\n'))
    with pytest.raises(StartRefusedError) as refused:
        check_pins(wanted, pins(load(None, {})))
    assert str(refused.value) == (
        "account_types.spot.holder: is 'ledger' in the settings, but was 'core' when first used: put the old value back"
    )


def test_what_was_pinned_and_is_missing_stops_the_start(settings_of):
    """An asset or account type that was used and is missing now is named, with the way to retire it."""
    wanted = pins(load(None, {}))
    with pytest.raises(StartRefusedError) as refused:
        check_pins(wanted, wanted | pins(settings_of('[assets."X.Y"]\nnumber = 99\nscale = 2\nprecision = 2\n')))
    assert str(refused.value) == (
        "assets.X.Y: missing from the settings, but in use before: restore it, with `closed = true` where retired"
    )
    with pytest.raises(StartRefusedError, match=r"account_types\.vault, assets\.OLD: .* restore them"):
        check_pins(
            wanted, wanted | {"assets.OLD.number": "9", "assets.OLD.scale": "2", "account_types.vault.code": "7"}
        )


def test_what_is_retired_is_not_missing(settings_of):
    """`closed = true` changes nothing that is pinned."""
    check_pins(pins(settings_of("[assets.ADA]\nclosed = true\n")), pins(load(None, {})))


def test_the_fingerprint_tells_settings_apart(settings_of, tmp_path, monkeypatch):
    """Equal settings have one fingerprint, wherever they were read and whatever the secrets; others have another."""
    (tmp_path / "keys.json").touch()
    text = '[[issuers]]\nissuer = "x"\nkeys_file = "keys.json"\n'
    first = fingerprint(settings_of(text, {"INTERNAL_TRANSFER_REDIS_URL": "secret"}))
    assert first == fingerprint(settings_of(text))
    monkeypatch.chdir(tmp_path)
    assert first == fingerprint(load(Path("settings.toml"), {}))
    assert first != fingerprint(settings_of(text + "[rate_limit]\nburst = 7\n"))


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_fingerprint_is_the_same_in_every_process(seed):
    """The order of sets, which differs from process to process, does not change the fingerprint."""
    program = (
        "from internal_transfer.settings.load import load\n"
        "from internal_transfer.settings.settings import fingerprint\n"
        "print(fingerprint(load(None, {})))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == fingerprint(load(None, {}))


def test_the_shipped_file_tells_every_section():
    """Every key of the shipped file is a setting, so that it can serve as the reference."""
    shipped = tomllib.loads((Path(load.__code__.co_filename).parent / "defaults.toml").read_text())
    assert set(shipped) == {
        "server",
        "transfers",
        "scanner",
        "retries",
        "alerts",
        "bounds",
        "rate_limit",
        "systems",
        "postgresql",
        "cassandra",
        "tigerbeetle",
        "ledger_socket",
        "kafka",
        "aeron",
        "valkey",
        "account_types",
        "routes",
        "assets",
        "tiers",
    }
