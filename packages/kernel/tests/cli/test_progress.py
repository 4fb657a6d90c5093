"""What a run shows: calm lines, bars, JSON."""

import io

import pytest
from rich.console import Console

from stillhouse.cli.progress import Bars, Lines, Rate, event_from, json_line, losses
from stillhouse.cli.tables import duration, size
from stillhouse.recipe import Event


def training(steps: int) -> list[Event]:
    return [
        Event(stage="kd-0", done=step, total=steps, scores={"loss": 1 / step, "kd": 0.5})
        for step in range(1, steps + 1)
    ]


def lines(events: list[Event], *, every: float) -> list[str]:
    written: list[str] = []
    display = Lines({}, every=every, write=written.append)
    display.begin("kd-0")
    for event in events:
        display(event)
    return written


def test_lines_are_calm() -> None:
    assert lines(training(4), every=3600) == ["stage kd-0: step 4/4 loss 0.2500"]
    assert len(lines(training(4), every=0)) == 4


def test_lines_tell_every_note_but_checkpoints() -> None:
    notes = [
        Event(stage="kd-0", text="resumed at step 2", done=2, total=4),
        Event(stage="kd-0", text="checkpoint", done=3, total=4),
        Event(stage="kd-0", text="teacher cache of 'teacher', view 0", done=5, total=5),
        Event(stage="kd-0", text="up to date"),
        Event(stage="kd-0", text="the disk is slow"),
    ]
    assert lines(notes, every=3600) == [
        "stage kd-0: resumed at step 2",
        "stage kd-0: teacher cache of 'teacher', view 0 5/5",
        "stage kd-0: skipped: up to date",
        "stage kd-0: the disk is slow",
    ]
    assert lines([Event(stage="kd-0", text="done")], every=0)[0].startswith("stage kd-0: done in ")


def test_losses_are_one_a_phase_or_else_all_scores() -> None:
    assert losses({"loss": 1.0, "kd": 2.0}) == "loss 1.0000"
    assert losses({"d/loss": 1.0, "d/a": 3.0, "g/loss": 2.0}) == "d/loss 1.0000 g/loss 2.0000"
    assert losses({"score": 0.5}) == "score 0.5000"
    assert losses({}) == ""


def test_rate_counts_steps_since_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 30.0, 34.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    rate = Rate({"kd-0": 32})
    first, second = training(2)
    assert rate(Event(stage="kd-0", text="teacher cache", done=500, total=900)) == ""
    assert rate(Event(stage="other", done=1, total=2)) == ""
    assert [rate(first), rate(second)] == ["", "16 samples/s"]
    rate.restart()
    assert [rate(first), rate(second)] == ["", "8 samples/s"]


def test_bars_have_one_line_a_stage() -> None:
    display = Bars({"kd-0": 32})
    with display:
        display.begin("data")
        display(Event(stage="data", text="up to date"))
        display.begin("kd-0")
        display(Event(stage="kd-0", text="resumed at step 2", done=2, total=4))
        for event in training(4)[:3]:
            display(event)
    first, second = display.bars.tasks
    assert (first.finished, first.fields["detail"]) == (True, "skipped: up to date")
    assert (second.completed, second.total) == (3, 4)
    assert str(second.fields["detail"]).startswith("3/4 loss 0.3333")
    display(Event(stage="kd-0", text="done"))
    screen = io.StringIO()
    Console(file=screen, width=120).print(display.bars.get_renderable())
    assert [line.split()[0] for line in screen.getvalue().splitlines()] == ["data", "kd-0"]
    assert "done in " in screen.getvalue()


def test_json_lines_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    event = Event(stage="kd-0", text="a note", done=1, total=2, scores={"loss": 0.5})
    json_line(event)
    assert event_from(capsys.readouterr().out) == event
    assert event_from("a line of something else\n") is None
    assert event_from('{"level": "info"}') is None


def test_durations_and_sizes() -> None:
    times = [duration(t) for t in (8.14, 59.9, 200, 7500)]
    assert times == ["8.1 s", "59.9 s", "3 min 20 s", "2 h 05 min"]
    assert [size(n) for n in (0, 512, 3500, 5 << 20, 3 << 30)] == [
        *("0 B", "512 B", "3.4 KiB", "5.0 MiB", "3.0 GiB")
    ]
