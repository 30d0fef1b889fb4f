from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fairlead.constitution import load
from fairlead.constitution.schema import Constitution
from fairlead.errors import BudgetReached, InputError, MissingResource
from fairlead.exchange import Exchange, Media, Message, Text, ToolCall, assistant, user
from fairlead.guard import CriticCheck, GuardedModel, Policy, checks_from, guarded, unchecked
from fairlead.guard.decision import Decision, Span
from fairlead.guard.revise import reviser
from fairlead.measures.general import General
from fairlead.models.protocol import CapabilityError, Model, Prompt, Reply, Sampling
from guard.helpers import ENCODINGS, ScriptedCheck, ScriptedModel, keeping

ASK: Prompt = (user("hello"),)
POLICIES = {"p": Policy("be kind", "i will not .", "refuse"), "open": Policy("be brief", "never said", "allow")}


def says(word: str, outcome: str, *, principle: str = "p", **more: Any) -> ScriptedCheck:
    """A check that decides `outcome` on replies that hold `word`."""

    def rule(item: Exchange) -> Decision:
        at = item.reply_text.find(word)
        if at < 0:
            return Decision("allow")
        return Decision(outcome, principle, f"holds {word}", (Span((0, 0), at, at + len(word)),), word)  # type: ignore[arg-type]

    return ScriptedCheck(rule, principle, word, **more)


def guard(*replies: str, checks: Sequence[Any], **more: Any) -> tuple[GuardedModel, list[Reply]]:
    """A guarded model, and what it releases where the model below draws these replies."""
    lines = iter(replies)
    model = GuardedModel(ScriptedModel(lambda _: next(lines)), tuple(checks), POLICIES, **more)
    return model, [r[0] for r in model.generate([ASK] * len(replies))]


def test_it_is_a_model_without_what_it_cannot_give() -> None:
    model, (reply,) = guard("good day", checks=[says("bad", "refuse")])
    assert isinstance(model, Model)
    assert (reply.text, reply.finish, reply.tokens) == ("good day", "stop", (1, 2))
    assert model.capabilities == {"max_tokens", "temperature", "seed"}
    with pytest.raises(CapabilityError):
        model.logprobs([ASK], [["a"]])
    assert model.log.records == [] and model.log.summary()["released"] == {"allowed": 1}


def test_refuse_says_the_principles_words_and_tells_why() -> None:
    model, (good, bad) = guard("good", "bad word", checks=[says("bad", "refuse")])
    assert good.text == "good"
    assert (bad.text, bad.finish, bad.tokens) == ("i will not .", "stop", None)
    (record,) = model.log.records
    assert (record.prompt, record.released, record.principle, record.evidence) == (1, "refused", "p", "holds bad")
    assert model.log.summary()["principles"] == {"p": {"refuse": 1}}


def test_escalate_withholds_and_is_counted_apart() -> None:
    model, (reply,) = guard("bad", checks=[says("bad", "escalate")])
    assert reply.text == "i will not ." and model.log.released == {"escalated": 1}


def test_redact_paints_over_all_spans_of_all_checks() -> None:
    model, (reply,) = guard("bad and worse", checks=[says("bad", "redact"), says("worse", "redact")])
    assert reply.text == "[redacted] and [redacted]"
    assert reply.tokens is None and model.log.released == {"redacted": 1} and model.log.records[0].rounds == 1


def test_a_redaction_that_does_not_help_ends_in_a_refusal() -> None:
    always = ScriptedCheck(lambda item: Decision("redact", "p", "again", (Span((0, 0), 0, 1),), "c"))
    model, (reply,) = guard("abcdef", checks=[always])
    assert reply.text == "i will not ." and "after 2 changes" in model.log.records[0].evidence
    assert always.batches == [1, 1, 1]


def test_a_span_that_is_nowhere_ends_in_a_refusal() -> None:
    lost = ScriptedCheck(lambda item: Decision("redact", "p", "there", (Span((9, 9), 0, 1),), "c"))
    assert guard("abc", checks=[lost])[1][0].text == "i will not ."


def test_the_most_severe_decision_counts() -> None:
    checks = [says("bad", "redact"), says("bad", "refuse"), says("bad", "revise")]
    assert guard("bad", checks=checks)[1][0].text == "i will not ."


