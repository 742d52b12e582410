"""Real servers for tests and local trials: `python -m servers start kafka`, and what --help says."""
# Only the standard library is imported here, so that --help works before anything is installed.

import argparse
import sys

NAMES = ("postgresql", "kafka", "cassandra", "valkey", "tigerbeetle")

COMMANDS = """\
commands:
  start    start the servers and wait until they take connections; they stay until they are stopped
  stop     stop them; their data stay
  status   say which run, and where
  env      print the shell variables that name them, for: eval "$(python -m servers env)"

Programs come from package registries on first use (Kafka and Cassandra need a JDK 17 and Maven); data and programs
are kept in .servers, or in the folder that SERVERS_DIR names.
"""


def main() -> int:
    """Does what the arguments say."""
    parser = argparse.ArgumentParser(
        prog="python -m servers",
        description="Real servers for tests and local trials, from package registries, on loopback.",
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("start", "stop", "status", "env"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; all when none is named")
    parser.add_argument("--secured", action="store_true", help="the instances whose clients need a password")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    try:
        from servers.commands import carry_out  # noqa: PLC0415 - see above.
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{error}: run `make install-dev`, and use .venv/bin/python\n")
        return 1
    return carry_out(arguments.command, arguments.names or list(NAMES), secured=arguments.secured)


if __name__ == "__main__":
    raise SystemExit(main())
