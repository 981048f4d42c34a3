"""clipx as a library: what `import clipx` offers. docs/python.md is run by test_docs_pages.py."""

import ast
import logging
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import losses, tiny_config, write_scenes

import clipx
from clipx.config.schema import RunConfig

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python.md"


def test_the_page_names_what_clipx_offers() -> None:
    [listed] = re.findall(r"with types:\n(.*?)\.\n", PAGE.read_text(), re.DOTALL)
    assert {*re.findall(r"`(\w+)`", listed), "ClipxError", "__version__"} == set(clipx.__all__)


class TestNames:
    def test_all_are_there_for_people_and_for_type_checkers(self) -> None:
        tree = ast.parse((ROOT / "clipx" / "__init__.py").read_text())
        [checked] = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
        typed = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in checked.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert {*typed, "__version__"} == set(clipx.__all__) == set(dir(clipx))
        for name, (module, original) in typed.items():
            if name != "train":
                assert getattr(clipx, name) is getattr(sys.modules[module or ""], original)
        with pytest.raises(AttributeError, match="no attribute 'lode'"):
            clipx.lode  # type: ignore[attr-defined] # noqa: B018

    def test_importing_and_loading_a_config_needs_no_torch(self) -> None:
        code = (
            "import sys, clipx; dir(clipx); clipx.train; clipx.load_config('tiny'); clipx.RunError\n"
            "assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_the_package_of_training_is_the_function_too(self) -> None:
        names: dict[str, object] = {}
        exec("from clipx import *; import clipx.train.trainer", names)
        assert names["train"] is clipx.train is sys.modules["clipx.train"]
        assert callable(clipx.train)


class TestLoadConfig:
    def test_one_file_or_many_one_override_or_many(self, tmp_path: Path) -> None:
        config = clipx.load_config("tiny", "seed=3")
        assert config == clipx.load_config(["tiny"], ["seed=3"])
        assert config == clipx.load_config(ROOT / "configs" / "tiny.yaml", ["seed=3"])
        path = tmp_path / "a.yaml"
        path.write_text(clipx.dump_config(config))
        assert clipx.load_config(str(path)) == config
        assert isinstance(config, RunConfig)

    def test_overlays_come_with_clipx_too(self) -> None:
        folder = ROOT / "configs"
        names = ["vit_b16_datacomp_large_16xh100", "overlays/patch_drop"]
        assert clipx.load_config(names) == clipx.load_config([folder / f"{name}.yaml" for name in names])

    def test_a_file_that_is_there_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "tiny").write_text(clipx.dump_config(clipx.load_config("tiny", "seed=9")))
        assert clipx.load_config("tiny").seed == 9


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=48) / "train"


class TestTrain:
    def test_a_stop_says_again_and_the_next_call_goes_on(self, tmp_path: Path, shards: Path) -> None:
        config = tiny_config(tmp_path / "run", shards, "steps=4")
        assert clipx.train(replace(config, max_minutes=1e-6)) is clipx.Status.AGAIN
        assert len(losses(tmp_path / "run")) < 4
        assert clipx.train(config) is clipx.Status.COMPLETE
        assert len(losses(tmp_path / "run")) == 4
        assert clipx.train(config) is clipx.Status.COMPLETE

    def test_it_leaves_signals_and_logging_as_they_were(
        self, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = logging.getLogger()
        monkeypatch.setattr(root, "handlers", [])  # as in a notebook, and not as under pytest
        root.setLevel(logging.WARNING)
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
        clipx.train(tiny_config(tmp_path / "run", shards, "steps=1"))
        assert (root.handlers, root.level) == ([], logging.WARNING)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before

    def test_it_trains_in_another_thread(self, tmp_path: Path, shards: Path) -> None:
        ends = []
        config = tiny_config(tmp_path / "run", shards, "steps=2")
        thread = threading.Thread(target=lambda: ends.append(clipx.train(config)))
        thread.start()
        thread.join()
        assert ends == [clipx.Status.COMPLETE]

    @pytest.mark.parametrize("config", ["tiny.yaml", {"steps": 3}, None])
    def test_what_is_no_config_is_said(self, config: object) -> None:
        with pytest.raises(clipx.InputError, match=r"a RunConfig or a FitConfig, not .*; clipx\.load_config makes"):
            clipx.train(config)  # type: ignore[arg-type]

    def test_what_is_wrong_is_an_error_and_no_exit(self, tmp_path: Path) -> None:
        with pytest.raises(clipx.InputError, match="match no tar file"):
            clipx.train(tiny_config(tmp_path / "run", tmp_path / "absent.tar"))
