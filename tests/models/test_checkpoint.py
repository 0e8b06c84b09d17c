"""A checkpoint's identity: the same for the same gradients, another where anything has changed that they depend on."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from trackstar.storage.errors import InputError
from trackstar.tasks.models.checkpoint import ModelConfig, load_model, load_tokenizer, model_files, read_checkpoint

TRUSTED = ModelConfig(device="cpu", trust_remote_code=True)
NO_GRADIENT = {"generation_config.json", "chat_template.jinja", "additional_chat_templates"}
MODELING = """
from transformers import LlamaConfig, LlamaForCausalLM
from .scaling import FACTOR


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

    def get_input_embeddings(self):
        return super().get_input_embeddings()

    def own_factor(self):
        return FACTOR
"""


@pytest.fixture
def custom(llama, tmp_path):
    """A Llama with a modeling file of its own, which imports another one."""
    directory = shutil.copytree(llama, tmp_path / "custom")
    config = json.loads((directory / "config.json").read_text())
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    changes = {"model_type": "own_llama", "auto_map": auto_map, "architectures": ["OwnModel"]}
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    (directory / "modeling_own.py").write_text(MODELING)
    (directory / "scaling.py").write_text("FACTOR = 1.0\n")
    return directory


def digest(directory, *, trusted=True):
    return read_checkpoint(str(directory), trust_remote_code=trusted).digest


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """Where transformers copies code that it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.mark.usefixtures("modules")
def test_code_that_comes_with_a_checkpoint_is_part_of_its_identity_where_it_is_run(custom):
    assert type(load_model(read_checkpoint(str(custom), trust_remote_code=True), TRUSTED)).__name__ == "OwnModel"
    trusted, untrusted = digest(custom), digest(custom, trusted=False)
    assert trusted != untrusted
    for file in ("modeling_own.py", "scaling.py"):
        (custom / file).write_text((custom / file).read_text() + "\n# edited\n")
        assert digest(custom) != trusted
        trusted = digest(custom)
    assert digest(custom, trusted=False) == untrusted


def test_code_that_is_never_run_is_not(llama, tmp_path):
    directory = shutil.copytree(llama, tmp_path / "checkpoint")
    before = digest(directory)
    (directory / "train.py").write_text("print('training')\n")
    assert digest(directory) == before == digest(directory, trusted=False)


def test_code_of_another_repository_is_refused(custom):
    config = json.loads((custom / "config.json").read_text())
    config["auto_map"]["AutoModelForCausalLM"] = "someone/else--modeling_own.OwnModel"
    (custom / "config.json").write_text(json.dumps(config))
    assert digest(custom, trusted=False)
    with pytest.raises(InputError, match=r"runs code of another repository \(someone/else--modeling_own\.OwnModel\)"):
        digest(custom)


def test_code_of_a_tokenizer_counts_too(llama, tmp_path):
    directory = shutil.copytree(llama, tmp_path / "checkpoint")
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": [None, "own_tokens.OwnTokenizer"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "own_tokens.py").write_text("")
    assert "own_tokens.py" in model_files(str(directory), trust_remote_code=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"rms_norm_eps": 1e-3}),
        ("config.json", {"attn_implementation": "eager"}),
        ("tokenizer_config.json", {"add_bos_token": True}),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}),
        ("quantize_config.json", {"bits": 4}),
        ("special_tokens_map.json", {"bos_token": "x"}),
    ],
)
def test_a_setting_that_changes_gradients_changes_the_identity(llama, tmp_path, name, content):
    directory = shutil.copytree(llama, tmp_path / "checkpoint")
    before = digest(directory)
    file = directory / name
    present = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**present, **content}))
    assert digest(directory) != before


@pytest.mark.parametrize(
    "name", ["generation_config.json", "chat_template.jinja", "optimizer.pt", "trainer_state.json"]
)
def test_what_no_gradient_depends_on_changes_no_identity(llama, tmp_path, name):
    directory = shutil.copytree(llama, tmp_path / "checkpoint")
    before = digest(directory)
    (directory / name).write_text("{}")
    assert digest(directory) == before


OPENED: list[str] = []
sys.addaudithook(lambda event, arguments: OPENED.append(str(arguments[0])) if event == "open" else None)


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("which", ["llama", "gpt2", "custom"])
def test_every_file_that_loading_opens_is_part_of_the_identity(which, request, tmp_path):
    """Whatever the library reads beside these, it must not change a gradient."""
    directory = shutil.copytree(request.getfixturevalue(which), tmp_path / "opened")
    AutoTokenizer.from_pretrained(directory).save_pretrained(directory)
    (directory / "generation_config.json").write_text("{}")
    checkpoint = read_checkpoint(str(directory), trust_remote_code=True)
    OPENED.clear()
    load_model(checkpoint, TRUSTED)
    load_tokenizer(checkpoint, TRUSTED)
    below = {Path(path).resolve() for path in OPENED if Path(path).resolve().is_relative_to(directory)}
    opened = {str(path.relative_to(directory)) for path in below}
    assert "config.json" in opened
    assert opened <= set(model_files(str(directory), trust_remote_code=True)) | NO_GRADIENT
    assert torch.is_grad_enabled()


def test_a_trainers_output_directory_is_refused_with_its_newest_checkpoint(tmp_path):
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-best"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"its newest checkpoint is .*checkpoint-100, give that"):
        read_checkpoint(str(tmp_path))
