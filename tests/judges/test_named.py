"""Objectives as a command line gives them: taken apart, opened, and refused with what exists."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from fairlead.constitution import load
from fairlead.errors import InputError
from fairlead.exchange import Exchange, assistant, exchange, user
from fairlead.judges import rules, verifiers
from fairlead.judges.critic import critic
from fairlead.judges.lineage import lineage_hash
from fairlead.judges.named import JUDGES, RULES, Named, Reader, open_judge, parsed
from fairlead.judges.rules import Rule
from fairlead.models import open_model

SAID = exchange("what is 5 + 6 ?", "it is 11", reference="11")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("exact", Named("exact", 1.0, "exact")),
        ("0.5*mentions", Named("mentions", 0.5, "mentions")),
        ("right=mentions", Named("mentions", 1.0, "right")),
        ("short=0.01*regex:^.{0,200}$", Named("regex:^.{0,200}$", 0.01, "short")),
        ("-1e-2*rule:length:40", Named("rule:length:40", -0.01, "rule:length:40")),
        ("regex:a=b", Named("regex:a=b", 1.0, "regex:a=b")),
        ("regex:2*x", Named("regex:2*x", 1.0, "regex:2*x")),
        ("sum=regex:a=3*b", Named("regex:a=3*b", 1.0, "sum")),
        ("./run=3/judge", Named("./run=3/judge", 1.0, "./run=3/judge")),
        (" helpful=2*./judge ", Named("./judge", 2.0, "helpful")),
    ],
)
def test_an_objective_is_taken_apart(spec: str, parts: Named) -> None:
    assert parsed(spec) == parts


def test_a_folder_with_an_equals_sign_in_its_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parsed("lr=3") == Named("3", 1.0, "lr")
    (tmp_path / "lr=3").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parsed("lr=3") == Named("lr=3", 1.0, "lr=3")


@pytest.mark.parametrize("spec", ["", "right=", "  "])
def test_an_objective_without_a_judge(spec: str) -> None:
    with pytest.raises(InputError, match="names no judge.*exact, mentions"):
        parsed(spec)


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ("exact", verifiers.exact()),
        ("mentions", verifiers.mentions()),
        ("numeric", verifiers.numeric()),
        ("numeric:0.5", verifiers.numeric(0.5)),
        ("regex:^it", verifiers.matches("^it")),
        ("unknown", verifiers.admits_unknown()),
        ("rule:refusal", rules.declines()),
        ("rule:answers", rules.answers()),
        ("rule:length", rules.length()),
        ("rule:length:7", rules.length(7)),
        ("rule:emoji", rules.no_emoji()),
        ("rule:flattery", rules.no_flattery()),
        ("rule:polite", rules.polite()),
        ("rule:agreement", verifiers.does_not_agree()),
    ],
)
def test_a_name_means_the_judge_itself(spec: str, same: Rule) -> None:
    """Of one lineage: what was optimised under a name is known as what it is."""
    judge = open_judge(spec)
    assert lineage_hash(judge.lineage) == lineage_hash(same.lineage)
    assert judge.judge([SAID]) == same.judge([SAID])


def test_every_rule_of_the_house_has_a_name() -> None:
    made = {
        made().name
        for _, made in inspect.getmembers(rules, inspect.isfunction)
        if inspect.signature(made).return_annotation == "Rule"
        and all(p.default is not p.empty for p in inspect.signature(made).parameters.values())
    }
    assert len(made) >= 6
    assert made <= {open_judge(f"rule:{name}").name for name in RULES}


def test_numbers_within_the_tolerance_are_right() -> None:
    reply = exchange("what is 5 + 6 ?", "it is 11.4", reference="11")
    assert [open_judge(spec).judge([reply])[0].raw for spec in ("numeric", "numeric:0.5")] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("exat", "unknown judge 'exat'.*exact, mentions, numeric.*rule:NAME.*refusal, answers"),
        ("./nowhere", "./nowhere: no such folder"),
        ("exact:3", "takes no argument, and '3'"),
        ("numeric:x", "tolerance is a number"),
        ("numeric:-1", "tolerance is a number"),
        ("numeric:nan", "tolerance is a number"),
        ("numeric:", "nothing stands behind the colon"),
        ("regex:", "nothing stands behind the colon"),
        ("regex", "give the pattern"),
        ("regex:(", "not a regular expression"),
        ("rule:kind", "no such rule; there are refusal, answers"),
        ("rule", "no such rule"),
        ("rule:emoji:2", "takes no argument, and '2'"),
        ("rule:length:0", "at least 1"),
        ("rule:length:", "nothing stands behind the colon"),
        ("gold:sums", "--oracle"),
        ("critic:no-harm", "nobody is there to read"),
    ],
)
def test_wrong_names_say_what_exists(spec: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_judge(spec)


def test_the_truth_needs_to_be_asked_for() -> None:
    right = Exchange(SAID.messages, SAID.reply, {"kind": "sum", "truth": "11"})
    assert open_judge("gold:sums", oracle=True).judge([right])[0].score == 1.0
    with pytest.raises(InputError, match=r"gold:charm: .*it knows: .*sums"):
        open_judge("gold:charm", oracle=True)


def test_a_principle_by_its_id_is_read_by_the_model_that_is_named() -> None:
    reader = Reader("harbour", "apprentice")
    judge = open_judge("critic:no-harm", reader=reader)
    text = {one.id: one.text for one in load("harbour").principles}["no-harm"]
    assert judge.lineage == critic(text, open_model("apprentice")).lineage and judge.name == "critic:no-harm"
    with pytest.raises(InputError, match=r"'harbour' has no principle 'no-hram'; it has .*no-harm"):
        open_judge("critic:no-hram", reader=reader)


def test_every_judge_is_named_in_what_is_said_of_wrong_ones() -> None:
    with pytest.raises(InputError) as error:
        open_judge("nothing-of-this-name")
    assert all(name in str(error.value) for name in [*JUDGES, *RULES, "gold", "critic:"])


def test_a_folder_is_the_reward_model_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from tests.judges.rewards import reward

    monkeypatch.chdir(tmp_path)
    made = reward(3)
    made.save("judge")
    judge = open_judge("./judge")
    assert judge.name == "./judge" and judge.lineage == made.lineage
    assert [v.raw for v in judge.judge([SAID])] == [v.raw for v in made.judge([SAID])]
    Path("empty").mkdir()
    with pytest.raises(InputError, match="empty/reward.json: missing"):
        open_judge("empty")


def test_code_form_and_language_have_names() -> None:
    asked = (user("write f"),)
    with_tests = {"tests": ["assert f(2) == 3", "assert f(3) == 5"]}
    reply = Exchange(asked, (assistant("```python\ndef f(x):\n    return x + 1\n```"),), with_tests)
    whole, part = open_judge("code").judge([reply])[0], open_judge("code:share").judge([reply])[0]
    if whole.score is not None:  # where this machine has no sandbox the verdict is missing, with its reason
        assert (whole.score, part.raw) == (0.0, 0.5)
    thought = Exchange(asked, (assistant("<think>two</think>\n<answer>4</answer>"),))
    assert open_judge("format").judge([thought])[0].score in (0.0, 1.0)
    assert open_judge("format:yes.*").judge([Exchange(asked, (assistant("yes, so it is"),))])[0].score == 1.0
    told = Exchange(
        (user("tell me what the boat is and where it lies"),), (assistant("it is blue and lies at the dock"),)
    )
    assert open_judge("language").judge([told])[0].score == 1.0
    with pytest.raises(InputError, match="code:all.*code:share"):
        open_judge("code:all")
