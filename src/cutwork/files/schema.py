"""What JSON must look like, and the first place where it does not."""

import math
from dataclasses import dataclass
from typing import Any, final

Json = Any
# A type; a `Number`; `Named`; `[form]` for a list, `[form, form]` for one of just two; `{name: form}` for an object, in
# which a name with a question mark may be missing; a tuple of forms, any of which will do; None; `object` for anything.
Form = Any


@final
@dataclass(frozen=True)
class Number:
    """A number in a range; true, false and what is not a number are none."""

    least: float = -math.inf
    most: float = math.inf
    is_whole: bool = False


@final
@dataclass(frozen=True)
class Named:
    """An object with entries of any names, all in one form."""

    form: Form


COUNT = Number(0, 2**62, is_whole=True)


def check_form(value: Json, form: Form, place: str) -> None:
    """Raise ValueError, which names the place, where a value is not in a form.

    >>> check_form({"steps": 3, "names": ["a"]}, {"steps": COUNT, "names": [str], "rate?": Number(0, 1)}, "it")
    >>> check_form({"steps": -1}, {"steps": COUNT}, "it")
    Traceback (most recent call last):
    ...
    ValueError: it/steps is -1, but must be a whole number from 0 to 4611686018427387904
    """
    if isinstance(form, tuple):
        if not any(_fits(value, one) for one in form):
            raise _refused(value, form, place)
    elif isinstance(form, dict) and isinstance(value, dict):
        _check_names(value, form, place)
    elif isinstance(form, Named) and isinstance(value, dict):
        for name, item in value.items():
            check_form(item, form.form, f"{place}/{name}")
    elif isinstance(form, list) and isinstance(value, list):
        if len(form) > 1 and len(form) != len(value):
            raise ValueError(f"{place} has {len(value)} entries, but must have {len(form)}")
        for number, item in enumerate(value):
            check_form(item, form[number % len(form)], f"{place}/{number}")
    elif not _is_plain(value, form):
        raise _refused(value, form, place)


def _check_names(value: dict[str, Json], form: dict[str, Form], place: str) -> None:
    forms = {name.removesuffix("?"): one for name, one in form.items()}
    for name in value:
        if name not in forms:
            raise ValueError(f"{place} has {name!r}, which is unknown")
    for name in form:
        if not name.endswith("?") and name not in value:
            raise ValueError(f"{place} lacks {name!r}")
    for name, item in value.items():
        check_form(item, forms[name], f"{place}/{name}")


def _fits(value: Json, form: Form) -> bool:
    try:
        check_form(value, form, "")
    except ValueError:
        return False
    return True


def _is_plain(value: Json, form: Form) -> bool:
    """Say whether a value that has no parts is in a form."""
    if isinstance(form, Number):
        is_number = isinstance(value, int if form.is_whole else int | float) and not isinstance(value, bool)
        return is_number and form.least <= value <= form.most
    return value is None if form is None else isinstance(form, type) and isinstance(value, form)


def _refused(value: Json, form: Form, place: str) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
    return ValueError(f"{place} is {shown}, but must be {_words(form)}")


def _words(form: Form) -> str:
    """Say what a form is."""
    if isinstance(form, tuple):
        return " or ".join(map(_words, form))
    if isinstance(form, Number):
        limits = "" if math.isinf(form.most) else f" from {form.least} to {form.most}"
        return f"a {'whole ' if form.is_whole else ''}number{limits}"
    if isinstance(form, list):
        return "a list"
    if isinstance(form, dict | Named):
        return "an object"
    return {None: "null", str: "text", bool: "true or false"}.get(form) or f"a {form.__name__}"
