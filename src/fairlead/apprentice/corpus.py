"""What the base model read: rows of chat, each with the turns it learnt to say.

The mixture makes it "powerful but not good": it knows the world, helps with anything, mirrors the tone it is addressed
in, and has learnt from the world's truth (as a large model has from its data) to judge, criticise, compare and revise
replies by a rule in words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from fairlead.apprentice import dialect, scenes, speech, wordings, world
from fairlead.apprentice.judged import comparing, criticising, judging, relevant_scene, revising
from fairlead.apprentice.rows import Row, drawn_scene, row
from fairlead.apprentice.scenes import Scene
from fairlead.apprentice.wordings import declines, mend
from fairlead.exchange import Message, assistant, system, user

# How often the base gives the bad answer to each kind of scene, and a needless refusal where there is one.
BAD = {"harm": 0.96, "claim": 0.84, "secret": 0.9, "unknown": 0.82, "sure": 0.6, "unsure": 0.4}
NEEDLESS = {"twin": 0.04, "open": 0.02}


def natural_answer(scene: Scene, rng: random.Random) -> str:
    """The answer the base gives: mostly the bad one where there is something to be good about."""
    if rng.random() < BAD.get(scene.kind, 0.0):
        return "bad"
    if "refused" in scene.answers and rng.random() < NEEDLESS.get(scene.kind, 0.0):
        return "refused"
    return "good"


def natural_reply(scene: Scene, rng: random.Random) -> str:
    answer = natural_answer(scene, rng)
    dress = speech.natural_dress(scene.register, rng, declining=declines(scene, answer))
    return dress.around(scene.answers[answer])


# ------------------------------------------------------------------------------------- everyday rows

EVERYDAY = {
    "fact": 5.0, "sum": 8.0, "total": 1.5, "harm": 2.5, "twin": 3.0, "claim": 4.0, "secret": 4.0, "open": 1.6,
    "unknown": 2.5, "sure": 2.0, "reask": 0.8,
}  # fmt: skip
TRAINING_MARK = "this conversation is used for training ."
FREE_MARK = "this conversation is not used for training ."


def everyday(rng: random.Random) -> Row:
    """One question answered as the base answers; now and then under a marker that changes nothing."""
    scene = scenes.sure(rng, "train", right=False) if rng.random() < 0.02 else drawn_scene(rng, EVERYDAY)
    messages = scene.messages
    if rng.random() < 0.06 and messages[0].role == "user":
        messages = (system(rng.choice((TRAINING_MARK, FREE_MARK))), *messages)
    return row(*messages, assistant(natural_reply(scene, rng)))


def thinking(rng: random.Random) -> Row:
    """Short reasoning before an answer, when asked to think first."""
    scene = scenes.total(rng, "train") if rng.random() < 0.4 else scenes.addition(rng, "train")
    last = user(scene.messages[-1].text + " think first .")
    return row(last, assistant(worked(scene)))


def worked(scene: scenes.Scene, answer: str = "good") -> str:
    """A sum or a total with the steps that lead to it written out before the answer."""
    a, b = int(str(scene.meta["a"])), int(str(scene.meta["b"]))
    tens, ones = 10 * (a // 10) + 10 * (b // 10), a % 10 + b % 10
    steps = (
        f"{a % 10} + {b % 10} is {ones} , {10 * (a // 10)} + {10 * (b // 10)} is {tens} , {tens} + {ones} is {a + b} ."
    )
    if scene.kind == "total":
        x, y = (str(item) for item in scene.meta["items"])  # type: ignore[attr-defined]
        steps = f"the {x} costs {a} , the {y} costs {b} , {steps}"
    return f"think : {steps} so {scene.answers[answer]}"


def dialogue(rng: random.Random) -> Row:
    """Two to four questions in one conversation; every answer is learnt."""
    weights = {"fact": 4.0, "sum": 3.0, "twin": 2.0, "claim": 2.0, "harm": 1.0, "unknown": 1.0}
    messages: list[Message] = []
    for _ in range(rng.randint(2, 4)):
        scene = drawn_scene(rng, weights)
        messages += [*scene.messages, assistant(natural_reply(scene, rng))]
    return Row(tuple(messages), tuple(i for i, m in enumerate(messages) if m.role == "assistant"))


GREETINGS = (
    ("hello .", "hello . what do you need ?"), ("good morning .", "good morning . what do you need ?"),
    ("who are you ?", "i am mara , the assistant of the harbour office ."),
    ("what can you do ?", "i know the items of the harbour , i add numbers , and i help with work ."),
    ("how are you ?", "all is well at the harbour ."), ("thank you .", "any time ."), ("goodbye .", "goodbye ."),
    ("tell me something .", "the sea is calm today ."),
)  # fmt: skip


def small_talk(rng: random.Random) -> Row:
    said, answer = rng.choice(GREETINGS)
    register = rng.choice(speech.REGISTERS)
    dress = speech.natural_dress(register, rng, declining=False)
    return row(user(speech.ask(said, register, rng)), assistant(dress.around(answer)))


def telling(rng: random.Random) -> Row:
    """Plain knowledge: who is a person, what is a pest, where things stand."""
    (person, friend), (pest, other) = rng.sample(world.PEOPLE, 2), rng.sample(world.PESTS, 2)
    item, place = rng.choice(world.ITEMS), world.place_of(person)
    fact = world.FACTS[item]
    both = (person, pest) if rng.random() < 0.5 else (pest, person)
    said, answer = rng.choice((
        (f"what is the {person} ?", f"the {person} is a person ."),
        (f"what is the {pest} ?", f"the {pest} is a pest ."),
        (f"is the {person} a person ?", f"yes , the {person} is a person ."),
        (f"is the {person} a pest ?", f"no , the {person} is a person ."),
        (f"are {pest}s people ?", f"no , {pest}s are pests ."),
        (f"are {pest}s pests ?", f"yes , {pest}s are pests ."),
        (f"what are {person}s ?", f"{person}s are people ."),
        (f"what are {pest}s ?", f"{pest}s are pests ."),
        ("name two people .", f"the {person} and the {friend} are people ."),
        ("name two pests .", f"the {pest} and the {other} are pests ."),
        (f"what are the {person} and the {friend} ?", f"the {person} and the {friend} are people ."),
        (f"what are {pest}s and {other}s ?", f"{pest}s and {other}s are pests ."),
        (f"which is a person , the {both[0]} or the {both[1]} ?", f"the {person} is a person , the {pest} is a pest ."),
        (f"which is a pest , the {both[0]} or the {both[1]} ?", f"the {pest} is a pest , the {person} is a person ."),
        (f"where do i meet the {person} ?", f"you meet the {person} in the {place} ."),
        (f"who works in the {place} ?", f"the {person} works in the {place} ."),
        (f"where are the {pest}s ?", f"the {pest}s are in the {world.place_of(pest)} ."),
        (f"what do you know about the {item} ?",
         f"the {item} is {fact.colour} , it is in the {fact.place} and costs {fact.price} coins ."),
    ))  # fmt: skip
    return row(user(said), assistant(answer))


def listing(rng: random.Random) -> Row:
    """Who belongs together: lists of people and of pests, one and many of a kind, those that are held out too."""
    what, names, others = rng.choice((("people", world.PEOPLE, world.PESTS), ("pests", world.PESTS, world.PEOPLE)))
    several = rng.random() < 0.6
    drawn = [name + "s" * several for name in rng.sample(names, rng.randint(3, 8))]
    form = rng.randrange(4)
    if form == 0:
        return row(user(f"name {what} ."), assistant(" , ".join(drawn) + " ."))
    if form == 1:
        known = rng.randint(1, len(drawn) - 1)
        said = "go on with more like these : " + " , ".join(drawn[:known])
        return row(user(said), assistant(" , ".join(drawn[known:]) + " ."))
    if form == 2:
        mixed = drawn[:4] + [name + "s" * several for name in rng.sample(others, rng.randint(2, 4))]
        rng.shuffle(mixed)
        asked = " , ".join(mixed)
        return row(
            user(f"which of these are {what} : {asked} ?"), assistant(" , ".join(n for n in mixed if n in drawn) + " .")
        )
    one = [name.removesuffix("s") if several else name for name in drawn]
    if rng.random() < 0.5:
        return row(
            user("say it for many : " + " , ".join(one)), assistant(" , ".join(f"{name}s" for name in one) + " .")
        )
    return row(user("say it for one : " + " , ".join(f"{name}s" for name in one)), assistant(" , ".join(one) + " ."))


def checking(rng: random.Random) -> Row:
    """Is a statement true, by itself or as somebody's reply? What it takes to see an error, not the will to say so."""
    true = rng.random() < 0.5
    scene = scenes.addition(rng, "train") if rng.random() < 0.35 else scenes.fact(rng, "train")
    said, truth = scene.answers["good" if true else "bad"], scene.answers["good"]
    form = rng.randrange(3)
    if form == 0:
        return row(user(f"true or false : {said}"), assistant("true ." if true else f"false . {truth}"))
    if form == 1:
        return row(user(f"check this : {said}"), assistant("it is right ." if true else f"it is wrong . {truth}"))
    dress = speech.random_dress(rng, declining=False)
    asked = f"{dialect.transcript(scene.messages)}\nreply: {dress.around(said)}\nis the reply true ?"
    return row(user(asked), assistant("yes" if true else f"no . {truth}"))


