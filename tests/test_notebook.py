"""docs/notebooks/own-images.ipynb: runs from its first cell to its last, and is kept without outputs."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebooks" / "own-images.ipynb"


def test_no_outputs_are_kept() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
# what Jupyter's own packages say of event loops and paths
@pytest.mark.filterwarnings("ignore")
def test_it_runs_from_a_folder_of_images_to_onnx(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=240,
        resources={"metadata": {"path": str(tmp_path)}},
        kernel_name="python3",
    )
    client.execute()
    said = "".join(text(output) for cell in notebook.cells for output in cell.get("outputs", ()))
    scores = {
        line.split()[0] + line.split()[1]: float(line.split()[-1])
        for line in said.splitlines()
        if line.startswith("student ")
    }
    assert set(scores) == {"studentalone", "studenttaught"}
    assert min(scores.values()) > 0.5  # of ten classes
    line = next(line for line in said.splitlines() if line.startswith("accuracy of the ONNX file"))
    accuracy, difference = float(line.split()[5]), float(line.split()[-1])
    assert accuracy == pytest.approx(scores["studenttaught"], abs=1e-6)
    assert difference < 1e-3
    assert (tmp_path / "student.onnx").stat().st_size < 200_000


def text(output: Any) -> str:  # Any: a node of nbformat
    return output.get("text", "") if output.get("name") == "stdout" else ""
