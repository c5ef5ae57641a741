"""Perplexity: transformers' losses, window by window, and the same on any number of processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt_dist.checkpoint.opened import open_model
from gpt_dist.data.tokenizers.byte_pair import read_openai_gpt
from gpt_dist.data.tokenizers.folder import tokenizer_files
from gpt_dist.errors import ConfigError, DataError
from gpt_dist.inference.perplexity import (
    SlidingWindows,
    choose_stride,
    open_texts,
    open_validation_split,
    score_texts,
)
from gpt_dist.model import load_model, write_model_folder
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import form_groups
from tests.models import FAMILIES, random_weights, sample_texts, small_config, write_model_folders

transformers = pytest.importorskip("transformers")

LENGTH = 32


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_model_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Parts of two books, of which one is shorter than a window."""
    folder = tmp_path_factory.mktemp("texts")
    first, second, *_ = sample_texts()
    (folder / "long.txt").write_text(first[:4000], encoding="utf-8")
    (folder / "short.txt").write_text(second[:40], encoding="utf-8")
    return [folder / "long.txt", folder / "short.txt"]


def evaluate(
    launch: Launch,
    device: torch.device,
    folder: Path,
    source: Path | list[Path],
    stride: int | None = None,
    batch_size: int = 4,
    tensor_parallel_size: int = 1,
) -> dict[str, float]:
    opened = open_model(folder)
    topology = form_groups(launch, device, tensor_parallel_size)
    group = topology.tensor_parallel_group
    model = load_model(opened.tensors, opened.config, group).eval()
    stride = choose_stride(opened, stride)
    opens = open_texts if isinstance(source, list) else open_validation_split
    return score_texts(model, opens(source, opened), stride, batch_size, topology)


def reference_loss(folder: Path, ids: list[int], stride: int) -> float:
    """The sum over all tokens, each from the window that predicts it first."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    total, predicted, start = 0.0, 0, 0
    while predicted < len(ids) - 1:
        window = torch.tensor([ids[start : start + LENGTH + 1]])
        with torch.no_grad():
            scores = model(window[:, :-1]).logits[0].log_softmax(-1)
        losses = -scores.gather(1, window[0, 1:, None])[:, 0]
        total += float(losses[predicted - start :].double().sum())
        predicted, start = start + len(losses), start + stride
    return total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stride", [None, 10])
def test_loss_is_transformers(process_group, model_folders, texts, family, stride):
    folder = model_folders[family]
    (found,) = process_group(1).run(evaluate, folder, texts, stride)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    contents = [file.read_text(encoding="utf-8") for file in texts]
    ids = [[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]] for text in contents]
    total = sum(reference_loss(folder, each, stride or LENGTH) for each in ids)
    tokens = sum(map(len, ids)) - len(ids)
    assert found["tokens"] == tokens
    assert found["loss"] == pytest.approx(total / tokens, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-5)
    size = sum(file.stat().st_size for file in texts)
    assert found["bits_per_byte"] == pytest.approx(total / size / math.log(2), rel=1e-6)
    words = sum(len(text.split()) for text in contents)
    assert found["perplexity_per_word"] == pytest.approx(math.exp(total / words), rel=1e-4)


@pytest.mark.parametrize("stride", [None, 7])
def test_any_number_of_processes_gives_the_same(process_group, model_folders, texts, stride):
    folder = model_folders["openai_gpt"]
    (alone,) = process_group(1).run(evaluate, folder, texts, stride)
    for batch_size, tensor_parallel_size in ((4, 1), (1, 1), (4, 2)):
        shared = process_group(2).run(
            evaluate, folder, texts, stride, batch_size, tensor_parallel_size
        )
        for found in shared:
            assert found == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("num_tokens", [2, 3, 32, 33, 34, 64, 65, 66, 100])
@pytest.mark.parametrize("stride", [1, 5, 31, 32])
def test_every_token_is_predicted_once(num_tokens, stride):
    windows = SlidingWindows(num_tokens, LENGTH, stride)
    predicted = []
    for number in range(len(windows)):
        inputs, labels = windows.read(number, lambda start, stop: np.arange(start, stop))
        scored = np.flatnonzero(labels >= 0)
        assert (labels[scored] == inputs[scored] + 1).all()
        if number:
            assert scored[0] >= LENGTH - stride
        predicted += labels[scored].tolist()
    assert predicted == list(range(1, num_tokens))


def test_a_token_folder_and_its_text_agree(process_group, token_folder, tmp_path):
    folder = tmp_path / "model"
    config = small_config("gpt2")
    weights = random_weights(config).__getitem__
    write_model_folder(folder, config, weights, tokenizer_files(token_folder), end_of_text=0)
    found = process_group(2).run(evaluate, folder, token_folder, None, 64)
    ((num_tokens, read),) = open_validation_split(token_folder, open_model(folder)).streams
    ids = read(0, num_tokens).tolist()
    assert found[0] == found[1]
    assert found[0]["tokens"] == len(ids) - 1
    assert found[0]["loss"] == pytest.approx(reference_loss(folder, ids, LENGTH) / (len(ids) - 1))


def test_the_command_under_a_launcher(process_group, model_folders, texts):
    command = ("launch/evaluate.py", str(model_folders["openai_gpt"]), "--text", *map(str, texts))
    (alone,) = process_group(1).run(evaluate, model_folders["openai_gpt"], texts)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    shared = subprocess.run(
        [*torchrun, *command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert shared.returncode == 0, shared.stderr
    assert json.loads(shared.stdout) == pytest.approx(alone, rel=1e-6)


def test_a_text_without_a_token_to_predict_is_refused(tmp_path):
    """Of a model without a token between texts, as the released GPT-1: the first has no context."""
    (tmp_path / "vocab.json").write_text('{"a</w>": 0, "<unk>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = read_openai_gpt(tmp_path / "vocab.json", tmp_path / "merges.txt")
    config = small_config("openai_gpt").model_copy(update={"vocab_size": tokenizer.vocab_size})
    read = random_weights(config).__getitem__
    write_model_folder(tmp_path / "model", config, read, tokenizer.files(), end_of_text=None)
    opened = open_model(tmp_path / "model")
    file = tmp_path / "text.txt"
    for text in ("a", "\u200b"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=f"{file}: has no token that can be predicted"):
            open_texts([file], opened)
    file.write_text("a a")
    ((num_tokens, read),) = open_texts([file], opened).streams
    assert read(0, num_tokens).tolist() == [0, 0]


def test_mistakes_are_refused(model_folders, token_folder, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    opened = open_model(model_folders["openai_gpt"])
    with pytest.raises(DataError, match="another tokenizer"):
        open_validation_split(token_folder, opened)
    with pytest.raises(DataError, match="holds no text"):
        open_texts([tmp_path / "empty.txt"], opened)
    with pytest.raises(DataError, match="not a readable UTF-8 text"):
        open_texts([tmp_path / "absent.txt"], opened)
    with pytest.raises(ConfigError, match="--stride: 33"):
        choose_stride(opened, 33)
