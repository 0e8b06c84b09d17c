"""What every setting has in common, wherever it comes from: a form, a command, a deployment or a program.

A class of settings says once what each field is called, its default, its bounds and its help. ``flows/cli/options.py``
makes the options of a command of them; ``Option`` says what the fields themselves cannot. Nothing heavy is imported
here or by the modules that define settings, so that help and a wrong value are answered at once.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

LARGEST_INTEGER = 2**53  # that JSON carries unchanged through a browser's form and Prefect's database


@dataclass(frozen=True)
class Option:
    """How a field appears on the command line, where that does not follow from its name; use it in ``Annotated``.

    Attributes:
        name: With its dashes; fields of one name are set together. Empty: the field's own name in kebab case.
        also: Other names that are understood, and that help does not show.
        metavar: What help calls the value. Empty: it follows from the type.
        words: Whether several values are several words, as the shell makes of ``*.jsonl``, instead of a comma list.
        then: Where the option may be given several times: the field that takes every value after the first.
        group: Heading in the help. Empty: the title of the class.
    """

    name: str = ""
    also: tuple[str, ...] = ()
    metavar: str = ""
    words: bool = False
    then: str = ""
    group: str = ""


class Settings(BaseModel):
    """Settings: unchangeable, without unknown fields, and every number finite and small enough to travel.

    Attributes:
        option_prefix: Put before the names of the fields' options, for names that would mean little alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    option_prefix: ClassVar[str] = ""

    @field_validator("*")
    @classmethod
    def _can_travel(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise ValueError(f"give a number of at most {LARGEST_INTEGER:,}")
        return value
