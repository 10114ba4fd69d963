"""In a notebook: one bar that stays in its place, and objects that show what they are."""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ddvi_fast import DDVI, fit_posterior
from ddvi_fast.engine import progress
from ddvi_fast.engine.run_folder import RunFolder
from ddvi_fast.inference import Model, Training
from ddvi_fast.training.run import Result
from tests.linear_gaussian import make_model
from tests.posteriors import families


@pytest.fixture
def pictures(monkeypatch) -> list[str]:
    """What a stand-in for the notebook is shown, one after another in one place."""
    shown = []
    handle = SimpleNamespace(update=shown.append)

    def show(first: str, display_id: bool) -> SimpleNamespace:
        assert display_id
        shown.append(first)
        return handle

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object())))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=show))
    return shown


def test_a_bar_stays_in_its_place_and_ends_at_the_last_step(pictures, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    bar = progress.display("auto", stream, total=100, done=20)
    for step in range(21, 61):
        clock[0] += 0.05
        bar.update(step, "train <1>", {"loss": step / 10} if step == 60 else {})
    bar.close()
    assert 3 <= len(pictures) <= 12, "four pictures a second are enough"
    assert '<progress value="60" max="100">' in pictures[-1] and "20 steps/s" in pictures[-1] and "0:00:02 left" in pictures[-1]
    assert "train &lt;1&gt;" in pictures[-1] and "loss 6" in pictures[-1]
    assert stream.getvalue() == ""


def test_off_is_off_in_a_notebook_too(pictures):
    progress.display("off", io.StringIO(), total=1).update(1, "train", {})
    assert pictures == []


def test_a_plain_interpreter_and_an_interactive_shell_are_no_notebooks(monkeypatch):
    for shell in (None, SimpleNamespace()):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert not progress.in_notebook()


def cells(html: str) -> dict[str, str]:
    return dict(re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", html))


@pytest.mark.parametrize("family", families.ALL, ids=lambda family: family.__name__)
def test_every_posterior_shows_its_parts(family):
    posterior = family(make_model())
    shown = cells(posterior._repr_html_())
    assert shown["latent dimensions"] == "2"
    assert shown["parameters"] == f"{sum(parameter.numel() for parameter in posterior.parameters()):,}"
    assert shown["density"].startswith("yes" if posterior.has_density else "no: ")


def test_a_diffusion_shows_its_chain():
    shown = cells(families.diffusion(make_model())._repr_html_())
    assert shown["steps"] == str(families.diffusion(make_model()).denoiser.num_steps)
    assert shown["learned"] == "schedule and variances" and int(shown["of denoiser"].replace(",", "")) > 0


def test_a_result_shows_figures_and_pictures(tmp_path: Path):
    picture = tmp_path / "latents.png"
    picture.write_bytes(b"\x89PNG picture")
    result = Result(RunFolder(tmp_path / "a&b", {}), {"elbo": -24.4567}, [picture, tmp_path / "gone.png"])
    html = result._repr_html_()
    assert cells(html) == {"elbo": "-24.46"} and "a&amp;b" in html
    assert base64.b64decode(re.search(r"base64,([^\"]+)", html)[1]) == picture.read_bytes() and html.count("<img") == 1


def test_the_estimator_shows_its_parameters():
    assert "n_clusters" in DDVI(n_clusters=3)._repr_html_()


def test_a_fitted_posterior_shows_what_it_is_of():
    model = Model(simulate=lambda n: (torch.randn(n, 2), torch.randn(n, 3)))
    fitted = fit_posterior(model, training=Training(steps=20, batch_size=8))
    shown = cells(fitted._repr_html_())
    assert shown["data"] == "any data of shape [3]" and shown["parameters"] == "z[0], z[1]"
    assert shown["last loss"] == f"{fitted.history[-1]:.3f} nats"


NOTEBOOK = """
import numpy as np
from ddvi_fast import DDVI, fit_posterior
model = DDVI(epochs=2, hidden=(8,), num_steps=3, verbose=True).fit(np.random.default_rng(0).normal(size=(40, 4)))
model.posterior_
"""


def test_a_kernel_shows_both(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (pip install nbclient ipykernel)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (pip install nbclient ipykernel)")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    nbclient.NotebookClient(notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(Path.cwd())}}).execute()
    outputs = notebook.cells[0].outputs
    shown = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert [bool("<progress" in html) for html in shown] == [True, False]
    assert cells(shown[1])["steps"] == "3"
    value, most = re.search(r'value="(\d+)" max="(\d+)"', shown[0]).groups()
    assert value == most != "0"
