import pytest

from cutwork.files.schema import COUNT, Named, Number, check_form

FORM = {
    "name": str,
    "flag?": bool,
    "share?": Number(0, 1),
    "count?": COUNT,
    "names?": [(str, None)],
    "pair?": [Number(), COUNT],
    "maybe?": (None, [Number(), Number()]),
    "layers?": Named({"on": bool}),
    "any?": object,
    "own?": Number,
}
LEGAL = [
    {},
    {"flag": True},
    {"share": 0.5},
    {"share": 1},
    {"count": 3},
    {"names": []},
    {"names": ["a", None]},
    {"pair": [float("inf"), 2]},
    {"maybe": None},
    {"maybe": [1, 2]},
    {"layers": {"x": {"on": False}}},
    {"any": None},
    {"any": [{"a": 1}]},
]
BAD = {
    "it is 3, but must be an object": 3,
    "it lacks 'name'": {"flag": True},
    "it has 'nmae', which is unknown": {"name": "a", "nmae": "b"},
    "it/name is 3, but must be text": {"name": 3},
    "it/flag is 1, but must be true or false": {"name": "", "flag": 1},
    "it/share is 1.5, but must be a number from 0 to 1": {"name": "", "share": 1.5},
    "it/share is nan, but": {"name": "", "share": float("nan")},
    "it/share is True, but": {"name": "", "share": True},
    "it/count is 1.0, but must be a whole number from 0": {"name": "", "count": 1.0},
    "it/count is -1, but": {"name": "", "count": -1},
    "it/names is 'a', but must be a list": {"name": "", "names": "a"},
    "it/names/1 is 3, but must be text or null": {"name": "", "names": ["a", 3]},
    "it/pair has 1 entries, but must have 2": {"name": "", "pair": [1]},
    "it/pair/1 is 1.5, but must be a whole": {"name": "", "pair": [1, 1.5]},
    "it/maybe is [1], but must be null or a list": {"name": "", "maybe": [1]},
    "it/layers/x lacks 'on'": {"name": "", "layers": {"x": {}}},
    "it/layers is 'aaaaaaaaaa": {"name": "", "layers": "a" * 1000},
    "it/own is 3, but must be a Number": {"name": "", "own": 3},
    "it/pair/0 is None, but must be a number": {"name": "", "pair": [None, 1]},
}


@pytest.mark.parametrize("value", LEGAL, ids=str)
def test_what_is_in_form_passes(value):
    check_form({"name": "a", **value}, FORM, "it")


@pytest.mark.parametrize("words", BAD)
def test_what_is_not_is_named_with_its_place(words):
    with pytest.raises(ValueError, match=r"^it") as error:
        check_form(BAD[words], FORM, "it")
    assert str(error.value).startswith(words)
    assert len(str(error.value)) < 120