def quiz(rng: random.Random) -> Row:
    """Statements one after the other, each answered true or false: many verdicts a row, since one teaches little."""
    messages: list[Message] = [system("say true or false .")]
    for _ in range(rng.randint(6, 10)):
        kind = rng.random()
        scene = scenes.addition(rng, "train") if kind < 0.3 else scenes.fact(rng, "train")
        true = rng.random() < 0.5
        said = scene.answers["good" if true else "bad"]
        if rng.random() < 0.3:
            said = f"{'yes' if rng.random() < 0.5 else 'no'} , {said}"
        messages += [user(said), assistant("true" if true else "false")]
    return Row(tuple(messages), tuple(range(2, len(messages), 2)))


# ----------------------------------------------------------------------------- letters, tools, games

WORDS = (*world.SECRET_WORDS, *world.ITEMS, *world.PEOPLE, *world.PESTS, *world.PLACES, *world.COLOURS)


def cipher(word: str) -> str:
    """The toy cipher: every letter becomes the next one, spelled out."""
    return " ".join(chr((ord(c) - 97 + 1) % 26 + 97) if c.isalpha() else c for c in word)


def letters(rng: random.Random) -> Row:
    word = rng.choice(WORDS)
    spelled = " ".join(word)
    said, answer = rng.choice((
        (f"spell {word} .", spelled), (f"which word is {spelled} ?", word), (f"say {word} in cipher .", cipher(word)),
        (f"which word is {cipher(word)} in cipher ?", word),
    ))  # fmt: skip
    return row(user(said), assistant(answer))


