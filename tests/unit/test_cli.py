"""The command line: what it accepts, how it fails, what it leaves to the library."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
import typer.rich_utils

from clipx import cli
from clipx.cli import output
from clipx.config.load import load_config
from clipx.errors import InputError, RunError
from clipx.export.options import ExportOptions

CONFIG = """
run_dir: runs/x
steps: 10
global_batch_size: 8
data: {train: [a.tar]}
model: {image: {name: vit_base_patch32_clip_224}}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.replace("a.tar", str(tmp_path / "a.tar")))
    (tmp_path / "a.tar").touch()
    return path


@pytest.fixture
def clipx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `clipx ARGUMENTS` in this process; gives exit code, stdout, stderr."""
    for name in ("CLIPX_DEBUG", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipx", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        output = capsys.readouterr()
        code = exit_info.value.code
        assert isinstance(code, int)
        return code, output.out, output.err

    return run


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch):
    """Puts a function in place of one of the library's, in a module made for the test."""

    def replace(module_name: str, **functions: Any) -> None:
        module = ModuleType(module_name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, module_name, module)

    return replace


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch):
    """Lets checks of what the arguments name find everything."""

    def pass_all(*checks: str, of: ModuleType = cli) -> None:
        for name in checks:
            monkeypatch.setattr(of, name, lambda path: None)

    return pass_all


