from cutwork.lab.demo_result import Packed


def test_a_packed_network_without_a_gain_points_to_the_reasons_and_a_wrong_one_has_no_time():
    assert "the table says why it is no faster" in str(Packed("a table", 1.0, 1.0, 1.0))
    assert "the table says" not in str(Packed("a table", 2.0, 1.0, 2.0))
    assert "DIFFER" in str(Packed("a table", 1.0, None, None))
