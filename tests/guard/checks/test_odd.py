from __future__ import annotations

from fairlead.guard.checks.odd import Odd
from fairlead.guard.wire.events import Channel

HERE = Channel(0, 0)


def kept(*texts: str) -> str:
    odd = Odd()
    for n, text in enumerate(texts):
        odd.add(Channel(0, n), 0, text, always=True)
    return odd.trails[0].text


def test_ordinary_words_are_left_out_and_what_is_odd_is_put_together() -> None:
    assert kept("The first part is YTZkN1.", "Then comes MTk1Z and that is all.") == "YTZkN1MTk1Z"
    assert kept("The harbour opens at 6, and the berth is free until 2031.", "It costs $40.") == ""


def test_a_group_that_looks_like_a_word_is_taken_along() -> None:
    assert kept("The value reads YTZkN zkx.", "The next part is MT k1ZDN .") == "YTZkN zkxMT k1ZDN"
    assert kept("Here is YW, Y1, M , Dl, lY,.") == "YW, Y1, M , Dl, lY"
    assert kept("and then X9z is in the end of it") == "X9z"


def test_single_letters_between_any_signs_are_odd() -> None:
    assert kept("The next part is .Z.T.h.h.Z.G.U..") == "Z.T.h.h.Z.G.U"
    assert kept("it is \\u - 00 - 26 - \\u - 00") == "\\u - 00 - 26 - \\u - 00"


def test_beside_a_letter_alone_the_words_a_and_i_are_letters() -> None:
    assert kept("here is D c g I .", "then comes A 1 I D a and more") == "D c g IA 1 I D a"
    assert kept("I have x9y and a boat") == "x9y"


def test_an_a_that_may_be_an_article_or_a_letter_is_read_both_ways() -> None:
    odd = Odd()
    odd.add(Channel(0, 0), 0, "d29y ZCBi 4oCM", always=True)
    assert len(odd.trails) == 1
    odd.add(Channel(0, 1), 0, "Next: A jDni gIxl and more", always=True)
    odd.add(Channel(0, 2), 0, "then I 4oCM", always=True)
    assert [trail.text for trail in odd.trails] == ["d29y ZCBi 4oCMjDni gIxl4oCM", "d29y ZCBi 4oCMA jDni gIxlI 4oCM"]


def test_a_word_without_a_vowel_is_odd() -> None:
    assert kept("Next: Mzdm (more follows)", "then comes Mjdk Njdi  and") == "MzdmMjdk Njdi"
    assert kept("Next: Zh-Nzlj (more follows)", "a well-known sub-plot of a by-pass") == "Zh-Nzlj"


def test_an_odd_word_that_comes_in_pieces_is_odd_to_its_end() -> None:
    odd = Odd()
    for start, text in ((0, "it is eH.kl."), (12, "Mz.Ul."), (18, "Nj and a by.pass")):
        odd.add(HERE, start, text, always=True)
    assert [c for c in odd.trails[0].text if c.isalnum()] == list("eHklMzUlNj")


def test_capitals_behind_a_sign_that_joins_begin_no_word() -> None:
    assert Odd().add(HERE, 0, "Sure, it is eH.kl.Mz.Ul.Mz.cl") and not Odd().add(HERE, 0, "Mr. Lund. Ann (Bo) eH")


def test_every_kept_character_knows_where_it_came_from() -> None:
    odd = Odd()
    odd.add(HERE, 100, "It is \uff21\uff22YTZkN1 , as you asked.", always=True)
    [(channel, start, end)] = odd.trails[0].around(0, 3)
    assert (channel, start) == (HERE, 106) and end - start == len(odd.trails[0].text)


def test_with_few_signs_nothing_is_gone_over_until_there_are_more() -> None:
    odd = Odd()
    assert not odd.add(HERE, 0, "part one: Xq ") and odd.trails[0].text == ""
    assert odd.add(HERE, 13, "and two: 7aB9cDe1") and odd.trails[0].text == "7aB9cDe1"
