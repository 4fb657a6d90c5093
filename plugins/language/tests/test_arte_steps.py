"""The steps of ARTE: prompts and answers, reading, drafting, preferences, pairs, tailored data."""

import gzip
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from stillhouse.artifact import Built, Model
from stillhouse.data.data import TensorData
from stillhouse.data.notes import noted
from stillhouse.errors import BadData, BadSetting, MissingData
from stillhouse.recipe import Context
from stillhouse.work import Work
from stillhouse_language.arte.answering import Answering, Student
from stillhouse_language.arte.arithmetic import STYLES, TASK, questions, styles_of, total
from stillhouse_language.arte.corpora import answered, known_texts
from stillhouse_language.arte.drafting import (
    Elicit,
    ModelWriter,
    TakeDrafts,
    draft_columns,
    draft_row,
    new_questions,
)
from stillhouse_language.arte.endpoint import Endpoint
from stillhouse_language.arte.pairing import BuildPairs
from stillhouse_language.arte.preferring import ChooseItems, CollectPreferences
from stillhouse_language.arte.published import read_jsonl
from stillhouse_language.arte.reading import ReadTasks
from stillhouse_language.arte.tailoring import ChooseExamples, PickDrafts, WriteExamples
from stillhouse_language.arte.tasks import (
    parse_answer,
    parse_questions,
    response,
    same_answer,
    task_columns,
    tasks_of,
)
from stillhouse_language.arte.vocabulary import word_tokenizer
from stillhouse_language.causal.generation import Sampling
from stillhouse_language.causal.loading import tokenizer_files
from stillhouse_language.causal.model import causal_lm
from stillhouse_language.causal.tokens import ASSET

COUNTS = {"seeds": 3, "validation": 8, "test": 8, "pool": 20}


@pytest.mark.parametrize(
    ("given", "wanted", "same"),
    [
        ("A", "(A)", True), ("(a)", "A", True), ("(A) bank", "A", False), ("B", "A", False),
        ("1,000", "1000", True), ("$18", "18", True), ("18.0", "18", True), ("Yes.", "yes", True),
        ("", "", False), (" 7 ", "7", True), ("-3", "3", False),
    ],
)  # fmt: skip
def test_answers_are_compared_by_what_they_say(given: str, wanted: str, same: bool) -> None:
    assert same_answer(given, wanted) is same


def test_the_answer_is_what_stands_in_the_first_tag() -> None:
    assert parse_answer("so it is <ans> 7 </ans> and <ans>8</ans>") == "7"
    assert parse_answer("no tag: 7") == parse_answer("<ans></ans>") == parse_answer("<ans>7") == ""


def test_an_empty_answer_tag_is_refused() -> None:
    with pytest.raises(BadData, match="answer tag is empty"):
        response("because", " ")


def test_questions_are_read_where_they_are_whole() -> None:
    text = (
        "<Question_1><input>1+2</input><target>3</target></Question_1> noise "
        "<Question_2><input></input><target>3</target></Question_2>"
        "<Question_3><input>2+2</input><target>4</target>"
    )
    assert parse_questions(text) == [("1+2", "3")]


def test_one_prompt_serves_scoring_tuning_and_testing() -> None:
    shown = TASK.example("1+2+3+0", answered("1+2+3+0", "steps"))
    assert TASK.naive("3+3+3+3") == TASK.opening() + TASK.item("3+3+3+3")
    assert shown.startswith(TASK.naive("1+2+3+0"))


def test_rationales_of_the_built_in_task_lead_to_its_answers() -> None:
    rng = torch.Generator().manual_seed(0)
    for question in questions(40, rng):
        for style in STYLES:
            text = answered(question, style)
            assert parse_answer(text) == str(total(question))
        made = [answered(question, style) for style in ("easy", "restated", "steps")]
        assert styles_of(made, [question] * 3) == ["easy", "restated", "steps"]
    assert total("3+2+1+3") == 1
    assert STYLES["steps"]("3+2+1+3") == "3+2=1 1+1=2 2+3=1"
    assert STYLES["backwards"]("3+2+1+0") == "0+1=1 1+2=3 3+3=2"


