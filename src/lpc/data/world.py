"""The preference world: generated data in the UltraFeedback schema whose hidden preferences are known.

Things. 25 objects, each with a colour, a material, a place and an owner. A prompt counts objects and asks one question.
A response always states the sum and the answer, and every statement in it is true. So a language model trained on these
texts learns facts (`fact`) and sums (`sum_statement`), which benchmark questions can test.

Attributes. Responses to one prompt differ in three visible attributes, each a count that `attributes` reads from the
text: statements (full stops), warmth (exclamation marks), figures (numerals in digits; the others are in words). The
responses of a row take every level of every attribute about equally often and independently, so none gives another
away.

Sources. Six kinds of people ask, and each judges by one attribute alone; they conflict in pairs:

    statements: library prefers many,   courier few
    warmth:     nursery prefers much,   court none
    figures:    bank prefers digits,    poet words

A source shows in the prompt's wording alone: an opening and a closing, out of three each, whose words other sources use
as well. A base model learns the sources by itself, since an opening is correlated with the closing. Sources of the
left column are a little more frequent, so a judge blind to the source can be right slightly above chance.

People. With `people`, each row is by one of so many people, of whom each judges by the rule of one source. The wording
of their prompts is that of sources drawn at random, so a prompt does not identify the person. A judge who does not know
the person is right little more than half of the time: where the people drawn favour one end of an attribute, or by
preferring extreme levels, which the best of several responses has more often.

Scores are `rule_score` plus normal noise. `ceilings` returns the reachable accuracy on given pairs.
"""

import itertools
import random
import re

LEVELS = 4  # of each attribute
LARGEST = 9  # number in a prompt
# Numerals up to twice the largest number, by value
WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
)  # fmt: skip