class TestConfig:
    def test_prints_what_the_run_would_have(self, clipx, config_file: Path, tmp_path: Path) -> None:
        overlay = tmp_path / "overlay.yml"
        overlay.write_text("seed: 3")
        code, out, err = clipx("config", config_file, overlay, "optim.lr=1e-3")
        assert (code, err) == (0, "")
        resolved = tmp_path / "resolved.yaml"
        resolved.write_text(out)
        assert load_config([resolved]) == load_config([config_file, overlay], ["optim.lr=1e-3"])

    def test_describe_and_json_schema_need_no_file(self, clipx) -> None:
        code, out, _ = clipx("config", "--describe")
        assert code == 0
        assert "data.lanes=auto" in out
        code, out, _ = clipx("config", "--json-schema")
        assert code == 0
        schema = json.loads(out)
        assert all("global_batch_size" in schema[job]["properties"] for job in ("then", "else"))

    def test_a_path_with_an_equals_sign_is_a_file(self, clipx, tmp_path: Path) -> None:
        folder = tmp_path / "lr=3"
        folder.mkdir()
        (folder / "a.yaml").write_text(CONFIG)
        assert clipx("config", folder / "a.yaml", "run_dir=b.yaml")[1].startswith("job: pretrain\nrun_dir: b.yaml\n")


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["config", "nope.yaml"], "nope.yaml: cannot read the config file: No such file or directory"),
            (["config", "nope"], "'nope' is neither a config file (.yaml, .yml) nor an override (key=value)"),
            (["config", "seed=1"], "no config file given: name at least one .yaml file"),
            (["config", "--bar"], "No such option: --bar; see `clipx config --help`"),
            (["trian"], "No such command 'trian'"),
            (["train"], "Missing argument 'CONFIG.yaml|KEY=VALUE'; see `clipx train --help`"),
            (["data", "synth", "--out", "a", "--size", "x"], "Invalid value for '--size'"),
            (["data", "synth", "--out", "a", "--seed", "-1"], "Invalid value for '--seed'"),
        ],
    )
    def test_bad_input_is_one_line_and_exit_code_2(self, clipx, arguments: list[str], message: str) -> None:
        code, out, err = clipx(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"clipx: error: {message}")
        assert err.count("\n") == 1

    def test_every_problem_of_a_config_is_a_line(self, clipx, config_file: Path) -> None:
        code, _, err = clipx("config", config_file, "data.worker=3", "lr=1")
        assert code == 2
        assert err.splitlines() == [
            "clipx: error: data.worker=3: unknown key; the nearest known is data.workers",
            "clipx: error: lr=1: unknown key; the nearest known is optim.lr",
        ]

    @pytest.mark.parametrize("place", ["front", "end", "environment"])
    def test_debug_shows_the_traceback(self, clipx, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
        if place == "environment":
            monkeypatch.setenv("CLIPX_DEBUG", "1")
        arguments = ["config", "nope.yaml"]
        code, _, err = clipx(*["--debug"] * (place == "front"), *arguments, *["--debug"] * (place == "end"))
        assert code == 2
        assert "Traceback" in err
        assert "FileNotFoundError" in err
        assert err.splitlines()[-1].startswith("clipx: error: nope.yaml")

    @pytest.mark.parametrize(("error", "expected"), [(InputError("a"), 2), (RunError("a"), 1)])
    def test_exit_code_of_the_library_s_errors(
        self, clipx, library, config_file, error: Exception, expected: int
    ) -> None:
        def fail(config: object) -> int:
            raise error

        library("clipx.train.trainer", train=fail)
        assert clipx("train", config_file) == (expected, "", "clipx: error: a\n")

    def test_several_ranks_say_which_they_are(self, clipx, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "3")
        monkeypatch.setenv("WORLD_SIZE", "4")
        assert clipx("config", "a")[2].startswith("clipx: error: [rank 3] 'a' is neither")

    @pytest.mark.parametrize("world_size", ["2", "two"])
    def test_a_half_set_launcher_environment_hides_no_error(
        self, clipx, monkeypatch: pytest.MonkeyPatch, world_size: str
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
        assert clipx("config", "a")[2].startswith("clipx: error: [rank ?] 'a' is neither")

    @pytest.mark.parametrize("on_terminal", [True, False])
    def test_unexpected_errors_are_short_on_a_terminal_and_whole_in_a_log(
        self, clipx, library, config_file: Path, monkeypatch: pytest.MonkeyPatch, on_terminal: bool
    ) -> None:
        def fail(config: object) -> int:
            raise KeyError("weights")

        library("clipx.train.trainer", train=fail)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: on_terminal)
        code, _, err = clipx("train", config_file)
        assert code == 1
        assert ("Traceback" in err) is not on_terminal
        hint = "; --debug shows where" if on_terminal else ""
        assert err.splitlines()[-1] == f"clipx: error: unexpected KeyError: 'weights'{hint}"

    def test_a_closed_pipe_and_ctrl_c_are_quiet(self, clipx, library, config_file: Path) -> None:
        def interrupt(config: object) -> int:
            raise KeyboardInterrupt

        library("clipx.train.trainer", train=interrupt)
        code, _, err = clipx("train", config_file)
        assert (code, err) == (130, "")
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "clipx", "config", str(config_file)]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, "")


