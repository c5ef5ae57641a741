"""Test that model folders are exchanged with transformers, reproduced exactly, and not trusted."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt_dist.checkpoint.opened import open_model, save_model
from gpt_dist.data.tokenizers.folder import open_tokenizer
from gpt_dist.errors import GptDistError, ModelError
from gpt_dist.model import GPT, ModelFolder, load_model, write_model_folder
from gpt_dist.model.families import FAMILIES as FAMILIES_HERE
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import form_groups
from tests.models import (
    FAMILIES,
    VOCAB_SIZE,
    count_refused,
    sample_texts,
    small_config,
    to_hugging_face,
    write_model_folders,
)

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
TOKENS = torch.randint(300, (3, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_model_folders(tmp_path_factory.mktemp("models"))


def own_logits(launch: Launch, device: torch.device, folder: Path) -> Tensor:
    opened = open_model(folder)
    group = form_groups(launch, device, 1).tensor_parallel_group
    model = load_model(opened.tensors, opened.config, group).eval()
    with torch.no_grad():
        return model.logits(model(TOKENS))[..., : opened.config.vocab_size]


def draw_and_compare_marks(launch: Launch, device: torch.device, folder: Path) -> list[str]:
    """Return the parameters whose marks differ from a constructed model's; nothing may be drawn."""
    opened = open_model(folder)
    group = form_groups(launch, device, 2).tensor_parallel_group
    before = torch.get_rng_state()
    loaded = load_model(opened.tensors, opened.config, group)
    assert torch.equal(torch.get_rng_state(), before)
    drawn = dict(GPT(opened.config, group).named_parameters())
    assert any(getattr(parameter, "tensor_model_parallel", False) for parameter in drawn.values())
    return [
        name
        for name, parameter in loaded.named_parameters()
        if vars(parameter) != vars(drawn[name]) or not parameter.requires_grad
    ]


def their_logits(folder: Path) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(TOKENS).logits


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_it_with_the_same_logits(process_group, model_folders, family):
    folder = model_folders[family]
    (found,) = process_group(1).run(own_logits, folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(theirs).__name__ == FAMILIES_HERE[family].architecture
    assert (found - their_logits(folder)).abs().max() < TOLERANCE


def test_loading_draws_nothing_and_keeps_the_marks_of_split_weights(process_group, model_folders):
    assert process_group(2).run(draw_and_compare_marks, model_folders["gpt2"]) == [[], []]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["whole", "sharded", "without prefix", "with head and masks"])
def test_folders_of_transformers_open(process_group, model_folders, tmp_path, family, form):
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folders[family])
    model.save_pretrained(tmp_path, max_shard_size="100KB" if form == "sharded" else "1GB")
    weights = tmp_path / "model.safetensors"
    if form == "without prefix":
        prefix = FAMILIES_HERE[family].names["blocks"].split(".")[0] + "."
        state = {name.removeprefix(prefix): x for name, x in load_file(weights).items()}
        save_file(state, weights)
    if form == "with head and masks":
        state = load_file(weights)
        embedding = next(x for x in state.values() if x.size(0) == VOCAB_SIZE)
        state.setdefault("lm_head.weight", embedding.clone())
        here = FAMILIES_HERE[family]
        name = f"{here.names['blocks']}.0.{here.buffers[0]}"
        state[name] = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
        save_file(state, weights)
    assert weights.exists() != (form == "sharded")
    (found,) = process_group(1).run(own_logits, tmp_path)
    assert (found - their_logits(model_folders[family])).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_transformers_made_opens(process_group, tmp_path, family):
    description = FAMILIES_HERE[family].describe(small_config(family), end_of_text=None)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**description)
    )
    model.save_pretrained(tmp_path)
    (found,) = process_group(1).run(own_logits, tmp_path)
    assert (found - their_logits(tmp_path)).abs().max() < TOLERANCE