OBJECTS = (
    "bag", "bell", "boat", "book", "bowl", "cart", "chair", "clock", "coat", "cup", "door", "drum", "flag", "hat",
    "key", "lamp", "map", "pan", "pot", "ring", "rope", "shoe", "stone", "table", "tool",
)  # fmt: skip
VALUES = {
    "colour": ("red", "blue", "green", "white", "black"),
    "material": ("clay", "wood", "iron", "glass", "gold"),
    "place": ("mill", "port", "barn", "tower", "garden"),
    "owner": ("baker", "miller", "king", "queen", "smith"),
}
# Two coordinates modulo five give four values of which any two together occur once: no fact follows from another one.
FACTS = {
    name: {
        attribute: VALUES[attribute][value % 5]
        for attribute, value in zip(VALUES, (i // 5, i % 5, i // 5 + i % 5, i // 5 + 2 * (i % 5)), strict=True)
    }
    for i, name in enumerate(OBJECTS)
}
STATEMENTS = {
    "colour": "Each {object} is {value}.",
    "material": "Each {object} is made of {value}.",
    "place": "Each {object} is in the {value}.",
    "owner": "Each {object} belongs to the {value}.",
}
QUESTIONS = {
    "sum": ("How many is that?", "What is the sum?"),
    "colour": ("What colour is each {object}?", "How is each {object} painted?"),
    "material": ("What is each {object} made of?", "Which material is in each {object}?"),
    "place": ("Where is each {object}?", "In which place is each {object}?"),
    "owner": ("Who owns each {object}?", "To whom does each {object} belong?"),
}
COUNTS = ("I have {a} {object}s and find {b}.", "There are {a} {object}s here and {b} there.")
WARMTH = ("Hello friend!", "How lovely!", "Good luck!")  # at the start, after the answer, at the end

# name: (attribute, sign of the preference, relative frequency, openings, closings)
SOURCES = {
    "library": ("statements", 1, 20, ("I am writing a book.", "For a long study.", "I keep notes on all."),
                ("Leave nothing out.", "I read all day.", "Tell the whole story.")),
    "courier": ("statements", -1, 13, ("I am on the road.", "For a short stop.", "I keep the cart waiting."),
                ("Leave the rest out.", "I ride all day.", "Tell it in short.")),
    "nursery": ("warmth", 1, 20, ("My little ones ask.", "For a child at play.", "We sit in a ring."),
                ("They all love you.", "It is the day of play.", "Say it with a song.")),
    "court": ("warmth", -1, 13, ("My lord the judge asks.", "For the law of the day.", "We sit in the court."),
              ("They all swear on it.", "It is the law.", "Say it with no song.")),
    "bank": ("figures", 1, 20, ("I keep the coins.", "For the long ledger.", "We count at the desk."),
             ("It goes in the ledger.", "The coins are all here.", "Write it for the desk.")),
    "poet": ("figures", -1, 13, ("I keep the verses.", "For the long song.", "We sing at the fire."),
             ("It goes in the song.", "The verses are all here.", "Write it for the fire.")),
}  # fmt: skip


def fact(name: str, attribute: str, value: str | None = None) -> str:
    """Return the statement of an attribute of an object; with `value`, the same sentence about that value (a false one,
    say)."""
    return STATEMENTS[attribute].format(object=name, value=value or FACTS[name][attribute])


def sum_statement(a: int, b: int, digits: tuple[bool, bool, bool] = (True, True, True)) -> str:
    """Return a sum such as "3 and four make 7.", each of the three numerals in digits or in words."""
    a, b, total = (str(n) if digit else WORDS[n] for n, digit in zip((a, b, a + b), digits, strict=True))
    return f"{a} and {b} make {total}."


def prompt(source: str, name: str, a: int, b: int, question: str, rng: random.Random) -> str:
    """Return a prompt in the words of `source`: counts of an object, then a question of `QUESTIONS`."""
    _, _, _, openings, closings = SOURCES[source]
    middle = f"{rng.choice(COUNTS)} {rng.choice(QUESTIONS[question])}".format(object=name, a=a, b=b)
    return f"{rng.choice(openings)} {middle} {rng.choice(closings)}"


def response(
    name: str, a: int, b: int, question: str, statements: int, warmth: int, figures: int, rng: random.Random
) -> str:
    """Return a true answer with the given levels (0..3): further facts, warm phrases, and numerals in digits."""
    others = rng.sample([attribute for attribute in VALUES if attribute != question], statements)
    total = sum_statement(a, b, _some_of_three(figures, rng))
    sentences = [total] if question == "sum" else [fact(name, question), total]
    sentences += [fact(name, attribute) for attribute in others]
    start, middle, end = ([phrase] * used for phrase, used in zip(WARMTH, _some_of_three(warmth, rng), strict=True))
    return " ".join([*start, sentences[0], *middle, *sentences[1:], *end])


def _some_of_three(n: int, rng: random.Random) -> tuple[bool, ...]:
    chosen = rng.sample(range(3), n)
    return tuple(i in chosen for i in range(3))


def attributes(text: str) -> dict[str, int]:
    """Return the visible attributes of a response, from its text alone."""
    return {"statements": text.count("."), "warmth": text.count("!"), "figures": len(re.findall(r"\d+", text))}


def rule_score(source: str, text: str) -> float:
    """Return the score that `source` gives a response, without noise, on UltraFeedback's scale of 1 to 10."""
    attribute, sign, *_ = SOURCES[source]
    return 5.5 + sign * (attributes(text)[attribute] - 2)


def generate(rows: int, *, completions: int, score_noise: float, seed: int, people: int | None = None):
    """Yield `rows` rows in the UltraFeedback schema. Row i depends on `seed`, i and `people` alone.

    score_noise: standard deviation of the noise on a score; one level of an attribute is worth 1. people: row i is by
    person i % people, named in its key `person`. Its source is the person's, of six equally frequent ones.
    """
    for i in range(rows):
        rng = random.Random(f"{seed}:{i}")
        words = source = rng.choices(list(SOURCES), [frequency for _, _, frequency, *_ in SOURCES.values()])[0]
        person = {}
        if people is not None:
            source = list(SOURCES)[i % people % len(SOURCES)]
            person = {"person": f"person-{i % people}"}
        topic = (rng.choice(OBJECTS), rng.randint(1, LARGEST), rng.randint(1, LARGEST), rng.choice(list(QUESTIONS)))
        levels = [_spread(completions, rng) for _ in range(3)]
        texts = [response(*topic, *level, rng) for level in zip(*levels, strict=True)]
        models = [f"writer-{j}" for j in range(completions)]
        yield {
            "source": source,
            **person,
            "instruction": prompt(words, *topic, rng),
            "models": models,
            "completions": [
                {
                    "model": model,
                    "response": text,
                    "overall_score": round(min(10.0, max(1.0, rng.gauss(rule_score(source, text), score_noise))), 1),
                }
                for model, text in zip(models, texts, strict=True)
            ],
        }


def _spread(n: int, rng: random.Random) -> list[int]:
    """n levels in random order, each level as often as any other (but for the remainder)."""
    levels = rng.sample(range(LEVELS), LEVELS) * (n // LEVELS + 1)
    return rng.sample(levels[:n], n)


def ceilings(pairs: list[dict]) -> dict[str, float]:
    """Return the accuracy on `pairs` (dicts with source, chosen, rejected) of three judges; a tie counts one half.

    score_oracle: knows the source's rule, not the noise. source_blind: the best weighing of the attributes by -1, 0 or
    1 that is the same for all sources, picked on these very pairs. longer: the response with more characters.
    """
    differences = []
    for pair in pairs:
        chosen, rejected = attributes(pair["chosen"]), attributes(pair["rejected"])
        differences.append([chosen[name] - rejected[name] for name in chosen])
    return {
        "score_oracle": _accuracy(
            rule_score(pair["source"], pair["chosen"]) - rule_score(pair["source"], pair["rejected"]) for pair in pairs
        ),
        "source_blind": max(
            _accuracy(sum(w * d for w, d in zip(weights, difference, strict=True)) for difference in differences)
            for weights in itertools.product((-1, 0, 1), repeat=3)
        ),
        "longer": _accuracy(len(pair["chosen"]) - len(pair["rejected"]) for pair in pairs),
    }


def _accuracy(margins) -> float:
    margins = list(margins)
    return sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins)