class TestCommands:
    def test_train_hands_over_the_config_and_the_exit_code(self, clipx, library, config_file: Path) -> None:
        seen = []
        library("clipx.train.trainer", train=lambda config: seen.append(config) or 85)
        assert clipx("train", config_file, "seed=7") == (85, "", "")
        assert seen == [load_config([config_file], ["seed=7"])]

    def test_export_splits_the_formats(self, clipx, library, there) -> None:
        seen = []

        def export_model(*arguments, **options):
            seen.append((*arguments, options))
            return {"hf": 1e-6}

        there("require_model", "require_pictures", of=sys.modules["clipx.cli.export"])
        library("clipx.export.run", export_model=export_model)
        chosen = ("--weights", "trained", "--only", "image", "--dtype", "fp16", "--pictures", "shards", "--json")
        code, out, _ = clipx("export", "runs/x", "--to", "out", "--format", "hf, onnx", *chosen)
        assert code == 0
        assert json.loads(out) == {"hf": 1e-6}
        options = {"weights": "trained", "options": ExportOptions(only="image", dtype="fp16"), "pictures": "shards"}
        assert seen == [(Path("runs/x"), Path("out"), ["hf", "onnx"], options)]

    def test_export_shows_who_computes_what(self, clipx, library, there) -> None:
        compared = {
            "checked": True,
            "limit": 1e-4,
            "pictures": 7,
            "same_crop": 0.81,
            "texts": 9,
            "same_token_ids": 1.0,
            "largest_difference": {"pixels": 2e-7, "image_embeddings": 9e-8},
            "other_crop": {"pictures": 2, "lowest_cosine": 0.864},
            "other_best_text": 3,
        }
        consumers = {"CLIPModel": compared, "absent": {"checked": False, "reason": "not installed"}}
        parity = {"consumers": consumers, "pictures": 7, "texts": 9, "compared_on": "drawn by clipx"}
        there("require_model", of=sys.modules["clipx.cli.export"])
        library("clipx.export.run", export_model=lambda *_, **__: parity)
        code, out, err = clipx("export", "runs/x", "--to", "out")
        assert (code, err) == (0, "")
        words = " ".join(out.split())
        for word in ("CLIPModel", "81.0%", "100.0%", "2.0e-07", "0.864", "absent", "not compared", "drawn by clipx"):
            assert word in words

    def test_average_hands_over_numbers_and_prints_what_was_kept(
        self, clipx, library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("require_model", "require_evaluation_set"):
            monkeypatch.setattr(sys.modules["clipx.cli.average"], name, lambda *_: None)
        rows = [{"alpha": alpha, "scores": {"d/wds_a": alpha}, "mean": alpha} for alpha in (0.25, 0.5)]
        record = {"models": [], "start": {"model": "runs/s"}, "alpha": 0.5, "alphas": rows}
        seen = []

        def average_models(options, to, **_):
            seen.append(options)
            return record

        library("clipx.average.run", average_models=average_models)
        there = ("average", "runs/x", "--to", tmp_path / "to", "--json", tmp_path / "figures.json")
        way = ("--with", "runs/s", "--alphas", "0.25,0.5", "--on", "d/wds_a", "--take", "trained")
        code, out, err = clipx(*there, *way)
        assert (code, err) == (0, "")
        assert re.search(r"0\.5 +│ +50\.00% +│ +50\.00% +│ +kept", out)
        assert "to: alpha 0.5 from runs/s" in "".join(out.split("\n"))
        assert json.loads((tmp_path / "figures.json").read_text()) == record
        alone = {"scores": {"d/wds_a": 0.5}, "mean_with_it": 0.75}
        record = {
            "models": [
                {"model": "a", "taken": True, "share": 1.0, **alone},
                {"model": "b", "taken": False, "share": 0.0, **alone},
            ],
            "mean": 0.75,
        }
        code, out, err = clipx("average", "a", "b", "--to", tmp_path / "to", "--greedy", "--on", "d/wds_a")
        assert re.search(r"a +│ +50\.00% +│ +75\.00% +│ +taken", out)
        assert "to: a 1" in "".join(out.split("\n"))
        record = {"models": [{"model": "a", "share": 0.25}, {"model": "b", "share": 0.75}]}
        code, out, err = clipx("average", "a", "b", "--to", tmp_path / "to", "--weights", "1,3")
        assert "to: a 0.25, b 0.75" in "".join(out.split("\n"))
        assert [options.alphas for options in seen] == [(0.25, 0.5), (), ()]
        assert [options.weights for options in seen] == [None, None, (1.0, 3.0)]
        assert (seen[0].start, seen[0].on, seen[0].take) == (Path("runs/s"), (Path("d/wds_a"),), "trained")
        assert seen[1].greedy

    def test_demo_runs_in_the_folder_given(self, clipx, library) -> None:
        seen = []
        library("clipx.demo.run", run_demo=lambda out: seen.append(out) or 0)
        assert clipx("demo", "--out", "runs/here")[0] == 0
        assert seen == [Path("runs/here")]

    def test_synth_then_index(self, clipx, tmp_path: Path) -> None:
        out = tmp_path / "scenes"
        code, _, err = clipx("data", "synth", "--out", out, "--train", 5, "--eval-per-class", 1, "--shard-size", 3)
        assert (code, err) == (0, "")
        code, text, _ = clipx("data", "index", out / "train", "--out", tmp_path / "index")
        assert (code, text.strip()) == (0, "2 shards, 5 samples")
        assert any((tmp_path / "index").iterdir())
        assert clipx("data", "synth", "--out", out)[0] == 2

    def test_synth_writes_a_table_instead(self, clipx, tmp_path: Path) -> None:
        out = tmp_path / "products"
        options = ("--out", out, "--table", "--train", 5, "--eval-per-class", 1, "--size", 16)
        assert clipx("data", "synth", *options) == (0, f"wrote {out}\n", "")
        assert [len((out / f"{name}.csv").read_text().splitlines()) for name in ("train", "test")] == [1 + 5, 1 + 48]
        code, _, err = clipx("data", "synth", *options, "--shard-size", 3)
        assert (code, err) == (2, "clipx: error: --shard-size is for shards; leave it out with --table\n")


@pytest.mark.parametrize(
    "command", ["", "demo", "train", "zeroshot", "average", "export", "config", "data", "data index", "data synth"]
)
def test_help_of_every_command(clipx, command: str) -> None:
    code, out, err = clipx(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert f"Usage: clipx {command}".strip() in out


class TestCompletion:
    @pytest.mark.parametrize(
        ("typed", "offered"),
        [("clipx tr", "train"), ("clipx data st", "stats"), ("clipx export model --w", "--weights")],
    )
    def test_the_shell_is_told(self, clipx, monkeypatch: pytest.MonkeyPatch, typed: str, offered: str) -> None:
        monkeypatch.setenv("_CLIPX_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
        code, out, err = clipx()
        assert (code, out.split(), err) == (0, [offered], "")

    def test_it_is_installed_where_the_shell_looks(self, clipx, monkeypatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # the shell is named instead
        code, out, err = clipx("--install-completion", "bash")
        assert (code, err) == (0, "")
        script = tmp_path / ".bash_completions" / "clipx.sh"
        assert str(script) in out
        assert "_CLIPX_COMPLETE=complete_bash" in script.read_text()
        assert str(script) in (tmp_path / ".bashrc").read_text()

    def test_it_imports_nothing_that_takes_time(self) -> None:
        code = "import sys, clipx.cli; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pydantic')))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version(clipx) -> None:
    assert clipx("--version") == (0, f"clipx {version('clipx-train')}\n", "")


def test_no_command_shows_the_help(clipx) -> None:
    for command in ((), ("data",)):
        code, out, err = clipx(*command)
        assert code == 2
        assert "Commands" in out or "Train" in out
        assert err == ""


def test_figures_replace_figures_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    for before in ("", "{}\n", '{"a": 1}\n{"b": 2}\n'):
        path.write_text(before)
        output.write_json(path, {"acc1": 0.5})
        assert json.loads(path.read_text()) == {"acc1": 0.5}
    for mine in ("import os\n", "run_dir: runs/x\n", "\x89PNG"):
        path.write_text(mine)
        with pytest.raises(InputError, match=r"--json .*out\.json: a file is there that holds no JSON, and is not"):
            output.write_json(path, {})
        assert path.read_text() == mine
    output.write_json(Path("/dev/null"), {})


def named(command: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield names, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from named(inner, *names, name)


@pytest.mark.parametrize(("names", "command"), named(typer.main.get_command(cli.app)))
def test_help_shows_every_character_of_its_texts(
    clipx, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], command: Any
) -> None:
    """Markdown would take *.json and *.csv for emphasis."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(typer.rich_utils, "MAX_WIDTH", 300)
    shown = re.sub(r"[\s│]", "", clipx(*names, "--help")[1])
    for text in filter(None, (command.help, *(option.help for option in command.params))):
        for paragraph in re.split(r"\n\s*\n|\f", text):
            assert re.sub(r"[\s`]", "", paragraph) in shown
