"""What is wrong with the arguments is said before torch is imported: at once, not after five seconds.

All commands run in one process in which torch and the like cannot be imported at all.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from tiny import write_scenes

from clipx.cli import app

HEAVY = ("torch", "torchvision", "transformers", "timm", "accelerate", "webdataset", "wandb", "pyarrow", "matplotlib")

RUNNER = """
import contextlib, io, json, sys

heavy, runs = json.loads(sys.stdin.read())

class Forbidden(BaseException):
    pass

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in heavy:
            raise Forbidden(name)

sys.meta_path.insert(0, Finder())
from clipx.cli import main

found = []
for arguments in runs:
    sys.argv = ["clipx", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except Forbidden as error:
            code = f"imports {error}"
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""

CONFIG = """
run_dir: runs/x
steps: 10
global_batch_size: 8
data: {train: [SHARDS]}
model: {image: {name: vit_base_patch32_clip_224}}
"""

CASES: list[tuple[str, str]] = [
    ("demo --out file", "--out file cannot be written"),
    ("train absent.yaml", "absent.yaml: cannot read the config file"),
    ("train absent", "'absent' is neither a config file (.yaml, .yml) nor an override (key=value) nor a config of"),
    ("train good.yaml data.worker=3", "data.worker=3: unknown key; the nearest known is data.workers"),
    ("train good.yaml optim.type=adam", "optim.type=adam: expected adamw or stable_adamw or muon or timm"),
    ("train bad.yaml", "shards 'absent.tar' match no tar file"),
    ("train good.yaml data.train=[empty]", "shards 'empty' match no tar file"),
    ("train good.yaml data.train=[absent/*.tar]", "shards 'absent/*.tar' match no tar file"),
    (
        'train good.yaml data.train=["absent/{0..3}.tar"]',
        "shards 'absent/0.tar' (from 'absent/{0..3}.tar') match",
    ),
    ("train good.yaml evaluate.e={type:\xa0zeroshot,\xa0data:\xa0absent}", "absent: no such folder"),
    ("train good.yaml evaluate.e={type:\xa0retrieval,\xa0data:\xa0absent}", "shards 'absent' match no tar file"),
    ("train good.yaml evaluate.e={type:\xa0loss,\xa0data:\xa0absent}", "shards 'absent' match no tar file"),
    ("train good.yaml stop={metric:\xa0val/loss}", "stop.metric=val/loss: the run has no evaluation; add one, e.g. "),
    ("train good.yaml start_from=absent", "start_from: absent: no such folder"),
    ("fit absent.csv --text a --target b --model model --out out", "absent.csv: no such file or folder"),
    (
        "fit file.csv --text path --target lable --model model --out out",
        "file.csv: there is no column 'lable'; did you",
    ),
    ("fit file.csv --text path --target path --model model --out out", "column 'path' is named twice"),
    ("fit file.csv --target label --model model --out out", "no input; name columns with --image, --text, --number or"),
    ("fit file.csv --image path --target label --model model --out out", "file.csv: not one of the pictures that it"),
    (
        "fit file.csv --text path --target label --model model --out file",
        "--out file cannot be used: file is no folder",
    ),
    ("fit file.csv --text path --target label --model absent --out out", "--model: absent: no such folder; give a run"),
    ("fit file.csv --text path --target label --model model --out out epoch=3", "epoch=3: unknown key; the nearest"),
    ("fit file.csv b.csv --text path --target label --model model --out out", "'b.csv' is no KEY=VALUE; there is one"),
    ("predict absent file.csv --out a.csv", "absent: no such folder; give a run folder, a checkpoint, an export"),
    ("predict model file.csv --out a.csv", "model embeds pictures and texts, and predicts nothing else; train a model"),
    ("predict model file.csv --out a.txt", "--out a.txt: predictions are .csv or .parquet; name such a file"),
    ("predict model file.csv --out file.csv", "--out file.csv: a file is there that holds no predictions of a fitted"),
    ("predict model file.csv --out empty", "--out empty: cannot be written: Is a directory"),
    ("plan absent.yaml --gpus 8 --gpu H100", "absent.yaml: cannot read the config file"),
    ("plan good.yaml --gpus 8 --gpu nonsense", "--gpu nonsense is not known; nearest: GB200, "),
    ("plan good.yaml --gpus 3 --gpu H100", "--gpus 3 does not divide global_batch_size=8; nearest that do: 2, 4"),
    ("doctor absent.yaml", "absent.yaml: cannot read the config file"),
    ("doctor --path absent", "--path absent is no folder"),
    ("launch torchrun good.yaml --nodes x", "nodes=x: expected a number"),
    ("launch slurm good.yaml --nodes 3 --gpus-per-node 3", "global_batch_size=8 is not divisible by the 9"),
    ("launch accelerate absent.yaml", "absent.yaml: cannot read the config file"),
    ("launch files empty", "empty is there already"),
    ("zeroshot absent set", "absent: no such folder; give a run folder, a checkpoint, an export, a model of"),
    ("zeroshot empty set", "empty is neither a run folder, nor a checkpoint, nor an export, nor a model of"),
    ("zeroshot begun set", "begun: the run has no good checkpoint; train until its first save"),
    ("zeroshot model absent", "absent: no such folder or file; give a wds_* folder, a folder for each class"),
    ("zeroshot model set --json empty", "--json empty: cannot be written: Is a directory"),
    ("zeroshot model set --json file/a/b.json", "--json file/a/b.json: cannot be written: Not a directory"),
    ("plan good.yaml --gpus 8 --gpu H100 --json empty", "--json empty: cannot be written: Is a directory"),
    ("doctor --json file/x", "--json file/x: cannot be written: Not a directory"),
    ("data check set/test --report empty", "--report empty: cannot be written: Is a directory"),
    ("data stats set/test --out file", "--out file/stats.json: cannot be written: Not a directory"),
    ("classify absent set/test --classes a,b", "absent: no such folder"),
    ("classify model absent --classes a,b", "absent: no such file or folder"),
    ("classify model empty --classes a,b", "empty holds neither pictures nor a table"),
    ("classify model set/test --classes absent.txt", "--classes absent.txt: no such file or folder"),
    ("classify model set/test --classes empty", "--classes empty has no classnames.txt, and is no set that has"),
    ("classify model set/test --classes a", "--classes: 'a' alone would have every picture"),
    ("classify model set/test --classes a,A", "--classes: 'A' stands twice"),
    ("classify model set/test --classes a,,b", "--classes: entry 2 is blank"),
    ("classify model set/test --classes a,b --templates a", "--templates 'a' is no file, and lacks {c}"),
    ("classify model set/test --classes a,b --json empty", "--json empty: cannot be written: Is a directory"),
    ("classify model set/test --classes a,b --json good.yaml", "--json good.yaml: a file is there that holds no JSON"),
    ("classify model set/test --classes a,b --csv good.yaml", "--csv good.yaml: a file is there that holds no classes"),
    ("classify model set/test --classes a,b --html good.yaml", "good.yaml is there, and clipx did not write it"),
    ("classify model set/test --classes a,b --json x --html x", "--html x is the file of --json, too; name another"),
    ("zeroshot model set --json good.yaml", "--json good.yaml: a file is there that holds no JSON"),
    ("zeroshot model set --json x --csv empty/../x", "--csv empty/../x is the file of --json, too; name another"),
    ("zeroshot model set empty", "empty holds neither pictures nor a table"),
    ("zeroshot model file.csv", "file.csv: its labels are numbers (0, 1), whose names are not known; put classnames"),
    ("zeroshot model folders", "folders has no split 'test': it has train; name one of them"),
    ("train good.yaml evaluate.e={type:\xa0zeroshot,\xa0data:\xa0file.csv}", "file.csv: its labels are numbers (0, 1)"),
    ("data make file.csv --out out", "the source: its labels are numbers (0, 1), whose names are not known"),
    ("data make file.csv --out out --label-column x", "file.csv has no column 'x'; name one of path, label with"),
    ("data make file.csv --out out --class-folders", "file.csv: --class-folders has no meaning for such a source"),
    ("embed absent set/test --out out", "absent: no such folder; give a run folder, a checkpoint, an export"),
    ("embed model absent.png --out out", "absent.png: no such file or folder"),
    ("embed model empty --out out", "empty holds neither pictures nor a table"),
    ("embed model set/test --out file", "--out file cannot be used: file is no folder"),
    ("embed model set/test --out out --reduce 128", "--reduce 128: write it as pca:K with the number of components"),
    ("search absent cat", "absent holds no embeddings; make some: clipx embed MODEL INPUT ... --out absent"),
    ("search empty cat", "empty holds no embeddings; make some"),
    ("search empty cat --index annoy:5", "--index annoy:5: write faiss:FACTORY, e.g. faiss:IVF256,Flat"),
    ("search empty cat -k 0", "Invalid value for '-k'"),
    ("search empty --serve --port 70000", "Invalid value for '--port'"),
    ("average model --to out", "1 MODEL has no average; give several, or one and --with START"),
    ("average model model --to out --weights 1", "--weights 1: 1 numbers for 2 models; give one for each"),
    ("average model --with model --to out --alpha -0.5", "alpha -0.5 lies outside 0 to 1"),
    ("average model --with model --to out --alphas -1,-0.5,...,1", "alpha -1 lies outside 0 to 1"),
    ("average model --with model --to out --alpha 1 --alphas 0,1", "--alpha is one way to go, --alphas several"),
    ("average model --with model --to out --alphas 0,0.5,...,1", "--alphas needs something to choose by"),
    ("average model --with model --to out --alphas 0,1 --on absent", "absent: no such folder or file; give a wds_"),
    ("average model model set --to out --greedy --on set", "set is an evaluation set and no model; give --on before"),
    ("average model absent --to out", "absent: no such folder"),
    ("average model --with file --alpha 0 --to out", "file: is a file"),
    ("average model model --to file", "file is a file; name a folder for the average"),
    (
        "average model model --to set",
        "set holds classnames.txt, test, zeroshot_classification_templates.txt, which no average wrote",
    ),
    ("export model --to out --format nonsense", "formats nonsense: known are hf, open_clip, onnx, pt2"),
    ("export absent --to out", "absent: no such folder"),
    ("export file --to out", "file: is a file"),
    (
        "export model --to set",
        "set holds classnames.txt, test, zeroshot_classification_templates.txt, which no export wrote",
    ),
    ("export hf://org/name --to out", "hf://org/name is not in the cache (HF_HOME), and HF_HUB_OFFLINE forbids to"),
    ("train good.yaml start_from=hf://org/name@v2", "start_from: hf://org/name@v2 is not in the cache (HF_HOME), and"),
    ("config good.yaml model=null start_from=absent", "start_from: absent: no such folder"),
    ("push empty hf://org/name", "empty is no export: it has no parity.json that holds"),
    ("push empty org/name", "org/name is no model at the hub; give hf://ORG/NAME"),
    ("config absent.yaml", "absent.yaml: cannot read the config file"),
    ("config good.yaml steps=many", "steps=many: expected integer >= 1 or null"),
    ("data make absent --out out", "absent: no such file or folder"),
    ("data index absent.tar", "shards 'absent.tar' match no tar file"),
    ("data index set --caption-key txt", "--caption-key says what a filter looks at"),
    ("data index set --keys absent.txt", "list of keys absent.txt cannot be read"),
    ("data check absent.tar", "shards 'absent.tar' match no tar file"),
    ("data check absent.yaml", "absent.yaml: cannot read the config file"),
    ("data stats absent.tar", "shards 'absent.tar' match no tar file"),
    ("data stats bad.yaml", "shards 'absent.tar' match no tar file"),
    ("data show absent.yaml", "absent.yaml: cannot read the config file"),
    ("data show bad.yaml", "shards 'absent.tar' match no tar file"),
    ("data show good.yaml --out empty", "--out empty: cannot be written: Is a directory"),
    ("data show good.yaml --out file", "file is there, and clipx did not write it"),
    ("data show tiny", "shards 'data/scenes/train' match no tar file"),
    ("data stats tiny", "shards 'data/scenes/train' match no tar file"),
    ("data check tiny", "shards 'data/scenes/train' match no tar file"),
    ("data stats set/test --out theirs", "theirs/stats.json is there, and clipx did not write it"),
    ("data check set/test --repair file", "--repair file cannot be used: file is no folder"),
    ("data check set/test --repair file/a", "--repair file/a cannot be used: "),
    ("data index set/test --out file --where width>3", "--out file cannot be used: file is no folder"),
    ("train good.yaml run_dir=file", "run_dir file cannot be used: file is no folder; choose another"),
    ("train good.yaml checkpoint.folder=file/a", "checkpoint.folder file/a cannot be used: "),
    ("train good.yaml data.captions_per_image=3", "global_batch_size=8 is not divisible by the 1 processes with 3"),
    (
        "train good.yaml stages.a.until_step=5 stages.b.until_step=5",
        "stages a and b both end at step 5; give them different ends",
    ),
    ("launch slurm good.yaml --sbatch 'a", "--sbatch 'a: No closing quotation; quote as in a shell"),
    ("launch accelerate good.yaml --accelerate 'a", "--accelerate 'a: No closing quotation"),
    ("report absent", "absent: no such folder; give a run folder"),
    ("report file", "file: is a file; give a run folder"),
    ("report empty", "empty is no run folder: it has no metrics.jsonl, status.json or config.yaml"),
    ("report model", "model is a model and no run folder"),
    ("report begun --out file", "file is there, and clipx did not write it"),
    ("report begun --out empty", "empty is a folder; name a file"),
    ("report begun --out file/a.html", "file/a.html cannot be written: "),
    ("report begun --on absent", "absent: no such folder"),
    ("report begun --on set --no-pictures", "--on set shows pictures of a set; leave out --no-pictures"),
    ("compare begun", "begun: a comparison needs two runs or more; name another"),
    ("compare begun begun", "begun is named twice; name each run once"),
    ("compare begun empty", "empty is no run folder"),
    ("compare begun absent --out file", "file is there, and clipx did not write it"),
    ("data teach absent.tar --model model --out out", "shards 'absent.tar' match no tar file"),
    ("data teach bad.yaml --model model --out out", "shards 'absent.tar' match no tar file"),
    ("data teach set/test --model absent --out out", "absent: no such folder; give a run folder, a checkpoint"),
    ("data teach set/test --model model --out file", "--out file cannot be used: file is no folder"),
    ("data teach set/test --model model --model model --out out", "--model: two teachers are called 'model'; name"),
    ("data teach set/test --model model --out out --views 0", "Invalid value for '--views'"),
    ("data teach good.yaml --model model --out out --image-key png", "--image-key goes with shards; to a config add"),
    ("train good.yaml data.teachers=absent", "data.teachers=absent is not there; name the --out of a `clipx"),
    ("train good.yaml data.teachers=empty", "data.teachers=empty holds no teachers' embeddings; name the --out of"),
    ("data synth --out empty", "empty exists"),
    ("data synth --out new --size 3", "Invalid value for '--size'"),
]


def commands(command: Any, *names: str) -> Iterator[str]:
    inner = getattr(command, "commands", {})
    for name in inner:
        yield from commands(inner[name], *names, name)
    if not inner:
        yield " ".join(names)


def test_every_command_is_tried() -> None:
    tried = [case for case, _ in CASES]
    names = commands(typer.main.get_command(app))
    assert [name for name in names if not any(f"{name} " in case for case in tried)] == []


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, str, str]]:
    """Exit code, stdout and stderr of every case."""
    folder = tmp_path_factory.mktemp("cwd")
    scenes = write_scenes(folder / "scenes", num_train=2)
    (folder / "file").write_text("no folder")
    (folder / "file.csv").write_text("path,label\na.png,0\nb.png,1\n")
    (folder / "folders" / "train" / "cat").mkdir(parents=True)
    (folder / "folders" / "train" / "cat" / "a.png").write_bytes(b"")
    (folder / "empty").mkdir()
    (folder / "theirs").mkdir()
    (folder / "theirs" / "stats.json").write_text("{}")
    (folder / "set").symlink_to(scenes / "wds_scenes")
    (folder / "good.yaml").write_text(CONFIG.replace("SHARDS", str(scenes / "train")))
    (folder / "bad.yaml").write_text(CONFIG.replace("SHARDS", "absent.tar"))
    (folder / "begun" / "checkpoints").mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "model" / "clipx_config.yaml").write_text(CONFIG)
    runs = [[word.replace("\xa0", " ") for word in case.split(" ")] for case, _ in CASES]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        env=os.environ | {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"},
        input=json.dumps([HEAVY, runs]),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip((case for case, _ in CASES), map(tuple, json.loads(done.stdout)), strict=True))


@pytest.mark.parametrize(("case", "message"), CASES)
def test_it_is_said_at_once(found: dict[str, tuple[Any, str, str]], case: str, message: str) -> None:
    code, out, err = found[case]
    assert (code, out) == (2, "")
    assert err.startswith(f"clipx: error: {message}")
    assert err.count("\n") == 1


def test_a_failed_start_says_so_in_its_folder(found: dict[str, tuple[Any, str, str]], tmp_path: Path) -> None:
    """As every start that fails; what waits for the run reads it there."""
    (tmp_path / "bad.yaml").write_text(CONFIG.replace("SHARDS", "absent.tar"))
    command = [sys.executable, "-m", "clipx", "train", "bad.yaml"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 2
    status = json.loads((tmp_path / "runs" / "x" / "status.json").read_text())
    assert (status["status"], status["step"], status["exit_code"]) == ("failed", 0, 2)
    assert "shards 'absent.tar' match no tar file" in status["reason"]
