"""Tests of the released code's command line: its names, and a sample of its commands on tiny data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddvi_fast.config.compose import compose
from ddvi_fast.paper.commands import DATASETS, METHODS, PRIORS, overrides_of
from tests.data.files import write_idx

PROJECT = Path(__file__).resolve().parents[2]
SMALL = ("epochs=1", "limit=96", "recipe.batch_size=32", "progress=off", "tensorboard=false", "figures=false",
         "evaluation.prior_samples=100", "dataset.encoder.hidden=[16]")  # fmt: skip
BOUNDS = ("evaluation.elbo_samples=2", "evaluation.iwae_samples=2")
WITHOUT_DENSITY = ("aae", "aae_semi", "diff_vae", "diff_vae_warmup")
OF_CHAINS = {"diff_vae": "recipe.prior_steps=3", "diff_vae_warmup": "recipe.prior_steps=3", "diff_vae_warmup_semi": "method.chain.num_steps=4"}


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory):
    """Ninety-six images in the files of MNIST, and in those of the CIFAR-10 subset."""
    folder, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    labels = np.arange(96, dtype=np.uint8) % 10
    (folder / "mnist").mkdir()
    for split in ("train", "t10k"):
        write_idx(folder / "mnist" / f"{split}-images-idx3-ubyte.gz", generator.integers(0, 256, (96, 28, 28), dtype=np.uint8))
        write_idx(folder / "mnist" / f"{split}-labels-idx1-ubyte.gz", labels)
    images = {f"{split}_images": generator.integers(0, 256, (96, 32, 32, 3), dtype=np.uint8) for split in ("train", "test")}
    np.savez(folder / "cifar10_subset.npz", train_labels=labels, test_labels=labels, **images)
    return folder


def listed() -> list[list[str]]:
    lines = Path(__file__).with_name("commands.txt").read_text().splitlines()
    return [line.split()[1:] for line in lines if line.startswith("./run.sh ")]


def test_all_54_commands_are_listed_once_and_stand_for_experiments():
    commands = listed()
    assert len(commands) == len({tuple(names) for names in commands}) == 54
    for names in commands:
        config = compose(overrides_of(*names))
        assert config.recipe.name == "released" and config.run_dir.startswith(f"runs/{names[0]}-{names[1]}-{names[2]}")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("mnist", "vae"), {"batch_size": 128, "lr": 1e-4, "epochs": 200, "prior_weight": 5.0, "kl": 0.01}),
        (("mnist", "iaf_vae"), {"batch_size": 128, "lr": 1e-4, "epochs": 200, "prior_weight": 1.0, "kl": 0.01}),
        (("mnist", "h_iaf_vae"), {"batch_size": 128, "lr": 1e-4, "epochs": 200, "prior_weight": 0.5, "kl": 0.005}),
        (("mnist", "iwae"), {"batch_size": 128, "lr": 1e-4, "epochs": 100, "prior_weight": 5.0, "kl": 0.01}),
        (("cifar", "aae"), {"batch_size": 128, "lr": 2e-4, "epochs": 200, "lr_schedule": "step"}),
        (("mnist", "diff_vae"), {"batch_size": 128, "lr": 1e-4, "epochs": 100, "kl": 0.01, "prior_epochs": 100}),
        (("mnist", "diff_vae_warmup"), {"batch_size": 128, "lr": 1e-4, "epochs": 100, "kl": 0.003, "sleep_updates": 3, "warmup_epochs": 100,
                                        "frozen_fraction": 0.3, "context_dropout": 0.4}),
        (("cifar", "diff_vae_warmup"), {"kl": 0.003, "context_dropout": 0.2}),
        (("mnist_semi", "diff_vae_warmup_semi"), {"batch_size": 1024, "lr": 1e-4, "epochs": 50, "kl": 0.1}),
        (("cifar_semi", "diff_vae_warmup_semi"), {"batch_size": 1024, "lr": 1e-4, "epochs": 50, "kl": 0.5}),
        (("mnist_semi", "vae_semi"), {"batch_size": 128, "lr": 1e-4, "epochs": 50, "kl": 0.01, "max_norm": 100.0}),
        (("cifar_semi", "iaf_vae_semi"), {"batch_size": 128, "lr": 1e-4, "epochs": 50, "kl": 0.01, "max_norm": 100.0}),
    ],
)  # fmt: skip
def test_hyper_parameters_are_the_released_ones(names, expected):
    recipe = compose(overrides_of(*names, "pinwheel")).recipe
    assert {name: recipe.kl.weight if name == "kl" else getattr(recipe, name) for name in expected} == expected


def test_further_overrides_win():
    config = compose(overrides_of("mnist", "vae", "pinwheel", ["dataset.encoder.dropout=0", "recipe.lr=0.1", "seed=4", "run_dir=here"]))
    assert (config.dataset.encoder.dropout, config.recipe.lr, config.seed, config.run_dir) == (0.0, 0.1, 4, "here")
    assert compose(overrides_of("mnist", "vae", "pinwheel", ["seed=4"])).run_dir.endswith("seed4")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("mnits", "vae", "pinwheel"), r"DATASET: .*did you mean mnist"),
        (("mnist", "diff_vae_warmap", "pinwheel"), r"METHOD: .*did you mean diff_vae_warmup"),
        (("mnist", "vae", "pin_wheel"), r"PRIOR: .*did you mean pinwheel"),
        (("mnist", "vae_semi", "pinwheel"), r"METHOD: expected one of the unsupervised ones, for mnist"),
        (("cifar_semi", "vae", "pinwheel"), r"METHOD: expected one of the semi-supervised ones.*vae_semi"),
    ],
)
def test_wrong_names_say_what_was_meant(one_line, names, words):
    one_line(lambda: overrides_of(*names), words)


# Every method, both data sets, all priors; the semi-supervised chains of many steps are the slowest.
SAMPLE = [
    ("mnist", "diff_vae_warmup", "pinwheel"),
    ("cifar", "diff_vae_warmup", "less_noisy_square"),
    ("mnist_semi", "diff_vae_warmup_semi", "swiss_roll"),
    ("mnist", "vae", "swiss_roll"),
    ("cifar", "iaf_vae", "pinwheel"),
    ("mnist", "h_iaf_vae", "less_noisy_square"),
    ("cifar", "aae", "swiss_roll"),
    ("mnist", "iwae", "pinwheel"),
    ("mnist", "diff_vae", "swiss_roll"),
    ("cifar_semi", "vae_semi", "pinwheel"),
    ("mnist_semi", "iaf_vae_semi", "less_noisy_square"),
    ("mnist_semi", "aae_semi", "pinwheel"),
]


@pytest.mark.parametrize("names", SAMPLE, ids="-".join)
def test_a_sample_of_the_commands_runs(shell, monkeypatch, tmp_path, tiny_data, names):
    monkeypatch.chdir(tmp_path)
    narrow = ["dataset.decoder.hidden=[16]", "prior.resolution=10"] if names[0].startswith("mnist") else []
    labels = ["dataset.labels=40"] if names[0].endswith("semi") else []
    # Quadrature decodes thousands of latents, which takes convolutions a while.
    evidence = [] if narrow else ["evaluation.evidence=false"]
    bounds = [] if names[1] in WITHOUT_DENSITY else BOUNDS
    limit = ["evaluation.limit=10"] if narrow or bounds else []
    chain = [OF_CHAINS[names[1]]] if names[1] in OF_CHAINS else []
    shell("train", "--paper", *names, f"data_dir={tiny_data}", *SMALL, *narrow, *labels, *evidence, *bounds, *limit, *chain)
    (folder,) = (tmp_path / "runs").iterdir()
    found = json.loads((folder / "evaluation.json").read_text())
    assert np.isfinite(list(found.values())).all() and {"knn_accuracy", "latent_nll", "mmd"} <= found.keys()


def test_the_sample_covers_every_name():
    for place, names in enumerate((DATASETS, METHODS, PRIORS)):
        assert {command[place] for command in SAMPLE} == set(names)


def test_the_script_itself(tmp_path, tiny_data):
    small = (*SMALL, *BOUNDS, "evaluation.limit=10", "dataset.decoder.hidden=[16]")
    call = [PROJECT / "run.sh", "mnist", "vae", "pinwheel", f"data_dir={tiny_data}", *small]
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHON": sys.executable}, "capture_output": True, "text": True, "timeout": 3600}
    ran = subprocess.run(call, **options)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "runs" / "mnist-vae-pinwheel-seed0" / "evaluation.json").is_file()
    ran = subprocess.run(call[:3], **options)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and "DATASET METHOD PRIOR" in ran.stderr
