from __future__ import annotations

import pickle
import re

import pytest

from fedward_common import errors
from fedward_common.errors import FedwardError

KINDS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling_with_its_hint(kind: type[FedwardError]) -> None:
    back = pickle.loads(pickle.dumps(kind("what happened", hint="what to do")))  # noqa: S301
    assert type(back) is kind
    assert (str(back), back.hint) == ("what happened", "what to do")


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_a_fedward_error_and_needs_a_hint(kind: type[FedwardError]) -> None:
    assert issubclass(kind, FedwardError)
    with pytest.raises(TypeError):
        kind("what happened")  # type: ignore[call-arg]


def test_the_tree_at_the_head_of_the_module_is_the_real_one() -> None:
    drawn: dict[str, str] = {}
    parents = {0: "FedwardError"}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([│ ]*)(?:├──|└──) (\w+)", line)
        if found:
            depth = len(found[1]) // 4 + 1
            drawn[found[2]] = parents[depth - 1]
            parents[depth] = found[2]
    real = {kind.__name__: kind.__bases__[0].__name__ for kind in KINDS if kind is not FedwardError}
    assert drawn == real