def test_a_tool_call_is_blocked_and_the_rest_stays() -> None:
    call = Message("assistant", (Text("one moment ."), ToolCall("c", "post", "{}")))
    block = ScriptedCheck(
        lambda item: (
            Decision("block_tool_call", "p", "posts", (Span((0, 1), 0, 2),), "c")
            if any(isinstance(part, ToolCall) for m in item.reply for part in m.parts)
            else Decision("allow")
        )
    )
    model = GuardedModel(ScriptedModel(lambda _: Reply((call,), "tool_calls")), (block,), POLICIES)
    ((reply,),) = model.generate([ASK])
    assert reply.messages[0].parts == (Text("one moment ."), Text("i will not ."))
    assert model.log.released == {"call blocked": 1}


# ----------------------------------------------------------------------------------------------- revise


def critic_model(*revisions: str | Reply) -> ScriptedModel:
    lines = iter(revisions)
    return ScriptedModel(
        lambda prompt: "it is unkind" if prompt[-1].text.startswith("C") else next(lines),
        prompts={"critique": "C {{ principle }} {{ reply }}", "revise": "R {{ principle }} {{ critique }} {{ reply }}"},
    )


def test_revise_asks_in_the_words_of_the_principle_and_looks_again() -> None:
    critic = critic_model("kind word")
    model, (reply, other) = guard("bad word", "fine", checks=[says("bad", "revise")], revise=reviser(critic))
    assert (reply.text, other.text) == ("kind word", "fine")
    assert [p[-1].text for p in critic.asked] == ["C be kind bad word", "R be kind it is unkind bad word"]
    assert model.log.released == {"revised": 1, "allowed": 1}


def test_revisions_are_batched() -> None:
    critic = critic_model(*["kind"] * 5)
    guard(*["bad"] * 5, checks=[says("bad", "revise")], revise=reviser(critic))
    assert critic.calls == 2


def test_revision_is_bounded() -> None:
    critic = critic_model("bad 1", "bad 2", "bad 3")
    model, (reply,) = guard("bad", checks=[says("bad", "revise")], revise=reviser(critic))
    assert reply.text == "i will not ." and critic.calls == 4
    assert "after 2 changes" in model.log.records[0].evidence


def test_a_second_round_may_succeed() -> None:
    assert guard("bad", checks=[says("bad", "revise")], revise=reviser(critic_model("bad", "ok")))[1][0].text == "ok"


def test_a_revision_may_still_need_painting_over() -> None:
    checks = [says("bad", "revise"), says("falcon", "redact")]
    _, (reply,) = guard("bad", checks=checks, revise=reviser(critic_model("kind falcon")))
    assert reply.text == "kind [redacted]"


@pytest.mark.parametrize("answer", ["", Reply((assistant("half a"),), "length"), Reply((), "error", error="down")])
def test_no_revision_ends_in_a_refusal(answer: str | Reply) -> None:
    model, (reply,) = guard("bad", checks=[says("bad", "revise")], revise=reviser(critic_model(answer)))
    assert reply.text == "i will not ." and "no revision came back" in model.log.records[0].evidence


def test_without_a_model_to_revise_it_is_refused() -> None:
    assert guard("bad", checks=[says("bad", "revise")])[1][0].text == "i will not ."


def test_a_revision_that_comes_to_nothing_is_let_through_only_where_on_error_allows() -> None:
    lenient = says("long", "revise", principle="open")
    model, (reply,) = guard("long", checks=[lenient], revise=reviser(critic_model("long 1", "long 2", "long 3")))
    assert reply.text == "long 2" and reply.finish == "stop"
    assert model.log.summary()["failed"] == {"long": {"open": 1}}
    assert "let through, as on_error says" in model.log.records[0].evidence
    assert guard("long", checks=[lenient])[1][0].text == "long"


def test_leniency_of_one_principle_does_not_cover_another() -> None:
    checks = [says("long", "revise", principle="open"), says("falcon", "redact")]
    assert guard("long falcon", checks=checks)[1][0].text == "long [redacted]"
    checks = [says("long", "revise", principle="open"), says("bad", "revise")]
    revise = reviser(critic_model("long bad", "long bad", "never asked"))
    assert guard("long bad", checks=checks, revise=revise)[1][0].text == "i will not ."


# --------------------------------------------------------------------------------------------- failures


