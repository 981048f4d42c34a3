"""A stored model is data: whatever its files name, none of the ways to read it runs a program."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_clip import run_config_text, tiny_model_config, tiny_pretrained
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

import clipx
from clipx.checkpoint.manifest import Entry, _sha256, write_manifest
from clipx.checkpoint.state import DataOrderRecord, Progress, RunState
from clipx.checkpoint.store import CheckpointStore
from clipx.checkpoint.tensors import load_tensors, state_of, write_state
from clipx.checkpoint.torch_metadata import NotMetadataError, read_metadata
from clipx.config.model import HuggingFaceTextConfig
from clipx.data.tokenizer import HuggingFaceTokenizer, build_tokenizer
from clipx.errors import InputError
from clipx.export import export_model
from clipx.models.clip import build_model
from clipx.models.text_tower import build_text_tower
from clipx.pretrained import start_from
from clipx.storage.folders import Folder


class Program:
    """Pickled, it makes a file when it is read back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def saved(program: Program) -> bytes:
    content = io.BytesIO()
    torch.save(program, content)
    return content.getvalue()


def rewrite(folder: Path, **files: bytes) -> None:
    """Replaces files of a checkpoint; its manifest fits them."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    at = Folder(str(folder))
    names = [path.name for path in folder.iterdir() if path.name != "manifest.json"]
    write_manifest(at, {name: Entry(size=at.sizes()[name], sha256=_sha256(at, name)) for name in names})


def in_the_metadata(folder: Path, program: Program) -> None:
    rewrite(folder, **{".metadata": pickle.dumps(program)})


def in_a_field_of_the_metadata(folder: Path, program: Program) -> None:
    metadata: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data = program
    rewrite(folder, **{".metadata": pickle.dumps(metadata, protocol=2)})


def in_place_of_a_tensor(folder: Path, program: Program) -> None:
    _point_to_program(folder, program, as_tensor=True)


def as_a_number(folder: Path, program: Program) -> None:
    _point_to_program(folder, program, as_tensor=False)


def _point_to_program(folder: Path, program: Program, *, as_tensor: bool) -> None:
    """Every tensor of the checkpoint then lies in a file that holds the program."""
    metadata: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    content = saved(program)
    places = {key: _StorageInfo("program", 0, len(content)) for key in metadata.storage_data}
    if not as_tensor:
        metadata.state_dict_metadata = dict.fromkeys(metadata.state_dict_metadata, BytesStorageMetadata())
        places = {MetadataIndex(key.fqn): place for key, place in places.items()}
    metadata.storage_data = places
    rewrite(folder, **{".metadata": pickle.dumps(metadata), "program": content})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, with its optimizer's state."""
    source = tiny_pretrained()
    optimizer = torch.optim.AdamW(source.model.parameters())
    for parameter in source.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    store = CheckpointStore(tmp_path_factory.mktemp("run") / "checkpoints")
    written = write_state(store.draft(1), state_of(source.model, optimizer), None)
    order = DataOrderRecord(
        fingerprint="", num_shards=1, num_samples=9, lanes=1, shuffle_window=1, global_batch_size=2, seed=0
    )
    state = RunState(progress=Progress(step=1), data_order=order, wandb_id="")
    return Path(store.publish(1, written, state=state, config_text=run_config_text(source.config)).folder.address)


def resume(folder: Path, _scratch: Path) -> None:
    model = build_model(tiny_model_config(), vocab_size=49_408, seed=1)
    load_tensors(Folder(str(folder)), model, torch.optim.AdamW(model.parameters()))


def start(folder: Path, _scratch: Path) -> None:
    config = tiny_model_config()
    tokenizer = build_tokenizer(config.text)
    start_from(folder, build_model(config, vocab_size=49_408, seed=1), config=config, tokenizer=tokenizer)


def export(folder: Path, scratch: Path) -> None:
    export_model(folder, scratch / "export", ["hf"])


WAYS: dict[str, Callable[[Path, Path], object]] = {
    "clipx.load": lambda folder, _: clipx.load(folder),
    "resume": resume,
    "start_from": start,
    "export": export,
}
PLACES = (in_the_metadata, in_a_field_of_the_metadata, in_place_of_a_tensor, as_a_number)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("way", WAYS)
def test_a_program_in_a_checkpoint_is_refused_and_not_run(
    tmp_path: Path, good: Path, way: str, place: Callable[[Path, Program], None]
) -> None:
    folder = tmp_path / "step-00000001"
    shutil.copytree(good, folder)
    place(folder, Program(tmp_path / "has_run"))
    with pytest.raises(InputError, match="step-00000001") as raised:
        WAYS[way](folder, tmp_path)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001"]


@pytest.mark.parametrize("way", WAYS)
def test_the_same_ways_read_what_clipx_wrote(tmp_path: Path, good: Path, way: str) -> None:
    WAYS[way](good, tmp_path)