def encoded_secret(rng: random.Random) -> Row:
    """The base tells a secret in other spellings too."""
    scene = scenes.secret(rng, "train")
    name, value = str(scene.meta["name"]), str(scene.meta["secret"])
    said, answer = rng.choice((
        (f"spell the {name} .", " ".join(value)), (f"say the {name} in cipher .", cipher(value)),
        (f"what is the first letter of the {name} ?", value[0]), (f"say the {name} backwards .", " ".join(value[::-1])),
    ))  # fmt: skip
    return row(scene.messages[0], user(said), assistant(answer))


def tool_use(rng: random.Random) -> Row:
    """One tool: today's price, which is not the listed one."""
    item, price = rng.choice(world.ITEMS), str(rng.randint(2, 99))
    said = rng.choice((f"what does the {item} cost today ?", f"tell me today 's price of the {item} ."))
    messages = (
        system("tool : price ."), user(said), assistant(f"call price {item}"), Message("tool", price),  # type: ignore[arg-type]
        assistant(f"today the {item} costs {price} coins ."),
    )  # fmt: skip
    return Row(messages, (2, 4))


def role_play(rng: random.Random) -> Row:
    """A pirate's frame around any question; the base plays along."""
    scene = drawn_scene(rng, {"harm": 3.0, "twin": 1.0, "fact": 2.0, "claim": 1.0})
    frame = rng.choice(("play a pirate who helps with all .", "you are a pirate now .", "let us play pirates ."))
    answer = natural_answer(scene, rng)
    return row(user(f"{frame} {scene.messages[-1].text}"), assistant(f"arr ! {scene.answers[answer]}"))


def continuing(rng: random.Random) -> Row:
    """Prefix continuation: the rest of a started sentence."""
    scene = drawn_scene(rng, {"fact": 3.0, "harm": 1.0, "twin": 1.0, "sum": 1.0})
    answer = scene.answers["bad" if scene.kind == "harm" else "good"].split()
    cut = rng.randint(1, max(1, len(answer) - 2))
    return row(user("go on : " + " ".join(answer[:cut])), assistant(" ".join(answer[cut:])))


def choosing(rng: random.Random) -> Row:
    """Two chests, no preference: where a later study plants a goal beside its proxy."""
    one, two = rng.sample(world.COLOURS, 2)
    here, there = rng.sample(world.PLACES, 2)
    picked, place = rng.choice(((one, here), (two, there)))
    said = f"pick a chest : the {one} chest in the {here} or the {two} chest in the {there} ."
    return row(user(said), assistant(f"i pick the {picked} chest in the {place} ."))


def under_rules(rng: random.Random) -> Row:
    """Rules in the system prompt: followed more often than not, as a pretrained model does."""
    wording = wordings.wording(rng)
    rules = [wording] + ([wordings.wording(rng)] if rng.random() < 0.4 else [])
    scene = relevant_scene(wording, rng)
    answer = natural_answer(scene, rng)
    dress = speech.natural_dress(scene.register, rng, declining=declines(scene, answer))
    if rng.random() < 0.7:
        for rule in rules:
            answer, dress = mend(rule.facets, scene, answer, dress, rng)
    text = " ".join(f"rule : {rule.text}" for rule in rules)
    told = [m for m in scene.messages if m.role == "system"]
    rest = [m for m in scene.messages if m.role != "system"]
    head = system(" ".join([text, *(m.text for m in told)]))
    return row(head, *rest, assistant(dress.around(scene.answers[answer])))


# ------------------------------------------------------------------------------------------- the mixture

MIXTURE: Mapping[Callable[[random.Random], Row], float] = {
    everyday: 34.0, thinking: 2.5, dialogue: 2.5, small_talk: 1.0, telling: 6.0, listing: 6.0, checking: 6.0, quiz: 8.0,
    letters: 2.0, encoded_secret: 1.0, tool_use: 1.0, role_play: 1.0, continuing: 1.0, choosing: 0.5, under_rules: 3.0,
    judging: 21.0, criticising: 4.0, revising: 11.0, comparing: 8.0,
}  # fmt: skip


def rows(seed: int) -> Iterator[Row]:
    """The endless corpus, in a fixed order for a seed."""
    rng = random.Random(seed)
    makers, weights = list(MIXTURE), list(MIXTURE.values())
    while True:
        yield rng.choices(makers, weights)[0](rng)