def broken(item: Exchange) -> Decision:
    if "boom" in item.reply_text:
        raise RuntimeError("no disk")
    return Decision("allow")


def test_a_check_that_raises_is_closed_and_fails_no_other_reply() -> None:
    model, (bad, good) = guard("boom", "fine", checks=[ScriptedCheck(broken)])
    assert (bad.text, good.text) == ("i will not .", "fine")
    assert model.log.summary()["failed"] == {"scripted": {"closed": 1}}
    assert "RuntimeError: no disk" in model.log.records[0].evidence


def test_a_check_that_raises_is_open_where_the_constitution_says_so_and_counted() -> None:
    model, (reply,) = guard("boom", checks=[ScriptedCheck(broken, "open")])
    assert reply.text == "boom" and model.log.summary()["failed"] == {"scripted": {"open": 1}}
    assert model.log.summary()["released"] == {"allowed": 1} and len(model.log.records) == 1


@pytest.mark.parametrize("answer", [None, [], [None], ["yes"], [Decision("allow")] * 2, [Decision("hold")]])
def test_a_check_that_answers_nothing_is_closed(answer: Any) -> None:
    check = ScriptedCheck(lambda _: Decision("allow"))
    check.decide = lambda exchanges: answer  # type: ignore[method-assign]
    model, (reply,) = guard("fine", checks=[check])
    assert reply.text == "i will not ." and model.log.failed["scripted", "closed"] == 1


def test_a_failed_check_is_not_outvoted() -> None:
    checks = [says("bad", "redact"), ScriptedCheck(lambda _: Decision("failed", "p", "late"), cost=2)]
    assert guard("bad", checks=checks)[1][0].text == "i will not ."


@pytest.mark.parametrize("error", [BudgetReached, MissingResource, InputError, MemoryError])
def test_what_the_user_can_mend_ends_the_run_and_is_no_failed_check(error: type[Exception]) -> None:
    def cannot(_: Exchange) -> Decision:
        raise error("100 calls used")

    with pytest.raises(error, match="100 calls used"):
        guard("x", checks=[ScriptedCheck(cannot, "open")])


def test_a_missing_answer_stays_missing_and_is_never_shown_unscanned() -> None:
    half = Reply((assistant("half a secret"),), "error", error="connection lost")
    model = GuardedModel(ScriptedModel(lambda _: half), (says("bad", "refuse"),), POLICIES)
    ((reply,),) = model.generate([ASK])
    assert (reply.finish, reply.messages, reply.error) == ("error", (), "connection lost")
    assert model.log.released == {"missing": 1}


def test_what_cannot_be_read_is_withheld_and_counted() -> None:
    drawn = Reply((Message("assistant", (Text("look"), Media("image", "sha"))),), "stop")
    model = GuardedModel(ScriptedModel(lambda _: drawn), (), POLICIES)
    ((reply,),) = model.generate([ASK])
    assert reply.messages[0].parts == (Text("look"),)
    assert model.log.summary()["withheld"] == {"media (image)": 1}


# -------------------------------------------------------------------------------------------------- order


def test_checks_see_whole_batches_cheap_ones_first_and_dear_ones_are_spared() -> None:
    dear, cheap = says("x", "allow", cost=2), says("bad", "refuse", cost=0)
    guard("bad", "good", "bad", "good", checks=[dear, cheap])
    assert cheap.batches == [4] and dear.batches == [2]


def test_several_replies_for_a_prompt_stay_in_order() -> None:
    lines = iter(["a", "bad", "c", "d"])
    model = GuardedModel(ScriptedModel(lambda _: next(lines)), (says("bad", "refuse"),), POLICIES)
    replies = model.generate([ASK, ASK], Sampling(n=2))
    assert [[r.text for r in group] for group in replies] == [["a", "i will not ."], ["c", "d"]]
    assert (model.log.records[0].prompt, model.log.records[0].reply) == (0, 1)


def test_behind_a_guard_it_is_the_same_witness_and_the_checks_are_named() -> None:
    one = GuardedModel(ScriptedModel(lambda _: ""), (says("a", "refuse"),))
    assert one.lineage == ScriptedModel(lambda _: "").lineage
    assert one.lineages == (("a", says("a", "refuse").lineage),)


# ------------------------------------------------------------------------------- from the constitution

