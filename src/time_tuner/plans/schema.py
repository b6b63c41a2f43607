"""The JSON schema of a plan file, for programs that read plans without this library."""

from pathlib import Path
from typing import Any

from .._files import read_json


def plan_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a plan file, of one plan or of several.

    A schema states types, names and ranges. `Plan.load` also checks what a schema cannot: equal lengths, falling times,
    points on the noise schedule, and rows that follow from the other entries.
    """
    schema: dict[str, Any] = read_json(Path(__file__).with_name("plan.schema.json"))
    return schema