def read(**changes: Any) -> dict[str, TensorData]:
    make = ReadTasks(tasks=("arithmetic",), counts=COUNTS | changes)
    return {name: TensorData(c) for name, c in make({}, work=Work.seeded(1)).items()}


def test_no_question_is_in_two_parts() -> None:
    parts = read()
    every = [q for part in COUNTS for q in parts[part].columns["question"]]  # pyright: ignore
    assert len(every) == len(set(every)) == sum(COUNTS.values())


def write_task(folder: Path, rows: Sequence[Mapping[str, Any]], **task: Any) -> Path:
    own = folder / "own"
    own.mkdir(parents=True, exist_ok=True)
    given = {"name": "own", "description": "Say it.", "styles": {"a": "Do a.", "b": "Do b."}}
    (own / "task.json").write_text(json.dumps(given | task))
    for part in ("train", "test"):
        lines = [json.dumps({**row, "question": f"{part} {row['question']}"}) for row in rows]
        (own / f"{part}.jsonl").write_text("\n".join(lines))
    return folder


OWN = [
    {"question": f"q{n}", "answer": f"{n}", "candidates": {"a": "x", "b": "y"}} for n in range(9)
]
FEW = {"seeds": 2, "validation": 2, "test": 3, "pool": 4}


def read_own(folder: Path) -> dict[str, TensorData]:
    make = ReadTasks(tasks=("own",), counts=FEW)
    found = make({"source": folder}, work=Work.seeded(0))
    return {name: TensorData(columns) for name, columns in found.items()}


def test_a_users_own_task_is_read(tmp_path: Path) -> None:
    parts = read_own(write_task(tmp_path, OWN))
    assert tasks_of(parts["tasks"])["own"].styles == {"a": "Do a.", "b": "Do b."}
    assert {name: len(parts[name]) for name in FEW} == FEW
    assert all(q.startswith("test") for q in parts["test"].columns["question"])  # pyright: ignore


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer": " "}, "question or answer is empty"),
        (
            {"candidates": {"a": "so <ans></ans>", "b": "y"}},
            "candidate 'a' has an empty answer tag",
        ),
        ({"candidates": ["x"]}, "candidates must map"),
    ],
)
def test_a_bad_row_is_one_line_with_its_place(
    tmp_path: Path, row: Mapping[str, Any], reason: str
) -> None:
    with pytest.raises(BadData, match=reason) as error:
        read_own(write_task(tmp_path, [*OWN[:4], {**OWN[4], **row}]))
    assert "train.jsonl, line 5" in str(error.value)


