"""The notebooks run from their first to their last cell."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
PAGE = (ROOT / "docs/notebooks.md").read_text()


def test_the_page_lists_them():
    assert len(NOTEBOOKS) == 3
    assert all(f"`{path.name}`" in PAGE for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_from_an_address_that_the_reader_gives(path):
    first = path.read_text().split("# %%\n")[1]
    assert 'REPOSITORY = ""\nif REPOSITORY:' in first
    assert "pip" in first


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    jupytext = pytest.importorskip("jupytext")
    nbconvert = pytest.importorskip("nbconvert.preprocessors")
    pytest.importorskip("ipykernel")
    notebook = jupytext.read(path)
    resources = {"metadata": {"path": str(path.parent)}}
    nbconvert.ExecutePreprocessor(timeout=600).preprocess(notebook, resources)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in codes)
