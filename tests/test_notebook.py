"""Tests that the notebook runs, defines no logic of its own and shows up-to-date outputs."""

import ast
import json

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / "notebooks/cleaning.ipynb"
REPORT_COUNTS = """
import json
truth = json.loads(Path(data, "synthesis.json").read_text())["splits"]
print(json.dumps({"counts": counts.to_dict(), "truth": truth}))
"""


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_calls_the_package_and_defines_nothing(notebook):
    tree = ast.parse("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
    modules = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    modules += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {"hwr_ray.data.cleaning", "hwr_ray.images.lines", "hwr_ray.data.prepare"} <= set(modules)
    assert {module.split(".")[0] for module in modules} == {
        "collections",
        "hwr_ray",
        "matplotlib",
        "pandas",
        "pathlib",
        "tempfile",
    }


def tables(notebook):
    """Returns the results of its cells as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.data["text/plain"] for output in outputs if output.output_type == "execute_result"]


def test_its_counts_are_the_faults_that_were_drawn_and_what_it_shows_is_up_to_date(notebook, tmp_path, ray_cluster):
    shown = tables(notebook)
    notebook.cells.append(nbformat.v4.new_code_cell(REPORT_COUNTS))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert len(shown) == 5 and tables(notebook) == shown
    reported = json.loads(notebook.cells[-1].outputs[0].text)
    for split, truth in reported["truth"].items():
        counts = {
            reason: number for reason, number in reported["counts"][split].items() if number and reason != "prepared"
        }
        assert counts == {name: number for name, number in truth.items() if number and name != "rows"}
        assert sum(reported["counts"][split].values()) == truth["rows"]
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