def test_an_untied_head_does_not_stand_for_a_missing_embedding(model_folders, tmp_path):
    copy_without_checksums(model_folders["llama"], tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    state = load_file(weights)
    del state["model.embed_tokens.weight"]
    save_file(state, weights)
    with pytest.raises(ModelError, match=r"1 weights are missing, such as model\.embed_tokens"):
        open_model(tmp_path / "model")


@pytest.mark.parametrize(
    "kind",
    [
        "OpenAIGPTDoubleHeadsModel",
        "OpenAIGPTForSequenceClassification",
        "GPT2DoubleHeadsModel",
        "GPT2ForSequenceClassification",
        "GPT2ForTokenClassification",
        "GPT2ForQuestionAnswering",
    ],
)
def test_folders_of_transformers_other_classes_open(process_group, model_folders, tmp_path, kind):
    source = model_folders["openai_gpt" if kind.startswith("OpenAI") else "gpt2"]
    getattr(transformers, kind).from_pretrained(source).save_pretrained(tmp_path)
    (found,) = process_group(1).run(own_logits, tmp_path)
    assert (found - their_logits(source)).abs().max() < TOLERANCE


def test_half_precision_is_read_exactly(model_folders, tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            model_folders["openai_gpt"], dtype=dtype
        )
        model.save_pretrained(tmp_path / str(dtype))
        found = ModelFolder(tmp_path / str(dtype))
        stored = to_hugging_face(found, found.config)
        assert all(
            torch.equal(stored[name], x.float())
            for name, x in model.state_dict().items()
            if name in stored
        )
        assert stored.keys() < model.state_dict().keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_export_import_export_is_byte_identical(model_folders, tmp_path, family):
    first, second = model_folders[family], tmp_path / "second"
    save_model(open_model(first), second)
    assert contents(first) == contents(second)
    assert {"config.json", "model.safetensors", "tokenizer.model"} < contents(first).keys()


def test_large_weights_are_spread_over_files(process_group, model_folders, tmp_path):
    opened = open_model(model_folders["openai_gpt"])
    read = opened.tensors.__getitem__
    write_model_folder(
        tmp_path / "shards", opened.config, read, {}, end_of_text=None, shard_bytes=100_000
    )
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 2
    (found,) = process_group(1).run(own_logits, tmp_path / "shards")
    assert torch.equal(their_logits(tmp_path / "shards"), their_logits(model_folders["openai_gpt"]))
    assert (found - their_logits(tmp_path / "shards")).abs().max() < TOLERANCE


def test_an_existing_folder_is_left_alone(model_folders, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("important")
    with pytest.raises(ModelError, match="exists already"):
        save_model(open_model(model_folders["openai_gpt"]), tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"notes.txt": b"important"}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failed_export_leaves_nothing(model_folders, tmp_path):
    opened = open_model(model_folders["openai_gpt"])

    def read(_name: str) -> Tensor:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelError, match=r"disk is full.*nothing was published"):
        write_model_folder(tmp_path / "out", opened.config, read, {}, end_of_text=None)
    assert not list(tmp_path.iterdir())


# Each function makes a good folder hostile or damaged.


def edit_weights(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return spoil


def edit_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        weights = folder / "model.safetensors"
        weights.write_bytes(change(weights.read_bytes()))

    return spoil


def edit_config(**values: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return spoil


def escape_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    write_index("../elsewhere.safetensors")(folder)


def write_index(shard: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink(missing_ok=True)
        index = {"weight_map": {"transformer.wte.weight": shard}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


BIAS = "transformer.h.0.attn.c_attn.bias"
HOSTILE = {
    "truncated": edit_bytes(lambda data: data[:-100]),
    "longer": edit_bytes(lambda data: data + bytes(100)),
    "empty": edit_bytes(lambda _data: b""),
    "header beyond the file": edit_bytes(lambda data: b"\xff" * 7 + b"\x7f" + data[8:]),
    "header of zeros": edit_bytes(lambda data: data[:8] + bytes(len(data) - 8)),
    "missing tensor": edit_weights(lambda state: state.pop(BIAS)),
    "unknown tensor": edit_weights(lambda state: state.update(extra=torch.zeros(3))),
    "wrong shape": edit_weights(lambda state: state.update({BIAS: torch.zeros(7)})),
    "integers": edit_weights(lambda state: state.update({BIAS: torch.zeros(144, dtype=torch.int)})),
    "not a number": edit_weights(lambda state: state[BIAS].fill_(torch.nan)),
    "infinite": edit_weights(lambda state: state[BIAS].fill_(torch.inf)),
    "head not tied": edit_weights(
        lambda state: state.update({"lm_head.weight": torch.zeros(500, 48)})
    ),
    "shard outside": escape_folder,
    "shard with a surrogate": write_index("\ud800.safetensors"),
    "shard with a zero byte": write_index("a\0b.safetensors"),
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "configuration no object": lambda folder: (folder / "config.json").write_text("[" * 10_000),
    "other model": edit_config(model_type="llama"),
    "other activation": edit_config(afn="relu"),
    "other norm": edit_config(layer_norm_epsilon=1e-6),
    "text for a size": edit_config(n_embd="48"),
    "negative size": edit_config(n_layer=-1),
    "absurd size": edit_config(n_layer=10**12),
    "absurd width": edit_config(n_embd=10**12),
    "no vocabulary": edit_config(vocab_size=None),
    "heads do not divide": edit_config(n_head=5),
    "dropouts differ": edit_config(attn_pdrop=0.3),
    "dropout no number": edit_config(attn_pdrop=[]),
    "list for activation": edit_config(afn=[]),
}


def copy_without_checksums(source: Path, folder: Path) -> None:
    """Copy a folder without its checksums, like one from elsewhere."""
    shutil.copytree(source, folder)
    (folder / "checksums.json").unlink()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused(model_folders, tmp_path, name):
    folder = tmp_path / "model"
    copy_without_checksums(model_folders["openai_gpt"], folder)
    HOSTILE[name](folder)
    with pytest.raises(ModelError, match=str(folder)):
        read_all(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_embd": "48"}, 'n_embd is "48": Input should be a valid integer; copy it again'),
        ({"n_layer": -1}, "n_layer is -1: Input should be greater than .* 1; copy it again"),
        (
            dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 3),
            "attn_pdrop is 3: Input should be less than 1; copy it again",
        ),
        (
            {"vocab_size": None},
            "vocab_size is null: Input should be a valid integer; copy it again",
        ),
        ({"n_head": 5}, "n_head 5 does not divide n_embd 48; copy it again"),
    ],
)
def test_a_bad_size_is_named_as_in_the_file(model_folders, tmp_path, values, message):
    folder = tmp_path / "model"
    copy_without_checksums(model_folders["openai_gpt"], folder)
    edit_config(**values)(folder)
    with pytest.raises(ModelError, match=f"^{folder / 'config.json'}: {message}$"):
        open_model(folder)


def test_what_is_no_model_is_refused_with_what_to_give(tmp_path):
    run, step, empty = (tmp_path / name for name in ("run", "step-00000010", "empty"))
    for folder in (run / "checkpoints", step, empty):
        folder.mkdir(parents=True)
    (step / "rank-00000.safetensors").write_bytes(b"without a manifest")
    for path in (run, run / "checkpoints", step, empty, tmp_path / "absent"):
        with pytest.raises(ModelError, match=rf"^{path}: no .*; give a model folder, a whole chec"):
            open_model(path)


def read_all(folder: Path) -> None:
    for tensor in ModelFolder(folder).values():
        assert tensor.isfinite().all()


def test_every_flipped_bit_and_truncation_is_refused(model_folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folders["openai_gpt"], folder)
    draws = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        for bit in draws.integers(0, 8 * len(original), 90).tolist():
            data = bytearray(original)
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data if bit % 3 else data[: bit // 8])
            with pytest.raises(ModelError, match=str(folder)):
                open_model(folder)
        path.write_bytes(original)
    read_all(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "added_tokens.json", "vocab.txt"])
def test_a_planted_file_is_refused(model_folders, tmp_path, name):
    folder = tmp_path / "model"
    opened = open_model(model_folders["openai_gpt"])
    read = opened.tensors.__getitem__
    write_model_folder(folder, opened.config, read, {}, end_of_text=None, shard_bytes=60_000)
    (folder / "README.md").write_text("a good model")
    (folder / ".listing.json").write_text("{}")
    read_all(folder)
    zeros = {
        key: torch.zeros_like(x)
        for key, x in to_hugging_face(opened.tensors, opened.config).items()
    }
    save_file(zeros, folder / name)
    with pytest.raises(ModelError, match=rf"{folder / name}: not listed in checksums.json; remove"):
        open_model(folder)
    (folder / "checksums.json").unlink()
    read_all(folder)


def test_flipped_bits_of_the_header_are_refused_or_change_no_tensor(model_folders, tmp_path):
    folder = tmp_path / "model"
    copy_without_checksums(model_folders["openai_gpt"], folder)
    weights = folder / "model.safetensors"
    original = weights.read_bytes()
    header = 8 + int.from_bytes(original[:8], "little")
    expected = dict(ModelFolder(folder))
    refused = 0
    for bit in np.random.default_rng(0).integers(0, 8 * header, 200).tolist():
        data = bytearray(original)
        data[bit // 8] ^= 1 << bit % 8
        weights.write_bytes(data)
        try:
            found = dict(ModelFolder(folder))
        except ModelError:
            refused += 1
        else:
            assert all(torch.equal(found[name], expected[name]) for name in expected), bit
    assert refused > 150


class Bomb:
    """Object that writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.model", "tokenizer.json", "vocab.json"]
)
def test_a_pickle_under_any_name_never_runs(model_folders, tmp_path, name):
    folder, trace = tmp_path / "model", tmp_path / "ran"
    copy_without_checksums(model_folders["openai_gpt"], folder)
    for other in folder.glob("tokenizer*" if "tok" in name or "vocab" in name else "none"):
        other.unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(GptDistError, match=str(folder)):
        save_model(open_model(folder), tmp_path / "out")
    assert not trace.exists()


def test_pickled_weights_are_refused_with_the_remedy(model_folders, tmp_path):
    folder, trace = tmp_path / "model", tmp_path / "ran"
    copy_without_checksums(model_folders["openai_gpt"], folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*convert it to model\.safetensors"):
        open_model(folder)
    assert not trace.exists()


TEXTS = [
    "",
    "one two",
    "  runs   of spaces ",
    "lines\nand\n\nempty lines\n",
    "tab\tand\r\nreturn",
    "<|endoftext|> <0x0A> <unk> ▁ a▁b",
    "ünïcode 日本語 🎉\u200d\ufffd\x00",
    "-----......******aaaaaaa_____",
]


def test_auto_tokenizer_gives_the_same_ids(model_folders):
    theirs = transformers.AutoTokenizer.from_pretrained(model_folders["openai_gpt"])
    ours = open_tokenizer(model_folders["openai_gpt"])
    draws = np.random.default_rng(0)
    texts = [*TEXTS, *sample_texts()]
    for first, last in ((32, 127), (0x80, 0x2FFF), (0x10000, 0x1F9FF)):
        codes = draws.integers(first, last, (20, 100))
        texts += ["".join(map(chr, row)) for row in codes.tolist()]
    for text in texts:
        ids = ours.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids, text[:40]
        assert theirs.decode(ids) == ours.decode(ids), text[:40]
    assert theirs.eos_token_id == ours.end_of_text
    reserved = [ours.end_of_text, ours.start, ours.delimiter, ours.extract]
    assert theirs.decode(reserved, skip_special_tokens=True) == ""
    assert len(theirs) == ours.vocab_size


# Random weights in the released GPT-1's layout.


def write_released(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Write random weights as the released files hold them; return them by transformers' names."""
    width, layers, positions, tokens = 128, 2, 32, 300
    block = [
        *(("attn.c_attn.weight", [1, width, 3 * width]), ("attn.c_attn.bias", [3 * width])),
        *(("attn.c_proj.weight", [1, width, width]), ("attn.c_proj.bias", [width])),
        *(("ln_1.weight", [width]), ("ln_1.bias", [width])),
        *(("mlp.c_fc.weight", [1, width, 4 * width]), ("mlp.c_fc.bias", [4 * width])),
        *(("mlp.c_proj.weight", [1, 4 * width, width]), ("mlp.c_proj.bias", [width])),
        *(("ln_2.weight", [width]), ("ln_2.bias", [width])),
    ]
    named = [
        ("positions_embed.weight", [positions, width]),
        ("tokens_embed.weight", [tokens, width]),
    ]
    named += [(f"h.{layer}.{name}", shape) for layer in range(layers) for name, shape in block]
    draws = np.random.default_rng(0)
    arrays = {name: 0.2 * draws.standard_normal(shape, np.float32) for name, shape in named}
    (folder / "params_shapes.json").write_text(json.dumps([shape for _, shape in named]))
    flat = np.concatenate([array.ravel() for array in arrays.values()])
    for number, piece in enumerate(np.array_split(flat, 10)):
        np.save(folder / f"params_{number}.npy", piece)
    return arrays


def released_logits(arrays: dict[str, np.ndarray[Any, Any]]) -> Tensor:
    config = transformers.OpenAIGPTConfig(
        vocab_size=300, n_positions=32, n_embd=128, n_layer=2, n_head=2
    )
    model = transformers.OpenAIGPTLMHeadModel(config).eval()
    state = {name: torch.from_numpy(array).squeeze(0) for name, array in arrays.items()}
    model.transformer.load_state_dict(state)
    with torch.no_grad():
        return model(TOKENS).logits


def test_released_weights_give_transformers_logits(process_group, tmp_path):
    expected = released_logits(write_released(tmp_path))
    opened = open_model(tmp_path)
    write_model_folder(
        tmp_path / "model", opened.config, opened.tensors.__getitem__, {}, end_of_text=None
    )
    for folder in (tmp_path, tmp_path / "model"):
        (found,) = process_group(1).run(own_logits, folder)
        assert (found - expected).abs().max() < TOLERANCE


def test_a_damaged_header_of_released_weights_is_refused_or_opens(tmp_path):
    write_released(tmp_path)
    piece = tmp_path / "params_3.npy"
    assert 200 < count_refused(piece, lambda: open_model(tmp_path), ModelError, 600, 200) < 600


def shorten_piece(folder: Path) -> None:
    np.save(folder / "params_3.npy", np.load(folder / "params_3.npy")[:-1])


def pickle_piece(folder: Path) -> None:
    piece = np.array([Bomb(folder / "ran")], dtype=object)
    np.save(folder / "params_3.npy", piece, allow_pickle=True)


@pytest.mark.parametrize(
    "spoil",
    [
        shorten_piece,
        pickle_piece,
        lambda folder: (folder / "params_3.npy").unlink(),
        lambda folder: (folder / "params_3.npy").write_bytes(pickle.dumps(Bomb(folder / "ran"))),
        lambda folder: (folder / "params_3.npy").write_bytes(b"\x93NUMPY\x01\x00\xff\xff{"),
        lambda folder: (folder / "params_shapes.json").write_text("[[32, 128], [300, 128], [1]]"),
        lambda folder: (folder / "params_shapes.json").write_text('{"a": [1e999]}'),
        lambda folder: (folder / "params_shapes.json").write_text("[[1, 1], [1, 1]]"),
    ],
)
def test_spoilt_released_files_are_refused(tmp_path, spoil):
    write_released(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=str(tmp_path)):
        open_model(tmp_path)
    assert not (tmp_path / "ran").exists()
