"""What a worker says: lines with times in a file that stays, an outage in one line."""

import io
import traceback
from datetime import UTC, datetime
from pathlib import Path

import pytest

from stillhouse_flows.server import worker


def outage(address: str) -> str:
    """A server that does not answer, as Prefect's worker prints it."""
    import httpx

    with pytest.raises(httpx.ConnectError) as caught:
        httpx.get(address)
    told = "".join(traceback.format_exception(caught.value))
    assert told.count("Traceback") > 1
    lines = ["", "Failed the last 3 attempts. Please check your environment and configuration."]
    lines += ["Examples of recent errors:", "", told, ""]
    return "\n".join([*lines, "Backing off due to consecutive errors, using ...", ""])


def test_an_outage_is_one_line_however_long_it_lasts() -> None:
    text = outage("http://127.0.0.1:9/api")
    lines = f"Worker started!\n{text}{text}Resetting backoff due to successful run.\n".splitlines()
    told = list(worker.condensed(lines))
    assert [line.split(":")[0] for line in told] == [
        "Worker started!",
        "httpx.ConnectError",
        "Resetting backoff due to successful run.",
    ]


def test_a_traceback_at_the_end_is_its_last_line() -> None:
    try:
        raise ExceptionGroup("two", [ValueError("one"), ValueError("other")])
    except ExceptionGroup as error:
        text = "".join(traceback.format_exception(error))
    assert next(worker.condensed(["before", *text.splitlines()])) == "before"
    simple = "Traceback (most recent call last):\n  File x\n    code\nValueError: why\n"
    assert list(worker.condensed(simple.splitlines())) == ["ValueError: why"]


def test_lines_have_their_time_and_are_kept(tmp_path: Path) -> None:
    said: list[str] = []
    file = worker.log_file(tmp_path, "local")
    worker.relay(io.StringIO("one\n\ntwo\ntwo\n"), file, said.append)
    assert file == tmp_path / "logs/worker-local.log"
    assert file.read_text().splitlines() == said
    assert [line.split("  ")[1] for line in said] == ["one", "two"]
    assert datetime.fromisoformat(said[0].split("  ")[0]).tzinfo is not None
    told = worker.stamped("x", datetime(2026, 11, 28, 20, 15, tzinfo=UTC))
    assert datetime.fromisoformat(told.split("  ")[0]) == datetime(2026, 11, 28, 20, 15, tzinfo=UTC)


def test_what_is_served_says_an_outage_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = outage("http://127.0.0.1:9/api")
    with worker.condensing():
        print(f"Prefect's UI:  here\n{text}{text}ended")
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told] == ["Prefect's UI", "httpx.ConnectError", "ended"]
