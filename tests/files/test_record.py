import pytest

import cutwork as cw
from cutwork import patterns
from cutwork.patterns import Unstructured

from .runs import GOLDEN, LOW, build, compressed_run, make_sparse, packed


def test_a_pattern_without_a_text_form_is_refused(path, monkeypatch):
    model = build()
    sparsifier, _ = make_sparse(model)
    monkeypatch.setitem(patterns.PATTERNS, "unstructured", ("unstructured", lambda: "something else"))
    with pytest.raises(ValueError, match=r"0 has the pattern Unstructured\(\), whose text form 'unstructured' parse"):
        cw.save(model, path)
    # Not delitem, which would put the row back at another place.
    rows = {example: row for example, row in patterns.PATTERNS.items() if example != "unstructured"}
    monkeypatch.setattr(patterns, "PATTERNS", rows)
    with pytest.raises(ValueError, match="give it a row in PATTERNS"):
        cw.save(model, path)
    assert sparsifier.layers["0"].sparsity.pattern == Unstructured()
    assert not path.exists()


def test_a_file_says_how_each_layer_is_stored(path):
    model, *_ = compressed_run()
    cw.save(model, path)
    records = cw.describe(path).layers
    assert str(records["0"]) == "fixed block:2 at density 0.4, estimate=False, compressed"
    assert records["0"].storage == "compressed"
    assert cw.describe(GOLDEN).layers["0"].storage == "dense"


def test_a_file_says_which_layers_compute_in_fewer_bits(path):
    cw.save(packed(LOW["mixed"]), path)
    records = cw.describe(path).layers
    assert str(records["0"]) == "fixed block:2 at density 0.4, int8"
    assert str(records["2"]) == "fixed block:2 at density 0.4, estimate=False, compressed in bfloat16"
    assert records["0"].mask_density == 0.375
