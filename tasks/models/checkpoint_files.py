"""What identifies a checkpoint: the files of its directory and their digests. Nothing is loaded here."""

from pydantic import BaseModel, ConfigDict
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.layout import location
from trackstar.storage.manifest import digest_file, digest_of

OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin", "second_moment.safetensors")
# What a gradient depends on: configuration, weights, tokenizer; not the optimizer, logs or training arguments.
MODEL_FILES = (
    "config.json", "*.safetensors", "pytorch_model*.bin", "*.index.json", "tokenizer*", "vocab.*", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "*.model",
)  # fmt: skip


class Checkpoint(BaseModel):
    """A reference to a checkpoint directory and the digests of what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    digest: str
    optimizer_digest: str | None

    @property
    def name(self) -> str:
        return location(self.path).name


def read_checkpoint(path: str) -> Checkpoint:
    """Identify the checkpoint in a Hugging Face model directory by its content.

    Raises:
        InputError: There is no model in the directory.
    """
    directory = location(path)
    names = model_files(path)
    return Checkpoint(path=str(path), digest=_digest(directory, names), optimizer_digest=_optimizer_digest(directory))


def model_files(path: str) -> list[str]:
    """Names of the files that a checkpoint's gradients depend on.

    Raises:
        InputError: There is no model in the directory.
    """
    directory = location(path)
    if not (directory / "config.json").is_file():
        raise InputError(f"{path} holds no config.json; give the directory of a Hugging Face checkpoint")
    names = sorted({file.name for pattern in MODEL_FILES for file in directory.glob(pattern)} - set(OPTIMIZER_FILES))
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise InputError(f"{path} holds no weights (*.safetensors or pytorch_model*.bin); was it saved to the end?")
    return names


def _digest(directory: UPath, names: list[str]) -> str:
    return digest_of({name: digest_file(directory / name) for name in names})


def _optimizer_digest(directory: UPath) -> str | None:
    names = [name for name in OPTIMIZER_FILES if (directory / name).is_file()]
    return _digest(directory, names) if names else None