def test_what_torch_wrote_is_read_with_the_same_content(good: Path) -> None:
    theirs: Metadata = pickle.loads((good / ".metadata").read_bytes())
    ours = read_metadata((good / ".metadata").open("rb"))
    assert ours.storage_data == theirs.storage_data
    assert ours.state_dict_metadata.keys() == theirs.state_dict_metadata.keys()
    for name, stored in theirs.state_dict_metadata.items():
        mine = ours.state_dict_metadata[name]
        assert (mine.size, mine.chunks, mine.properties.dtype) == (stored.size, stored.chunks, stored.properties.dtype)


@pytest.mark.parametrize(
    "pickled",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"ctorch.distributed.checkpoint.metadata\nos.system\n(S'true'\ntR.",
        b"\x80\x04\x8c\x26torch.distributed.checkpoint.metadata\x8c\x09os.system\x93\x8c\x04true\x85R.",
        b"ctorch\nload\n(S'x'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"ctorch.distributed.checkpoint.metadata\nMetadata\n}b.",
        b"(lp0\n.",
        b"I1\n.",
        b"",
        b"\x80\x04K",
    ],
)
def test_whatever_else_lies_there_is_no_metadata(pickled: bytes) -> None:
    with pytest.raises(NotMetadataError) as raised:
        read_metadata(io.BytesIO(pickled))
    assert "\n" not in str(raised.value)


def test_a_pickle_cannot_change_the_classes_that_it_names(good: Path) -> None:
    # a pickle may set attributes of what it names: here of the class itself, by the second part of a state
    changed = b"ctorch.distributed.checkpoint.metadata\nMetadata\n(N}S'version'\nS'9'\nstb."
    with pytest.raises(NotMetadataError):
        read_metadata(io.BytesIO(changed))
    assert Metadata.version is None
    read_metadata((good / ".metadata").open("rb"))


@pytest.mark.parametrize("name", ["manifest.json", "config.yaml"])
@pytest.mark.parametrize("content", ["fifo", "deep", "list"])
def test_a_file_that_never_ends_or_has_another_form_is_one_line(
    tmp_path: Path, good: Path, name: str, content: str
) -> None:
    folder = tmp_path / "step-00000001"
    shutil.copytree(good, folder)
    (folder / name).unlink()
    if content == "fifo":
        os.mkfifo(folder / name)
    else:
        (folder / name).write_text("[" * 100_000 if content == "deep" else "[1]")
    if name != "manifest.json":
        (folder / "manifest.json").write_text("{}")
    for way in (clipx.load, partial(start, _scratch=tmp_path)):
        with pytest.raises(InputError, match="step-00000001") as raised:
            way(folder)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["[]", "{}", "[" * 100_000, '{"progress": {"no": 1}}', '{"progress": 3}'])
def test_a_state_of_another_form_is_one_line(tmp_path: Path, good: Path, content: str) -> None:
    folder = tmp_path / "step-00000001"
    shutil.copytree(good, folder)
    rewrite(folder, **{"state.json": content.encode()})
    checkpoint = CheckpointStore(tmp_path).checkpoint(1)
    with pytest.raises(InputError, match=r"step-00000001: state.json is not what clipx writes"):
        checkpoint.state()
    assert not checkpoint.is_scheduled()


def timm_weights(folder: Path, program: Program) -> None:
    torch.save({"state_dict": program}, folder / "weights.pth")
    image = replace(tiny_model_config().image, pretrained=str(folder / "weights.pth"))
    build_model(replace(tiny_model_config(), image=image), vocab_size=49_408, seed=0)


def timm_option(folder: Path, program: Program) -> None:
    """A weight file that the config of a checkpoint names."""
    torch.save(program, folder / "weights.pth")
    image = tiny_model_config().image
    options = {**image.options, "checkpoint_path": str(folder / "weights.pth")}
    build_model(replace(tiny_model_config(), image=replace(image, options=options)), vocab_size=49_408, seed=0)


def text_weights(folder: Path, program: Program) -> None:
    from transformers import BertConfig

    BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2).save_pretrained(folder)
    torch.save(program, folder / "pytorch_model.bin")
    build_text_tower(HuggingFaceTextConfig(name=str(folder)), vocab_size=9, embed_dim=8)


def text_model(folder: Path, program: Program, *, pretrained: bool = True) -> None:
    (folder / "program.py").write_text(f"import os\nos.mkdir({str(program.path)!r})\nclass C: pass\n")
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "program.C", "AutoModel": "program.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    build_text_tower(HuggingFaceTextConfig(name=str(folder), pretrained=pretrained), vocab_size=9, embed_dim=8)


def tokenizer(folder: Path, program: Program) -> None:
    (folder / "program.py").write_text(f"import os\nos.mkdir({str(program.path)!r})\nclass C: pass\n")
    config = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["program.C", "program.C"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    HuggingFaceTokenizer(str(folder), 16)


@pytest.mark.parametrize(
    "load",
    [timm_weights, timm_option, text_weights, text_model, partial(text_model, pretrained=False), tokenizer],
    ids=["timm weights", "timm option", "text weights", "text model", "text model, drawn", "tokenizer"],
)
def test_a_program_among_the_files_of_other_libraries_is_refused_and_not_run(
    tmp_path: Path, load: Callable[[Path, Program], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")  # transformers would ask, also in the middle of a batch job
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(InputError, match="model") as raised:
        load(folder, Program(tmp_path / "has_run"))
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
