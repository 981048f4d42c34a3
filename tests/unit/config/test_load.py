"""Files and overrides to a RunConfig: merging, types, and one clear line per mistake."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from clipx.config.evaluate import ZeroShotConfig
from clipx.config.load import dump_config, load_config
from clipx.config.loss import InfoNCEConfig, SigmoidConfig
from clipx.config.model import TransformerTextConfig
from clipx.config.optim import MuonConfig, TimmOptimConfig, TowerOptimConfig
from clipx.config.schema import RunConfig
from clipx.errors import InputError

BASE = """
run_dir: runs/x
steps: 10
global_batch_size: 8
data: {train: [a.tar]}
model: {image: {name: vit_base_patch32_clip_224}}
"""


@pytest.fixture
def load(tmp_path: Path):
    """Loads texts as files, in order, after the base; keyword `overrides`."""

    def run(*texts: str, base: str = BASE, overrides: tuple[str, ...] = ()) -> RunConfig:
        paths = []
        for number, text in enumerate((base, *texts)):
            paths.append(tmp_path / f"{number}.yaml")
            paths[-1].write_text(text)
        return load_config(paths, overrides)

    return run


@pytest.fixture
def problems(load):
    """The lines of the error that loading gives."""

    def run(*texts: str, base: str = BASE, overrides: tuple[str, ...] = ()) -> list[str]:
        with pytest.raises(InputError) as caught:
            load(*texts, base=base, overrides=overrides)
        return str(caught.value).splitlines()

    return run


class TestMerge:
    def test_defaults_stand_where_nothing_is_said(self, load) -> None:
        config = load()
        assert config.loss == InfoNCEConfig()
        assert config.model.text == TransformerTextConfig()
        assert config.optim.lr == 5e-4

    def test_mappings_merge_deeply_and_lists_replace(self, load) -> None:
        config = load("data: {train: [b.tar, c.tar]}", "data: {workers: 7}\noptim: {lr: 0.1}", "optim: {eps: 0.5}")
        assert config.data.train == ["b.tar", "c.tar"]
        assert config.data.workers == 7
        assert (config.optim.lr, config.optim.eps) == (0.1, 0.5)

    def test_later_file_wins_and_overrides_win_over_files(self, load) -> None:
        assert load("seed: 1", "seed: 2").seed == 2
        assert load("seed: 1", overrides=("seed=3", "seed=4")).seed == 4

    def test_free_options_are_one_value(self, load) -> None:
        base = BASE.replace("vit_base_patch32_clip_224", "a, options: {depth: 1, patch_size: 8}")
        assert load("model: {image: {options: {depth: 2}}}", base=base).model.image.options == {"depth": 2}
        assert load(base=base, overrides=("model.image.options={}",)).model.image.options == {}
        assert load("model: {image: {image_size: 32}}", base=base).model.image.options == {"depth": 1, "patch_size": 8}

    def test_changed_type_replaces_the_node(self, load) -> None:
        text = "model: {init_logit_bias: -10, text: {type: transformer, width: 64, heads: 2}}\n"
        config = load(
            text,
            "model: {text: {type: huggingface, name: bert}}\nloss: {type: sigmoid}",
            overrides=("loss.tile_size=2",),
        )
        assert config.loss == SigmoidConfig(tile_size=2)
        assert config.model.text.type == "huggingface"

    def test_what_all_variants_share_stays(self, load) -> None:
        said = "optim: {lr: 1e-3, warmup_steps: 7, schedule: constant, image: {lr_scale: 0.1}, betas: [0.5, 0.6]}"
        config = load(said, "optim: {type: muon, image: {layer_decay: 0.5}}")
        kept = {"lr": 1e-3, "warmup_steps": 7, "schedule": "constant"}
        assert config.optim == MuonConfig(**kept, image=TowerOptimConfig(lr_scale=0.1, layer_decay=0.5))
        assert load(said, overrides=("optim.type=timm", "optim.name=lion", "optim.lr=2e-4")).optim == TimmOptimConfig(
            **{**kept, "lr": 2e-4}, name="lion", image=TowerOptimConfig(lr_scale=0.1)
        )

    @pytest.mark.parametrize("given", ["muons", "[muon]", "null"])
    def test_a_type_that_is_none_names_those_that_are(self, problems, given: str) -> None:
        (line,) = problems("optim: {lr: 1e-3}", f"optim: {{type: {given}}}")
        assert "expected adamw or stable_adamw or muon or timm" in line

    def test_same_type_keeps_the_fields(self, load) -> None:
        config = load("loss: {type: info_nce, tile_size: 4}", "loss: {type: info_nce}")
        assert config.loss == InfoNCEConfig(tile_size=4)

    def test_unwritten_default_type_counts_as_written(self, load) -> None:
        assert load("loss: {tile_size: 4}").loss == InfoNCEConfig(tile_size=4)
        changed = load("loss: {tile_size: 4}\nmodel: {init_logit_bias: -10}", overrides=("loss.type=sigmoid",))
        assert changed.loss == SigmoidConfig()
        assert load("model: {text: {width: 64}}").model.text == TransformerTextConfig(width=64)

    def test_overlay_without_type_keeps_the_chosen_variant(self, load) -> None:
        config = load("loss: {type: sigmoid}\nmodel: {init_logit_bias: -10}", "loss: {tile_size: 4}")
        assert config.loss == SigmoidConfig(tile_size=4)

    def test_order_of_overrides_does_not_matter(self, load) -> None:
        overrides = ("loss.tile_size=4", "loss.type=sigmoid", "model.init_logit_bias=-10")
        assert load(overrides=overrides) == load(overrides=tuple(reversed(overrides)))

    def test_files_are_not_changed_by_later_layers(self, load) -> None:
        shared = "evaluate:\n  a: &a {type: zeroshot, data: x}\n  b: *a\n"
        config = load(shared, overrides=("evaluate.b.data=y",))
        assert config.evaluate == {"a": ZeroShotConfig(data="x"), "b": ZeroShotConfig(data="y")}

    def test_empty_file_changes_nothing(self, load) -> None:
        assert load("", "# only a comment\n") == load()


class TestValues:
    @pytest.mark.parametrize("text", ["3e-4", "3E-4", "0.0003", ".0003", "3.e-4", "+3.0e-04"])
    def test_floats_in_files_and_overrides(self, load, text: str) -> None:
        assert load(f"optim: {{lr: {text}}}").optim.lr == pytest.approx(3e-4, rel=1e-15)
        assert load(overrides=(f"optim.lr={text}",)).optim.lr == pytest.approx(3e-4, rel=1e-15)

    def test_floats_inside_free_options(self, load) -> None:
        config = load(overrides=("model.image.options={init_values: 1e-5, depth: 010, act: no}",))
        assert config.model.image.options == {"init_values": 1e-5, "depth": 10, "act": "no"}

    def test_lists_null_and_named_mappings_in_overrides(self, load) -> None:
        config = load(
            overrides=(
                "data.train=[a, b]",
                "optim.clip_grad_norm=null",
                "evaluate.pets.type=zeroshot",
                "evaluate.pets.data=d",
            )
        )
        assert config.data.train == ["a", "b"]
        assert config.optim.clip_grad_norm is None
        assert config.evaluate == {"pets": ZeroShotConfig(data="d")}

    @pytest.mark.parametrize("name", ["2026-01-31", "12:30", "no", "on", "a=b"])
    def test_words_stay_words(self, load, name: str) -> None:
        assert load(overrides=(f"run_dir={name}",)).run_dir == name

    def test_whole_floats_are_integers(self, load) -> None:
        assert load("steps: 1e5").steps == 100_000


class TestProblems:
    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("data: {worker: 3}", "data.worker=3: unknown key; the nearest known is data.workers"),
            ("lr: 1", "lr=1: unknown key; the nearest known is optim.lr"),
            ("loss: {type: infonce}", "loss.type=infonce: expected info_nce or sigmoid; the nearest is info_nce"),
            ("model: {text: {layer: 2}}", "model.text.layer=2: unknown key; the nearest known is model.text.layers"),
            ("evaluate: {p: {data: x}}", "evaluate.p.type is missing: expected zeroshot or retrieval or loss"),
            ("evaluate: {p: {type: zeroshot}}", "evaluate.p.data is missing: expected string, not blank"),
            ("evaluate: {p: {type: zeroshot, data: d, dat: 1}}",
             "evaluate.p.dat=1: unknown key; the nearest known is evaluate.p.data"),
            ("loss: {type: info_nce, info_nce: 1}",
             "loss.info_nce=1: unknown key; known here: type, implementation, exchange, tile_size, terms"),
            ("optim: {lr: fast}", "optim.lr=fast: expected number >= 0"),
            ("optim: {betas: [0.9]}", "optim.betas=[0.9]: expected [number >= 0 and < 1, number >= 0 and < 1]"),
            ("optim: {betas: [1, 1]}", "optim.betas=[1, 1]: expected [number >= 0 and < 1, number >= 0 and < 1]"),
            ("optim: {lr: .inf}", "optim.lr=Infinity: expected number >= 0"),
            ("model: {init_logit_bias: .nan}", "model.init_logit_bias=NaN: expected number or null"),
            ("model: {init_logit_bias: true}", "model.init_logit_bias=true: expected number or null"),
            ("steps: true", "steps=true: expected integer >= 1 or null"),
            ("optim: {lr: false}", "optim.lr=false: expected number >= 0"),
            (f"seed: {2**63}", f"seed={2**63}: expected integer >= -9.22337e+18 and < 9.22337e+18"),
            (f"seed: {-(2**63) - 1}", f"seed={-(2**63) - 1}: expected integer >= -9.22337e+18 and < 9.22337e+18"),
            ("run_dir: ' '", "run_dir=: expected string, not blank"),
            ("data: {image_key: ' '}", "data.image_key=: expected string, not blank"),
            ("data: {caption_key: ''}",
             "data.caption_key=: expected string, not blank or mapping to number > 0 or mapping"),
            ("data: {caption_key: {'json:long': {sentence: 1.5}}}",
             "data.caption_key.json:long.sentence=1.5: expected number >= 0 and <= 1"),
            ("data: {caption_key: {'json:long': {sentnce: 1, weight: 2}, txt: 1}}",
             "data.caption_key.json:long.sentnce=1: unknown key; the nearest known is "
             "data.caption_key.json:long.sentence"),
            ("data: {caption_key: {'json:long': {words: 8}}}",
             "data.caption_key.json:long.words=8: expected [integer >= 1, integer >= 1]"),
            ("data: {caption_key: {'json:long': {words: [40, 8]}}}",
             "data.caption_key.json:long.words=[40, 8]: expected [fewest, most], fewest no larger than most"),
            ("data: {train: null, sources: {a: {shards: [a.tar], caption_key: {txt: {words: [9, 8]}}}}}",
             "data.sources.a.caption_key.txt.words=[9, 8]: expected [fewest, most], fewest no larger than most"),
            ("data: {caption_key: {cls: {sentence: 1}}, class_names: [a, b]}",
             "data.caption_key of source 'train' draws parts of captions, but with class_names captions are numbers: "
             "leave class_names out, or give each key a weight alone"),
            ("data: {train: null, sources: {a: {shards: [a.tar], caption_key: {txt: {weight: 0}}}}}",
             "data.sources.a.caption_key.txt.weight=0: expected number > 0"),
            ("evaluate: {a/b: {type: zeroshot, data: d}}",
             "evaluate: the name 'a/b' must be of letters, digits and _ - . (not . first)"),
            ("evaluate: {..: {type: zeroshot, data: d}}",
             "evaluate: the name '..' must be of letters, digits and _ - . (not . first)"),
            ("data: {lanes: 0}", "data.lanes=0: expected auto or integer >= 1"),
            ("data: {train: a.tar}", "data.train=a.tar: expected list of string, not blank, at least 1 or null"),
            ("data: null", "data=null: expected a mapping of `key: value`"),
            ("loss: 3", "loss=3: expected a mapping of `key: value`"),
            ("model: {text: {width: 10, heads: 3}}",
             "model.text.heads=3 does not divide model.text.width=10; choose a divisor"),
            (
                "data: {caption_key: {txt: -1}}",
                'data.caption_key={"txt": -1}: expected string, not blank or mapping to number > 0 or mapping',
            ),
            (
                "data: {train: [{shards: [a.tar], weight: 2}]}",
                "data.train is a list of shards, together one set; a mixture has named sources: "
                "data.sources: {NAME: {shards: [...], weight: 3}}",
            ),
            (
                "data: {sources: {a: {shards: [a.tar]}}}",
                "data.train=['a.tar'] and data.sources of 1: give exactly one of the two (data.train=null takes the "
                "first away)",
            ),
            (
                "data: {train: null, sources: {a: {shards: [a.tar], weight: much}}}",
                "data.sources.a.weight=much: expected number > 0",
            ),
            (
                "data: {train: null, sources: {a: {shards: [a.tar], wieght: 2}}}",
                "data.sources.a.wieght=2: unknown key; the nearest known is data.sources.a.weight",
            ),
            ("data: {lanes: 3}", "data.lanes=3 does not divide global_batch_size=8; choose a divisor"),
            ("samples: 5", "steps=10 and samples=5: give exactly one of the two"),
        ],
    )  # fmt: skip
    def test_one_line_names_key_value_and_rule(self, problems, text: str, line: str) -> None:
        assert problems(text) == [line]

    def test_all_problems_come_at_once(self, problems) -> None:
        lines = problems("seed: x\ndata: {worker: 3}", overrides=("optim.lr=-1",))
        assert [line.split(":")[0] for line in lines] == ["seed=x", "optim.lr=-1", "data.worker=3"]

    def test_missing_keys_of_an_empty_config(self, problems) -> None:
        lines = problems(base="steps: 1")
        assert [line.split(" ")[0] for line in lines] == ["run_dir", "global_batch_size", "data", "model"]
        assert all(" is missing: expected " in line for line in lines)

    def test_unknown_key_without_a_neighbour_lists_those_known(self, problems) -> None:
        (line,) = problems("loss: {type: info_nce, zzz: 1}")
        assert line == "loss.zzz=1: unknown key; known here: type, implementation, exchange, tile_size, terms"

    def test_long_values_are_cut(self, problems) -> None:
        (line,) = problems(f"optim: {{lr: {'x' * 500}}}")
        assert len(line) < 150

    def test_absent_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"nope\.yaml: cannot read the config file: No such file"):
            load_config([tmp_path / "nope.yaml"])

    def test_folder_and_binary_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="Is a directory"):
            load_config([tmp_path])
        (tmp_path / "weights.yaml").write_bytes(b"\x80\xff\x00")
        with pytest.raises(InputError, match="not UTF-8"):
            load_config([tmp_path / "weights.yaml"])

    def test_no_file(self) -> None:
        with pytest.raises(InputError, match="no config file given"):
            load_config([], ["seed=1"])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("seed: 1\ndata: [\n", r"1\.yaml:3: not valid YAML: expected"),
            ("seed: 1\n\tsteps: 2\n", r"1\.yaml:2: not valid YAML: found character"),
            ("seed: 1\nseed: 2\n", r"1\.yaml:2: not valid YAML: the key 'seed' stands twice"),
            ("[a]: 1\n", r"1\.yaml:1: not valid YAML: a key must be one word"),
            ("- a\n- b\n", r"1\.yaml: the top level is a list; a config is a mapping"),
            ("seed: !!python/object:os.system {}\n", r"1\.yaml:1: not valid YAML: could not determine a constructor"),
        ],
    )
    def test_broken_yaml_names_file_and_line(self, load, text: str, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            load(text)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("override", ["seed", "=3", ".seed=3", "data..workers=3", "data.=3"])
    def test_malformed_override(self, problems, override: str) -> None:
        assert problems(overrides=(override,)) == [f"{override!r}: an override is key=value, e.g. optim.lr=3e-4"]

    def test_override_inside_free_options(self, problems) -> None:
        override = "model.image.options.depth=6"
        assert problems(overrides=(override,)) == [
            f"{override!r}: model.image.options is one value; give it whole, as model.image.options={{key: value}}"
        ]

    def test_override_that_is_no_yaml(self, problems) -> None:
        (line,) = problems(overrides=("data.train=[*.tar]",))
        assert line.startswith("'data.train=[*.tar]': the value is not valid YAML (")
        assert line.endswith("); put it in quotes")


class TestDump:
    def test_loads_back_unchanged(self, load, tmp_path: Path) -> None:
        config = load(
            "model: {init_logit_bias: -10, image: {options: {a: 1e-5, b: [x, {c: null}]}}}",
            overrides=("loss.type=sigmoid", "optim.lr=1e-7", "evaluate.a={type: retrieval, data: x}"),
        )
        path = tmp_path / "dumped.yaml"
        path.write_text(dump_config(config))
        assert load_config([path]) == config

    def test_is_complete_and_in_schema_order(self, load) -> None:
        text = dump_config(load())
        top = [line.split(":")[0] for line in text.splitlines() if line[0].isalpha()]
        assert top == list(RunConfig.__dataclass_fields__)
        assert "  betas: [0.9, 0.98]\n" in text
        assert "  lr: 0.0005\n" in text

    def test_is_plain_yaml_for_other_readers(self, load) -> None:
        import yaml

        config = replace(load(overrides=("optim.lr=1e-7",)), run_dir="no")
        tree = yaml.safe_load(dump_config(config))
        assert tree["run_dir"] == "no"
        assert tree["optim"]["lr"] == 1e-7


def test_loading_needs_no_torch() -> None:
    code = "import sys, clipx.config.load, clipx.config.describe, clipx.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
