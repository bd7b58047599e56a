from keras_deepseek.models.command import StopTexts


def test_text_goes_on_up_to_a_stop():
    stops = StopTexts(["\n\n", "END"])
    assert [stops.push(piece) for piece in ("a\n", "b E", "N", "Dx")] == ["a", "\nb ", "", ""]
    assert stops.is_met
    assert stops.push("more") == ""
    assert stops.finish() == ""


def test_what_only_begins_like_a_stop_comes_later():
    stops = StopTexts(["END"])
    assert [stops.push(piece) for piece in ("an E", "N", "T")] == ["an ", "", "ENT"]
    assert not stops.is_met
    assert stops.push("E") == ""
    assert stops.finish() == "E"


def test_the_first_of_several_counts():
    assert StopTexts(["c", "b"]).push("abc") == "a"


def test_without_stops_nothing_is_held_back():
    assert StopTexts(["", ""]).push("abc") == "abc"
