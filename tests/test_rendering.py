"""An inspection for people, and the files of the wild walked through."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lorabench.adapters import load
from lorabench.adapters.metadata.evidence import PEFT
from lorabench.adapters.metadata.inspection import inspect
from lorabench.adapters.metadata.library import scan, write_rows
from lorabench.adapters.metadata.origin import _MODEL, _NETWORK, _TRAINING
from lorabench.adapters.metadata.rendering import markdown, module_table, terminal, text
from lorabench.errors import LorabenchError
from lorabench.text import clean, plain
from tests.inspected_files import KOHYA, kohya_tensors, sparse, values, write
from tests.real_adapters import SHARED, real_files

KEYS = st.sampled_from(
    sorted({part for names in (_MODEL, _TRAINING, _NETWORK) for every in names.values() for one in every
            for part in (one.partition(": ")[0], *one.partition(": ")[2].split(".")) if part}
           | {"ss_tag_frequency", "ss_dataset_dirs", "ss_datasets", "subsets", "class_tokens", "img_count", "image_dir",
              "tag_frequency", "software", "name", "version", "auto_mapping", "log_history", "learning_rate",
              "ss_training_started_at", "ss_training_finished_at", "modelspec.trigger_phrase", "modelspec.hash_sha256",
              "sshs_legacy_hash", "sshs_model_hash", "data", "n_repeats", "peft_version"})
)  # fmt: skip
EVIL = {
    "modelspec.title": "\x1b[31mred\x07 | `x` <b>\r\nnext",
    "ss_output_name": "\u202egnp.exe",
    "k\x1bey": "v",
    "ss_tag_frequency": '{"d": {"\\u001b[2J": 5}}',
}


def test_nothing_of_a_file_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    found = inspect(
        write(tmp_path / "a.safetensors", kohya_tensors(), EVIL | KOHYA | {"modelspec.title": "\x1b[31mred"})
    )
    for said in (terminal(found), text(found), markdown(found), module_table(found)):
        assert all(character.isprintable() or character == "\n" for character in said)
        assert "\\x1b[31mred" in said or said == module_table(found)
    assert clean("a\tb\x1b\ud800") == "a b\\x1b\\ud800"
    assert "\x1b[1m" in terminal(found, colour=True)
    page = markdown(inspect(write(tmp_path / "a.safetensors", kohya_tensors(), EVIL)))
    title = next(line for line in page.splitlines() if line.startswith("| title"))
    assert title == "| title | \\\\x1b[31mred\\\\x07 \\| \\`x\\` &lt;b>  next | modelspec.title |"


def test_the_terminal_summary_is_a_hundred_wide_and_text_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {f"a rather long tag of number {i}": i for i in range(200)}
    long = {"ss_tag_frequency": json.dumps({"d": tags}), "modelspec.description": "word " * 300}
    found = inspect(write(tmp_path / ("x" * 120 + ".safetensors"), kohya_tensors(), KOHYA | long), top_tags=100)
    monkeypatch.setenv("COLUMNS", "200")
    assert max(map(len, terminal(found).splitlines())) <= 100
    monkeypatch.setenv("COLUMNS", "70")
    assert max(map(len, terminal(found).splitlines())) <= 70
    assert terminal(found).startswith("valid: xxx")
    uncut = terminal(found, whole=True)
    assert "…" not in uncut
    assert uncut.count("word") - terminal(found).count("word") > 200
    assert ("word " * 300).strip() in text(found)
    assert "training_info.learning_rate: 0.0001  [ss_learning_rate]" in text(found).splitlines()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, JSON.map(json.dumps) | st.text(st.characters(exclude_categories=["Cs"]))), JSON, JSON)
@settings(max_examples=60, deadline=None)
def test_any_metadata_is_survived(
    tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, str], config: object, state: object
) -> None:
    folder = tmp_path_factory.mktemp("any")
    write(folder / "a.safetensors", kohya_tensors(), {key: value for key, value in metadata.items() if key != PEFT})
    (folder / "adapter_config.json").write_text(json.dumps(config if isinstance(config, dict) else {}))
    (folder / "trainer_state.json").write_text(json.dumps(state))
    found = inspect(folder / "a.safetensors")
    assert found.raw_metadata == {key: value for key, value in metadata.items() if key != PEFT}
    for said in (terminal(found), text(found), markdown(found)):
        assert all(character.isprintable() or character == "\n" for character in said)
    row = next(scan(folder))
    write_rows(folder / "t.parquet", [row])
    write_rows(folder / "t.csv", [row])
    assert json.dumps(plain(found.as_dict()), allow_nan=False)


@pytest.mark.parametrize(
    ("module", "width", "family"),
    [
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 2048, "Stable Diffusion XL"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v", 1024, "Stable Diffusion 2"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 768, "Stable Diffusion 1"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k", 640, "Stable Diffusion (a U-Net)"),
        ("transformer.single_transformer_blocks.0.attn.to_q", 16, "FLUX"),
        ("transformer.transformer_blocks.0.attn.add_k_proj", 16, "Stable Diffusion 3"),
        ("transformer.h.3.attn.c_attn", 16, "GPT-2"),
        ("model.layers.3.mlp.down_proj", 16, "Llama, Mistral, Qwen or Gemma"),
        ("roberta.encoder.layer.0.attention.self.query", 16, "BERT, RoBERTa or ViT"),
        ("something.else", 16, None),
    ],
)
def test_families(tmp_path: Path, module: str, width: int, family: str | None) -> None:
    shapes = {f"{module}.lora.down.weight": [2, width], f"{module}.lora.up.weight": [8, 2]}
    found = inspect(sparse(tmp_path / "a.safetensors", shapes))
    assert found.model_info.get("family", {"value": None})["value"] == family
    assert found.model_info.get("base_model") == (found.model_info["family"] if family else None)


@pytest.mark.slow
def test_every_real_file_is_read_right_or_refused_right(real_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    read = refused = 0
    for path in real_files(real_folder):
        try:
            found = inspect(path)
        except LorabenchError:
            refused += 1
            continue
        read += 1
        tensors = load_file(path) if path.suffix == ".safetensors" else {}
        if tensors:
            assert found.file_info["tensors"]["value"] == len(tensors), path
            alphas = sum(tensor.numel() for key, tensor in tensors.items() if key.endswith(".alpha"))
            counted = values(found.architecture_info)
            every = sum(tensor.numel() for tensor in tensors.values())
            assert counted["parameters"] + counted["other_parameters"] == every - alphas, path
        assert found.training_info["method"]["value"] != "unknown", path
        assert max(map(len, terminal(found).splitlines())) <= 100, path
        assert json.dumps(found.as_dict(), default=str)
        if found.ok and found.modules:
            assert {row["module"] for row in found.modules} == set(load(path).modules), path
        else:
            assert not found.modules
    assert (read, refused) == ((39, 4) if real_folder == SHARED else (26, 2))


def test_families_of_real_key_sets(real_folder: Path, tmp_path: Path) -> None:
    seen = 0
    for path in real_folder.glob("keysets/*flux*.json"):
        found = inspect(sparse(tmp_path / "a.safetensors", json.loads(path.read_text())))
        assert found.model_info["family"]["value"] == "FLUX", path.name
        seen += 1
    assert seen >= (8 if real_folder == SHARED else 2)