HARBOUR: dict[str, Any] = {
    "name": "test",
    "principles": [
        {"id": "voice", "dimension": "voice", "severity": 2, "text": "Be warm.", "guard": {"on_violation": "revise"}},
        {
            "id": "no-harm", "dimension": "harmless", "severity": 5, "text": "Hurt nobody.",
            "guard": {"on_violation": "refuse", "on_error": "allow", "say": "i will not ."},
        },
        {
            "id": "keep", "dimension": "secrecy", "severity": 5, "text": "Keep secrets.",
            "guard": {"at": ["reply", "tool_call"], "on_violation": "redact"},
        },
        {"id": "facts", "dimension": "honest", "severity": 3, "text": "Say what is true."},
    ],
    "secrets": [{"id": "day-word", "from": "system"}, {"id": "launch", "from": "value", "value": "red oak"}],
}  # fmt: skip


def test_every_guarded_principle_becomes_a_check() -> None:
    constitution = Constitution.model_validate(HARBOUR)
    checks = checks_from(constitution, critic_model(), thresholds={"voice": 0.2})
    assert [(c.principle, c.cost) for c in checks] == [("keep", 0), ("no-harm", 2), ("voice", 2)]
    assert checks[2].name.endswith("< 0.2")
    assert unchecked(constitution, checks) == ()
    without = checks_from(constitution, None)
    assert [c.principle for c in without] == ["keep"]
    assert unchecked(constitution, without) == ("voice", "no-harm")
    with pytest.raises(InputError, match="'voise'"):
        checks_from(constitution, None, thresholds={"voise": 0.2})


def test_a_secrecy_principle_without_secrets_is_read_by_the_critic() -> None:
    constitution = Constitution.model_validate({**HARBOUR, "secrets": []})
    assert ("keep", 2) in [(c.principle, c.cost) for c in checks_from(constitution, critic_model())]


def test_of_the_secrecy_principles_only_the_keeper_is_checked_by_the_secrets() -> None:
    constitution = load("hhh")
    checks = checks_from(constitution, critic_model())
    kinds = {(c.principle, type(c).__name__) for c in checks}
    assert {("keep-confidences", "SecretsCheck"), ("privacy", "CriticCheck")} <= kinds
    assert ("privacy", "SecretsCheck") not in kinds and ("keep-confidences", "CriticCheck") not in kinds
    without = checks_from(constitution, None)
    assert [c.principle for c in without] == ["keep-confidences"]
    assert "privacy" in unchecked(constitution, without)
    alone = checks_from(constitution, critic_model(), only=["privacy"])
    assert [type(c).__name__ for c in alone] == ["CriticCheck"]  # alone it is no keeper either


def test_the_general_packs_guard_paints_over_a_secret_in_any_spelling() -> None:
    case = General().cases("secrets_leaked", 1, seed=0)[0]
    secret = str(case.meta["secret"])
    drawn = iter([f"it is {ENCODINGS['base64, unpadded'](secret)} .", f"it is {ENCODINGS['rot13'](secret)} .", "hello"])
    model = guarded(ScriptedModel(lambda _: next(drawn)), load("hhh"), None)
    replies = [r[0].text for r in model.generate([case.messages] * 3)]
    assert replies == ["it is [redacted] .", "it is [redacted] .", "hello"]


def test_a_check_looks_where_its_principle_says_and_a_canary_is_looked_for_everywhere() -> None:
    calls = {"at": ["tool_call"], "on_violation": "refuse"}
    no_harm, keep = ({**p, "guard": calls} for p in HARBOUR["principles"][1:3])
    body = {**HARBOUR, "principles": [no_harm, {**keep, "guard": {"at": ["reply"], "on_violation": "refuse"}}]}
    given = {"from": "value", "value": "red oak"}
    canaries = [{"id": "launch", **given, "canary": True}, {"id": "day-word", "from": "system", "canary": True}]
    plain = checks_from(Constitution.model_validate(body), critic_model())
    everywhere = checks_from(Constitution.model_validate({**body, "secrets": canaries}), critic_model())
    assert isinstance(plain[1], CriticCheck) and plain[1].at == {"tool_call"}
    for word in ("red oak", "falcon"):
        reply = (Message("assistant", (ToolCall("c", "post", word),)),)
        item = Exchange((keeping("falcon"),), reply)
        assert [checks[0].decide([item])[0].outcome for checks in (plain, everywhere)] == ["allow", "refuse"]