def test_published_tasks_are_read_as_they_are_published(tmp_path: Path) -> None:
    row = {
        "question": "Sum?", "answer": "He has 2+3=<<2+3=5>>5.\nThen 5*2=<<5*2=10>>10.\n#### 1,010",
    }  # fmt: skip
    rows = [json.dumps({**row, "question": f"Sum {n}?"}) for n in range(12)]
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    (folder / "train.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    (folder / "test.jsonl").write_text("\n".join(rows[:4]))
    make = ReadTasks(tasks=("gsm8k",), counts=FEW)
    found = make({"source": tmp_path}, work=Work.seeded(0))
    assert found["pool"]["answer"] == ["1010"] * 4
    assert json.loads(found["pool"]["candidates"][0]) == {  # pyright: ignore
        "answer": "", "whole": "He has 2+3=5. Then 5*2=10.", "equations": "2+3=5, 5*2=10",
        "last": "Then 5*2=10.",
    }  # fmt: skip
    tested = set(found["test"]["question"])  # pyright: ignore
    assert not tested & {q for p in ("seeds", "validation", "pool") for q in found[p]["question"]}  # pyright: ignore


def test_a_line_of_a_file_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    """JSON leaves a line separator in a text as it is; GSM8K's training questions have two."""
    file = tmp_path / "train.jsonl"
    rows = [{"question": f"one\u2028two\x85{n}"} for n in range(2)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_bytes("\r\n".join(lines).encode())
    assert list(read_jsonl(file)) == [(1, rows[0]), (2, rows[1])]


def test_missing_data_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"neither .*task.json nor one of commonsenseqa"):
        read_own(tmp_path)
    with pytest.raises(BadSetting, match="--set data=data:language"):
        ReadTasks(tasks=("gsm8k",), counts=FEW)({}, work=Work.seeded(0))


class Writes:
    """A writer that gives fixed texts, and counts prompts."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.prompts = texts, list[str]()

    def write(self, prompts: Sequence[str], *, sampling: Sampling, rng: Generator) -> list[str]:
        found = [self.texts[(len(self.prompts) + n) % len(self.texts)] for n in range(len(prompts))]
        self.prompts += prompts
        return found


def listed(*sums: str) -> str:
    return "".join(
        f"<Question_{n}><input>{s}</input><target>{total(s)}</target></Question_{n}>"
        for n, s in enumerate(sums, 1)
    )


def test_new_questions_are_none_of_the_test() -> None:
    writer = Writes(listed("1+1+1+1", "2+2+2+2"), listed("2+2+2+2", "3+3+3+3", "0+0+0+1"))
    how = Elicit(questions=3, per_prompt=2, prompts=2)
    notes = list[str]()
    with noted(notes.append):
        found = new_questions(
            how, writer, TASK, [("1+2+3+0", "2")], {"3 + 3 + 3 + 3"}, Work.seeded(0), of=how
        )
    assert [q for q, _ in found] == ["1+1+1+1", "2+2+2+2", "0+0+0+1"]
    assert "2 of 5 written questions were left out" in notes[0]
    assert "1+2+3+0" in writer.prompts[0]


def test_a_teacher_that_does_not_keep_to_the_form_is_one_line() -> None:
    how = Elicit(questions=3, rounds=2, prompts=2)
    with pytest.raises(BadData, match="0 new questions after 4 prompts, 3 requested"):
        new_questions(how, Writes("hello"), TASK, [], set(), Work.seeded(0), of=how)


def small(folder: Path, seed: int = 0) -> Built:
    read = word_tokenizer(known_texts())
    config = {
        "model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 256,
        "vocab_size": len(read.inner), "bos_token_id": None, "eos_token_id": read.end,
        "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(seed)
    module = causal_lm(config).eval()
    files = tokenizer_files(read, folder / f"{seed}")
    spec = Model(build=causal_lm, kwargs={"config": config})
    return Built(spec=spec, module=module, assets={ASSET: files})


def grid(count: int = 8, items: int = 4) -> TensorData:
    """Preferences of drafts whose style decides: steps are right always, easy never."""
    rows = list[dict[str, Any]]()
    sums = questions(count, torch.Generator().manual_seed(3))
    for number, question in enumerate(sums):
        for style in STYLES:
            text = answered(question, style)
            rows.append(draft_row(TASK, number, question, str(total(question)), style, text))
    order = [*STYLES]
    share = torch.tensor([(len(order) - order.index(row["style"])) / 4 for row in rows])
    # later questions are worse
    share = share * torch.tensor([1 - 0.05 * row["question_id"] for row in rows])
    correct = share[:, None].expand(-1, items).double()
    return TensorData(
        {**draft_columns(rows), "correct": correct, "likelihood": correct.clamp_min(1e-3).log()}
    )


def inputs(tmp_path: Path) -> dict[str, Any]:
    student = small(tmp_path)
    return {**read(), "preferences": grid(), "student": student, "reference": student}


def test_pairs_prefer_the_best_style_under_the_naive_prompt(tmp_path: Path) -> None:
    given, built = inputs(tmp_path), small(tmp_path)
    make = BuildPairs(question_pairs=2, held_out=0.2)
    found = make(given, work=Work.seeded(0))
    reverse = replace(make, reverse=True)(given, work=Work.seeded(0))
    assert {len(found[p]["chosen.reference"]) for p in ("train", "held_out")} == {8, 2}
    reader = ModelWriter.of(built, "cpu", where="x").tokenizer

    def texts(columns: Mapping[str, Any], side: str) -> list[str]:
        column = columns[side]
        return [
            reader.text(column.values[a:b].tolist())
            for a, b in zip(column.offsets[:-1].tolist(), column.offsets[1:].tolist(), strict=True)
        ]

    chosen, rejected = texts(found["train"], "chosen"), texts(found["train"], "rejected")
    rationales = [pair for pair in zip(chosen, rejected, strict=True) if "Question_" not in pair[0]]
    assert rationales
    for one, other in rationales:
        question = one.partition("\n")[0]
        assert one == TASK.naive(question) + answered(question, "steps")
        assert other == TASK.naive(question) + answered(question, "easy")
    assert texts(reverse["train"], "chosen") == rejected
    swapped, given_first = (
        reverse["train"]["chosen.reference"],
        found["train"]["rejected.reference"],
    )
    assert isinstance(swapped, Tensor)
    assert isinstance(given_first, Tensor)
    assert torch.equal(swapped, given_first)


def test_pairs_that_do_not_fit_are_counted_aloud(tmp_path: Path) -> None:
    """trl's trainer drops them without a word (test_arte_objectives)."""
    given, notes = inputs(tmp_path), list[str]()
    with noted(notes.append):
        BuildPairs(question_pairs=2, longest=60)(given, work=Work.seeded(0))
    assert notes == ["pairs: 2 of 10 left out, longer than 60 tokens"]
    with pytest.raises(BadData, match="0 of 10 are left to align by"):
        BuildPairs(question_pairs=2, longest=5)(given, work=Work.seeded(0))


def test_wrong_rationales_can_be_left_out_of_pairs(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    columns = {**given["preferences"].columns}
    styles = columns["style"]
    columns["right"] = torch.tensor([style != "steps" for style in styles])  # pyright: ignore
    given["preferences"] = TensorData(columns)
    make = BuildPairs(question_pairs=0, filter_wrong=True, held_out=0.1)
    found = make(given, work=Work.seeded(0))
    kept = make(inputs(tmp_path), work=Work.seeded(0))
    assert not torch.equal(found["train"]["chosen"].values, kept["train"]["chosen"].values)  # pyright: ignore


@pytest.mark.parametrize(("pick", "style"), [("best", "steps"), ("worst", "easy")])
def test_picked_drafts_are_the_best_or_the_worst(tmp_path: Path, pick: Any, style: str) -> None:
    found = PickDrafts(pick=pick)(inputs(tmp_path), work=Work.seeded(0))["train"]
    assert found["style"] == [style] * 8
    assert found["response"][0] == answered(found["question"][0], style)  # pyright: ignore
    drawn = PickDrafts(pick="random")(inputs(tmp_path), work=Work.seeded(0))["train"]["style"]
    assert len(set(drawn)) > 1  # pyright: ignore


def test_items_and_preferences_are_measured_and_kept(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    ctx = Context(
        stage="x",
        out=tmp_path / "out",
        checkpoints=tmp_path / "checkpoints",
        caches=tmp_path / "caches",
        digests={"student": "abc"},
    )
    how = Answering(mode="generate", longest=24)
    items = ChooseItems(count=3, models=("student",), shots=(0, 1), draws=2, answering=how)
    made = items(given, work=Work.of(ctx, 0))
    assert len(made["items"]["question"]) == 3
    assert len(made["subjects"]["subject"]) == 3  # none, and one example twice
    given["items"] = TensorData(made["items"])
    given["drafts"] = grid(4)
    collect = CollectPreferences(answering=how)
    found = collect(given, work=Work.of(ctx, 0))["preferences"]
    assert found["correct"].shape == found["likelihood"].shape == (16, 3)  # pyright: ignore
    kept = [*(tmp_path / "caches" / "arte-answers" / "abc").iterdir()]
    assert len(kept) == 16 + 3
    # another stage of the same model asks the model for nothing
    other = replace(ctx, checkpoints=tmp_path / "elsewhere")
    given["student"] = replace(given["student"], module=small(tmp_path, seed=5).module)
    again = collect(given, work=Work.of(other, 0))["preferences"]
    assert torch.equal(again["likelihood"], found["likelihood"])  # pyright: ignore
    third = replace(ctx, checkpoints=tmp_path / "third", digests={"student": "d"})
    fresh = collect(given, work=Work.of(third, 0))
    assert not torch.equal(fresh["preferences"]["likelihood"], found["likelihood"])  # pyright: ignore


class DiesError(Exception):
    """A kill."""


def test_killed_scoring_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(tmp_path)
    given["drafts"] = grid(3)
    given["items"] = given["validation"]
    collect = CollectPreferences(answering=Answering(mode="generate", longest=12))
    ctx = Context(stage="x", out=tmp_path, checkpoints=tmp_path / "a", caches=tmp_path / "none")
    whole = collect(given, work=Work.of(ctx, 0))["preferences"]
    prompts, answers = list[str](), Answering.answers

    def dying(self: Answering, student: Any, task: Any, before: str, items: Any) -> Any:
        if len(prompts) == 9:
            raise DiesError
        prompts.append(before)
        return answers(self, student, task, before, items)

    monkeypatch.setattr(Answering, "answers", dying)
    again = Work.of(replace(ctx, checkpoints=tmp_path / "b"), 0)
    with pytest.raises(DiesError):
        collect(given, work=again)
    prompts.clear()
    resumed = collect(given, work=again)["preferences"]
    assert len(prompts) == 4  # of 12 drafts, four a part: two parts were kept
    for name in ("correct", "likelihood"):
        one, other = resumed[name], whole[name]
        assert isinstance(one, Tensor)
        assert isinstance(other, Tensor)
        assert torch.equal(one, other)


def test_killed_writing_goes_on_to_the_same_texts(tmp_path: Path) -> None:
    class Dies(Writes):
        def write(self, prompts: Sequence[str], **options: Any) -> list[str]:
            if len(self.prompts) >= 6:
                raise DiesError
            return super().write(prompts, **options)

    texts = (listed("1+1+1+1", "2+2+2+2"), listed("3+3+3+3"), listed("0+0+0+1", "0+1+0+1"))
    how = Elicit(questions=5, per_prompt=2, prompts=2)
    ctx = Context(stage="x", out=tmp_path, checkpoints=tmp_path / "a", caches=tmp_path / "none")
    known = set[str]()
    work = Work.of(ctx, 0)
    with pytest.raises(DiesError):
        new_questions(replace(how, questions=6), Dies(*texts), TASK, [], known, work, of=how)
    later = Writes(*texts)
    found = new_questions(how, later, TASK, [], known, work, of=how)
    assert [q for q, _ in found] == ["1+1+1+1", "2+2+2+2", "3+3+3+3", "0+0+0+1", "0+1+0+1"]
    assert later.prompts == []  # all rounds were kept


def test_choosing_takes_the_likeliest_option(tmp_path: Path) -> None:
    student = Student.of(small(tmp_path), "student", Work())
    task = replace(TASK, options=("0", "1", "2", "3"))
    found = Answering(mode="choose").answers(
        student, task, "", [("1+1+1+1", "0"), ("1+1+1+0", "3")]
    )
    module, read = student.writer.model, student.writer.tokenizer
    ids = torch.tensor([read.ids(f"{task.item('1+1+1+1')} <ans>")])
    log_p = module({"tokens": ids})["logits"][0, -1].log_softmax(-1)
    options = [read.ids(o)[0] for o in task.options]
    assert found.likelihood[0].item() == pytest.approx(log_p[options[0]].item(), abs=1e-4)
    assert bool(found.right[0]) == (int(log_p[options].argmax()) == 0)
    with pytest.raises(BadData, match="answer '9' is none of its options"):
        Answering(mode="choose").answers(student, task, "", [("1+1", "9")])


def test_drafts_are_taken_from_a_pool_and_the_rest_is_left() -> None:
    parts = read()
    found = TakeDrafts(questions=6)(parts, work=Work.seeded(0))
    assert found["drafts"]["style"] == [*STYLES] * 6
    assert len(found["pool"]["question"]) == 14
    assert not {*found["drafts"]["question"]} & {*found["pool"]["question"]}  # pyright: ignore
    with pytest.raises(BadData, match="leaves none to choose from"):
        TakeDrafts(questions=20)(parts, work=Work.seeded(0))


def test_an_aligned_teacher_chooses_what_it_learned_to_prefer(tmp_path: Path) -> None:
    """The reference and the reward of the same model are 0; of a teacher that was pushed towards
    one style the choice is that style.
    """
    teacher, reference = small(tmp_path), small(tmp_path)
    parts = read()
    words = ModelWriter.of(teacher, "cpu", where="x").tokenizer.ids(f" {STYLES['easy']('')}")
    with torch.no_grad():
        # every hidden state is nearer to these words
        network: Any = teacher.module
        network.network.transformer.ln_f.bias += 3 * network.head.weight[words].mean(0)
    make = ChooseExamples(questions=5, judged=10)
    given = {**parts, "student": reference, "teacher": teacher, "reference": reference}
    found = make(given, work=Work.seeded(0))["train"]
    assert found["style"] == ["easy"] * 5


def test_a_teacher_writes_examples_and_what_has_no_answer_is_left_out(tmp_path: Path) -> None:
    """A fresh model writes nothing of use: no question, one line."""
    given = {**inputs(tmp_path), "teacher": small(tmp_path)}
    with pytest.raises(BadData, match=r"0 new questions after \d+ prompts"):
        WriteExamples(questions=2, rounds=1, prompts=2, longest_question=8)(
            given, work=Work.seeded(0)
        )
    with pytest.raises(BadData, match="no example to fine-tune on"), noted(lambda _: None):
        WriteExamples(questions=2, longest=4, old_questions=True)(given, work=Work.seeded(0))


class Server(BaseHTTPRequestHandler):
    """A stand-in for an OpenAI-compatible server."""

    requests: list[Mapping[str, Any]] = []
    failures = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).requests.append(body | {"path": self.path, "key": self.headers["Authorization"]})
        status, answer = 200, {"choices": [{"text": "", "finish_reason": "stop"}]}
        if type(self).failures:
            type(self).failures -= 1
            status, answer = 503, {"error": "busy"}
        elif body["model"] == "odd":
            answer = {"nothing": True}
        elif body["model"] == "none":
            status, answer = 404, {"error": "no such model"}
        elif "new ones in the same form" in body["prompt"]:
            sums = questions(4, torch.Generator().manual_seed(body["seed"]))
            answer["choices"][0] = {"text": listed(*sums), "finish_reason": "length"}  # pyright: ignore
        else:
            sum_ = body["prompt"].splitlines()[-2]
            text = answered(sum_, "steps").removesuffix("</ans>")
            answer["choices"][0]["text"] = text  # pyright: ignore
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002


@pytest.fixture
def address() -> Iterator[str]:
    Server.requests, Server.failures = [], 0
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_drafts(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_ENDPOINT_KEY", "abc")
    make = Elicit(questions=4, prompts=2, endpoint=Endpoint(address=address, model="m"))
    Server.failures = 1  # the first answer is tried again
    with noted(lambda _: None):
        found = make(read(), work=Work.seeded(0))["drafts"]
    assert len(found["question"]) == 16
    assert found["style"] == [*STYLES] * 4
    right = found["right"]
    assert isinstance(right, Tensor)
    assert bool(right.all())  # the stop text was put back, and the answer read
    first = Server.requests[0]
    assert (first["path"], first["model"], first["key"]) == ("/v1/completions", "m", "Bearer abc")
    assert first["temperature"] == 1.0


@pytest.mark.parametrize(
    ("model", "error", "reason"),
    [("odd", BadData, "has no choices"), ("none", MissingData, "404 .*no such model")],
)
def test_an_endpoint_that_answers_oddly_is_one_line(
    address: str, model: str, error: type[Exception], reason: str
) -> None:
    given = Sampling(max_new=3)
    with pytest.raises(error, match=reason) as found:
        Endpoint(address=address, model=model).write(
            ["x\ny"], sampling=given, rng=torch.Generator()
        )
    assert "\n" not in str(found.value)


def test_an_endpoint_that_is_not_there_is_one_line() -> None:
    with pytest.raises(BadSetting, match="is no address"):
        Endpoint(address="localhost:8000", model="m")
    gone = Endpoint(address="http://127.0.0.1:9/v1", model="m", seconds=2.0)
    with pytest.raises(MissingData, match="no answer .* is the server running"):
        gone.write(["x"], sampling=Sampling(), rng=torch.Generator())


def test_tasks_come_back_from_their_records() -> None:
    assert tasks_of(TensorData(task_columns([TASK]))) == {"arithmetic": TASK}
    with pytest.raises(BadData, match="a task needs name"):
        tasks_of(TensorData({"task": ['{"name": "x"}']}))
