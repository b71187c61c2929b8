"""Errors of strict tables: each reads as one sentence, in TOML's own spelling."""

from __future__ import annotations

from typing import Annotated, Self

import pytest
from pydantic import Field, StrictFloat, field_validator, model_validator

from fedward_common.errors import ConfigError
from fedward_common.strict import Name, Section, parse


class Ward(Section):
    """A table with every kind of check."""

    beds: StrictFloat = 1.0
    names: Annotated[tuple[Name, ...], Field(min_length=2, max_length=3)] = ("a", "b")
    doors: Annotated[tuple[int, ...], Field(min_length=1)] = (1,)
    floors: dict[str, int] = Field(default_factory=dict)
    colour: str = "white"

    @field_validator("colour")
    @classmethod
    def _known(cls, colour: str) -> str:
        if colour == "grey":
            raise ValueError("should be brighter")
        if colour == "9 to 5":
            raise ValueError(f"{colour!r} is no colour")
        return colour

    @model_validator(mode="after")
    def _beds_have_room(self) -> Self:
        if self.beds > 9:
            raise ValueError("beds and doors do not fit together")
        return self


class House(Section):
    """A whole file."""

    ward: Ward = Ward()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.ward.beds == 7:
            raise ValueError("ward.beds is unlucky")
        return self


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('names = ["a"]', "ward.names should hold 2 or more values, not 1"),
        ('names = ["a", "b", "c", "d"]', "ward.names should hold 3 or fewer values, not 4"),
        ("doors = []", "ward.doors should hold 1 or more values, not 0"),
        ('names = ["a", ""]', "ward.names.1 should have at least 1 character (given: '')"),
        ("floors = 3", "ward.floors should be a table (given: 3)"),
        ("beds = true", "ward.beds should be a valid number (given: true)"),
        ("beds = false", "ward.beds should be a valid number (given: false)"),
        ("beds = 10.0", "ward: beds and doors do not fit together"),
        ("beds = 7.0", "ward.beds is unlucky"),
        ("colour = 'grey'", "ward.colour should be brighter (given: 'grey')"),
        ("colour = '9 to 5'", "ward.colour '9 to 5' is no colour (given: '9 to 5')"),
    ],
)
def test_an_error_reads_as_one_sentence(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(House, f"[ward]\n{line}\n", source="house.toml", docs="see the docs", example="see the example")
    assert str(caught.value) == f"house.toml: {said}"
    assert caught.value.hint == "see the docs"
