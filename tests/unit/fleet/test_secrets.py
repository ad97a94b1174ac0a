"""`Secret` never gives its material away unless asked to reveal it."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from dataclasses import dataclass, replace

import pytest

from fleet.secrets import MASK, Secret


@dataclass(frozen=True)
class Settings:
    token: Secret[str]
    name: str = "n"


SHOWN = {
    "str": str,
    "repr": repr,
    "format": "{}".format,
    "format with a width": "{:>40}".format,
    "format with a precision": "{:.4}".format,
    "percent": lambda secret: "%s %r" % (secret, secret),  # noqa: UP031 - the old way must hold as well
    "inside a list": lambda secret: str([secret]),
    "inside a dataclass": lambda secret: repr(Settings(secret)),
    "inside an exception": lambda secret: "".join(traceback.format_exception_only(ValueError(secret))),
    "json with a fallback": lambda secret: json.dumps({"k": secret}, default=repr),
    "its attributes": lambda secret: str(getattr(secret, "__dict__", "")),
}


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
@pytest.mark.parametrize("material", ["hunter2", b"hunter2"])
def test_it_never_prints(show: object, material: str | bytes) -> None:
    assert "hunter2" not in show(Secret(material))  # type: ignore[operator]


def test_it_reveals_on_request() -> None:
    assert Secret("a").reveal() == "a"
    assert Secret(b"a").reveal() == b"a"
    assert str(Secret("a")) == MASK


@pytest.mark.parametrize("dump", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_is_not_pickled_or_copied(dump: object) -> None:
    with pytest.raises(TypeError, match="pickled"):
        dump(Secret("hunter2"))  # type: ignore[operator]


def test_json_refuses_it() -> None:
    with pytest.raises(TypeError) as refused:
        json.dumps(Secret("hunter2"))
    assert "hunter2" not in str(refused.value)


def test_equality_is_of_material_and_type() -> None:
    assert Secret("a") == Secret("a")
    assert Secret(b"a") == Secret(b"a")
    assert Secret("a") != Secret("b")
    assert Secret("ä") == Secret("ä")
    assert Secret("a") != Secret(b"a")
    assert Secret("a") != "a", "a bare value on one side would put the secret where it prints"


def test_it_cannot_be_a_key() -> None:
    with pytest.raises(TypeError):
        hash(Secret("a"))


def test_only_text_and_bytes_are_wrapped() -> None:
    with pytest.raises(TypeError) as refused:
        Secret(31337)  # type: ignore[type-var]
    assert "31337" not in str(refused.value)


def test_frozen_settings_that_hold_one_can_still_be_changed() -> None:
    changed = replace(Settings(Secret("a")), name="other")
    assert changed.token.reveal() == "a"