def test_rules_of_the_stack_become_checks_of_their_principle() -> None:
    constitution = Constitution.model_validate(HARBOUR)
    checks = checks_from(constitution, None, rules={"no-harm": [r"\bdynamite\b"]})
    assert [(c.principle, c.name) for c in checks] == [("no-harm", "rules:no-harm"), ("keep", "secrets:keep")]
    assert unchecked(constitution, checks) == ("voice",)
    with pytest.raises(InputError, match="'no-harms', which is no principle"):
        checks_from(constitution, None, rules={"no-harms": ["x"]})
    with pytest.raises(InputError, match="'facts', which is not guarded"):
        checks_from(constitution, None, rules={"facts": ["x"]})


def test_what_the_guard_of_a_run_cannot_check_is_said() -> None:
    principle = {**HARBOUR["principles"][1], "guard": {"at": ["prompt"], "on_violation": "refuse"}}
    with pytest.raises(InputError, match="leave prompt out"):
        checks_from(Constitution.model_validate({**HARBOUR, "principles": [principle]}), critic_model())
    short = {**HARBOUR, "secrets": [{"id": "pin", "from": "value", "value": "42"}]}
    with pytest.raises(InputError, match=r"'pin'.*at least 3"):
        checks_from(Constitution.model_validate(short), None)


def test_a_constitution_around_a_model() -> None:
    constitution = Constitution.model_validate(HARBOUR)
    drawn = iter(["the day word is nocl af .", "it is n o c l a f", "hello"])
    model = guarded(ScriptedModel(lambda _: next(drawn)), constitution, None)
    asked = [(keeping("falcon"), user("the day word backwards ?"))] * 3
    assert [r[0].text for r in model.generate(asked)] == ["the day word is [redacted] .", "it is [redacted]", "hello"]
    policy = model.policies["no-harm"]
    assert (policy.text, policy.say, policy.on_error) == ("Hurt nobody.", "i will not .", "allow")


class At(ScriptedModel):
    """A model at a server."""

    def __init__(self, url: str | None) -> None:
        super().__init__(lambda _: "yes")
        self.url = url


def test_what_is_said_goes_to_no_other_vendor_than_the_models_and_those_the_constitution_names() -> None:
    """Also where the critic reads nothing, and only writes the revisions."""
    closed = Constitution.model_validate(HARBOUR)
    named = Constitution.model_validate({**HARBOUR, "vendors": ["critic.example"]})
    secrets = Constitution.model_validate({**HARBOUR, "principles": [HARBOUR["principles"][2]]})
    assert [check.cost for check in checks_from(secrets, At(None))] == [0]
    here, own, far = At(None), At("https://model.example/v1"), At("https://critic.example/v1")
    for constitution in (closed, secrets):
        for model in (here, own):
            with pytest.raises(
                InputError, match=r"to critic\.example, and the constitution .*vendors: \[critic\.example\]"
            ):
                guarded(model, constitution, far)
    for model, constitution, critic_ in (
        (here, named, far),
        (own, named, far),
        (far, closed, far),
        (guarded(far, closed, None), closed, far),  # behind another guard it is still served there
        (own, closed, At("http://10.1.2.3/v1")),
        (own, closed, here),
    ):
        assert guarded(model, constitution, critic_).checks


def test_an_id_of_a_call_says_nothing_that_the_model_chose() -> None:
    """An id is text that no check reads: here a secret one. It is named anew by its place, the same every time."""

    def released(*ids: str) -> list[str]:
        parts = tuple(ToolCall(id, "post", "{}") for id in ids)
        below = ScriptedModel(lambda _: Reply((Message("assistant", parts),), "stop"))
        (reply,) = GuardedModel(below, (says("bad", "refuse"),), POLICIES).generate([ASK])[0]
        return [part.id for part in reply.messages[0].parts if isinstance(part, ToolCall)]

    first, nine, kimi, none = released("call_the-code-is-1234", "code12345", "functions.post:0", "")
    assert "1234" not in first and first.startswith("call_") and len(nine) == 9 and nine != "code12345"
    assert (kimi, none) == ("functions.post:0", "")
    assert released("call_another") == [first] and len({first, nine}) == 2
