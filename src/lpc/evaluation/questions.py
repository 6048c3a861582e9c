"""Benchmark questions about the preference world, one set of each kind of the paper's four benchmarks.

The world's texts (`lpc.data.world`) state facts and sums, always in answers to its own prompts about one object. These
questions ask for the same knowledge the other way round and in another form ("Question: … Answer:"), so that a base
model that was trained on those texts answers well above chance and well below perfectly.

    easy      four choices: of which object is a fact true? Chance 1/4.
    hard      four choices: of which object are two facts true? Of each other choice one is. Chance 1/4.
    generate  the model writes; the sum that it states must be right. Chance about 1/10.
    truth     of which objects is a fact true? The score is the true sentences' share of the probability, of four true
              and four false ones. Chance 1/2.
"""

import random

from lpc.data import world

ASKED = {
    "colour": "is {value}",
    "material": "is made of {value}",
    "place": "is in the {value}",
    "owner": "belongs to the {value}",
}


def generate(kind: str, *, count: int, seed: int):
    """Yield `count` different questions of a kind; the same kind and seed give the same first questions."""
    make = {"easy": _easy, "hard": _hard, "generate": _generate, "truth": _truth}[kind]
    rng = random.Random(f"{kind}:{seed}")
    seen = set()
    while len(seen) < count:
        question = make(rng)
        if (key := str(question)) not in seen:
            yield {"id": f"{kind}-{len(seen)}", **question}
            seen.add(key)


def _ask(rng: random.Random, question: str) -> str:
    """The question after a sentence in the words of one of the sources, as the world's prompts have it."""
    _, _, _, openings, _ = world.SOURCES[rng.choice(list(world.SOURCES))]
    return f"{rng.choice(openings)} {question}"


def _with(attribute: str, value: str) -> list[str]:
    return [name for name in world.OBJECTS if world.FACTS[name][attribute] == value]


def _choice(rng: random.Random, name: str, others: list[str], facts: dict[str, str]) -> dict:
    """A question for the object of which `facts` (attribute to value) are true, among others."""
    names = rng.sample([name, *others], 1 + len(others))
    asked = " and ".join(ASKED[attribute].format(value=value) for attribute, value in facts.items())
    choices = [" ".join(world.fact(other, attribute, value) for attribute, value in facts.items()) for other in names]
    return {"question": _ask(rng, f"What {asked}?"), "choices": choices, "answer": names.index(name)}


def _easy(rng: random.Random) -> dict:
    name, attribute = rng.choice(world.OBJECTS), rng.choice(list(world.VALUES))
    value = world.FACTS[name][attribute]
    others = [other for other in world.OBJECTS if other not in _with(attribute, value)]
    return _choice(rng, name, rng.sample(others, 3), {attribute: value})


def _hard(rng: random.Random) -> dict:
    name = rng.choice(world.OBJECTS)
    facts = {attribute: world.FACTS[name][attribute] for attribute in rng.sample(list(world.VALUES), 2)}
    # Any two facts together are true of one object alone.
    first, second = ([other for other in _with(*fact) if other != name] for fact in facts.items())
    return _choice(rng, name, rng.sample(first, 2) + rng.sample(second, 1), facts)


def _generate(rng: random.Random) -> dict:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    counts = rng.choice(world.COUNTS).format(object=rng.choice(world.OBJECTS), a=a, b=b)
    return {"question": f"{counts} {rng.choice(world.QUESTIONS['sum'])}", "answer": str(a + b)}


def _truth(rng: random.Random) -> dict:
    attribute = rng.choice(list(world.VALUES))
    value = rng.choice(world.VALUES[attribute])
    true = rng.sample(_with(attribute, value), 4)
    false = rng.sample([name for name in world.OBJECTS if name not in _with(attribute, value)], 4)
    return {
        "question": _ask(rng, f"What {ASKED[attribute].format(value=value)}?"),
        "choices": [world.fact(name, attribute, value) for name in true + false],
        "labels": [1] * len(true) + [0] * len(false),
    }
