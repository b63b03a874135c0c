# SPDX-License-Identifier: Apache-2.0
"""Embed 200 sentences with quantized linear layers and compare with float32.

    python examples/minilm/run.py            # accuracy, size and speed of every scheme
    python examples/minilm/run.py --json     # the same for programs

Every scheme runs the whole network in the same process as the float32 reference, in turns with
it, and each round's times are divided by that round's float32 times: the table shows the medians
of those ratios.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path

import numpy as np
from model import Checkpoint, MiniLM, MissingModelError, NibblasLinear, NumpyLinear

import nibblas

SENTENCES = Path(__file__).with_name("sentences.tsv")

# The rows of the table: a label, and the options of NibblasLinear.
SCHEMES = {
    "int8 per channel": {"scheme": "int8", "group_size": None},
    "int8 g32": {"scheme": "int8", "group_size": 32},
    "uint4 g32": {"scheme": "uint4", "group_size": 32},
    "int4 g32": {"scheme": "int4", "group_size": 32},
    "int4 g32 absmax": {"scheme": "int4", "group_size": 32, "rule": "absmax"},
}
WEIGHT_ONLY = {
    f"{label}, float32 compute": {**SCHEMES[label], "compute": "float32"}
    for label in ("int8 per channel", "int8 g32", "uint4 g32", "int4 g32")
}
REFERENCE = "float32 (NumPy)"


def read_sentences(path: Path = SENTENCES) -> tuple[list[str], np.ndarray]:
    """Return the sentences followed by their paraphrases, and each one's partner's index."""
    with path.open(encoding="utf-8", newline="") as file:
        pairs = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    sentences = [pair["sentence"] for pair in pairs] + [pair["paraphrase"] for pair in pairs]
    return sentences, np.roll(np.arange(len(sentences)), len(pairs))


def nearest(embeddings: np.ndarray) -> np.ndarray:
    """Return for each row the index of the most similar other row."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity.argmax(axis=1)


def build(checkpoint: Checkpoint, schemes: dict[str, dict]) -> dict[str, MiniLM]:
    """Return the float32 model, then one model a scheme, by label."""
    models = {REFERENCE: MiniLM(checkpoint, NumpyLinear)}
    for label, options in schemes.items():
        models[label] = MiniLM(
            checkpoint,
            lambda weight, bias, options=options: NibblasLinear(weight, bias, **options),
        )
    return models


def compare(embeddings: np.ndarray, reference: np.ndarray, partner: np.ndarray) -> dict:
    """Return what quantization changed: the cosines to float32, and the neighbours.

    Both sets of embeddings have rows of length 1. `same_nearest` and `paraphrase_nearest` are
    fractions of the sentences.
    """
    cosine = np.einsum("ij,ij->i", embeddings, reference, dtype=np.float64)
    found = nearest(embeddings)
    return {
        "mean_cosine": float(cosine.mean()),
        "min_cosine": float(cosine.min()),
        "same_nearest": float((found == nearest(reference)).mean()),
        "paraphrase_nearest": float((found == partner).mean()),
    }


def evaluate(schemes: dict[str, dict], rounds: int = 0) -> dict:
    """Embed the sentences with every scheme; time it in `rounds` interleaved rounds."""
    sentences, partner = read_sentences()
    checkpoint = Checkpoint()
    batches = checkpoint.tokenize(sentences)
    models = build(checkpoint, schemes)
    embeddings = {label: model.embed(batches) for label, model in models.items()}  # warms up too
    reference = models[REFERENCE]
    results = {
        label: {
            **compare(embeddings[label], embeddings[REFERENCE], partner),
            "megabytes": model.nbytes / 1e6,
            "size_ratio": reference.nbytes / model.nbytes,
        }
        for label, model in models.items()
    }
    for label, ratios in measure(models, batches, rounds).items():
        results[label].update(ratios)
    return {
        "sentences": len(sentences),
        "tokens": int(sum(batch.mask.sum() for batch in batches)),
        "target": nibblas.target(),
        "threads": nibblas.get_num_threads(),
        "versions": {"nibblas": nibblas.__version__, "numpy": np.__version__},
        "rounds": rounds,
        "results": results,
    }


def measure(models: dict[str, MiniLM], batches: list, rounds: int) -> dict[str, dict]:
    """Return each model's speed as a multiple of float32's: linear layers, whole network.

    The whole network includes all that NumPy does between the layers (attention, norms, and for
    float32 the GELU too), but not the tokenizer.
    """
    ratios = {label: {"linear_speed": [], "network_speed": []} for label in models}
    order = list(models)
    for number in range(rounds):
        for label in order if number % 2 == 0 else reversed(order):
            models[label].reset_clock()
            models[label].embed(batches)
        base = models[REFERENCE]
        for label, model in models.items():
            ratios[label]["linear_speed"].append(base.linear_seconds / model.linear_seconds)
            ratios[label]["network_speed"].append(base.seconds / model.seconds)
    return {
        label: {name: statistics.median(values) for name, values in pair.items()}
        for label, pair in ratios.items()
        if rounds
    }


COLUMNS = [  # heading, key, how to print the value
    ("mean cos", "mean_cosine", "{:.5f}".format),
    ("min cos", "min_cosine", "{:.5f}".format),
    ("same nearest", "same_nearest", "{:.1%}".format),
    ("paraphrase first", "paraphrase_nearest", "{:.1%}".format),
    ("MB", "megabytes", "{:.1f}".format),
    ("smaller", "size_ratio", "{:.1f}x".format),
    ("linear speed", "linear_speed", "{:.2f}x".format),
    ("network speed", "network_speed", "{:.2f}x".format),
]


def table(results: dict[str, dict]) -> str:
    """Return the results as aligned text; columns without values are left out."""
    columns = [column for column in COLUMNS if column[1] in results[REFERENCE]]
    rows = [["linear layers"] + [heading for heading, _, _ in columns]]
    for label, values in results.items():
        rows.append([label] + [show(values[key]) for _, key, show in columns])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="minilm", description="all-MiniLM-L6-v2 with linear layers in nibblas"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; 0 times nothing")
    parser.add_argument(
        "--weight-only", action="store_true", help='also the schemes with compute="float32"'
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.rounds < 0:
        parser.error(f"--rounds must be 0 or more, not {options.rounds}")
    schemes = {**SCHEMES, **WEIGHT_ONLY} if options.weight_only else SCHEMES
    try:
        report = evaluate(schemes, options.rounds)
    except MissingModelError as error:
        print(f"minilm: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(report, indent=2))
        return 0
    print(
        f"all-MiniLM-L6-v2, {report['sentences']} sentences, {report['tokens']} tokens; "
        f"nibblas {report['versions']['nibblas']} ({report['target']}, {report['threads']} "
        f"threads), NumPy {report['versions']['numpy']}\n"
    )
    print(table(report["results"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
