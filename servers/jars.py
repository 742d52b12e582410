"""Servers that are published as jars on Maven Central, and the Java that runs them."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from servers import place, process
from servers.trouble import FailedError, Missing

_POM = Path(__file__).with_name("pom.xml")
_DOWNLOAD_SECONDS = 300


def library(name: str) -> Path:
    """The folder with the jars of a profile of `pom.xml`, downloaded by Maven when they are not there yet.

    Raises:
        Missing: Maven is not here, or could not get them.
    """
    stamp = _POM.stat().st_mtime_ns
    folder = place.root() / "libs" / name
    marker = folder / ".complete"
    with place.locked(f"libs-{name}"):
        if marker.exists() and marker.read_text(encoding="utf-8") == f"{stamp}":
            return folder
        maven = shutil.which("mvn")
        if maven is None:
            raise Missing(f"{name} is fetched by Maven, which is not here: install it (on Debian, apt install maven)")
        shutil.rmtree(folder, ignore_errors=True)
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
        try:
            process.run([maven, "-q", "-B", "-f", f"{_POM}", f"-P{name}", *goal], seconds=_DOWNLOAD_SECONDS)
        except FailedError as error:
            raise Missing(f"Maven could not get the jars of {name}: {error}") from error
        marker.write_text(f"{stamp}", encoding="utf-8")
        return folder


def java(*, least: int, most: int) -> str:
    """A `java` whose version lies in the range: of JAVA_HOME, on PATH, or where Debian puts it.

    Raises:
        Missing: there is none.
    """
    seen: list[str] = []
    for program in _candidates():
        answer = process.run([program, "-version"], seconds=20)
        version = re.search(r'version "(\d+)', answer)
        if version is not None and least <= int(version[1]) <= most:
            return program
        seen.append(f"{program} is {answer.splitlines()[0] if answer else 'silent'}")
    wanted = f"{least}" if least == most else f"{least} to {most}"
    raise Missing(
        f"Java {wanted} is needed (JAVA_HOME, PATH, or on Debian apt install openjdk-{least}-jre-headless); {seen}"
    )


def _candidates() -> Iterator[str]:
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin/java").exists():
        yield f"{home}/bin/java"
    on_path = shutil.which("java")
    if on_path is not None:
        yield on_path
    for installed in sorted(Path("/usr/lib/jvm").glob("*/bin/java")):
        yield str(installed)
