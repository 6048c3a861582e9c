"""Classify completions under each forced code by source, as a classifier of real completions sees them."""

from lpc import cli
from lpc.config import specs
from lpc.evaluation.completions import choose_prompts
from lpc.evaluation.style import completions_of_code, first_tokens, fit_classifier, shares
from lpc.files import read_json, read_parquet, write_json
from lpc.model.loading import load_run
from lpc.scoring import autocast, load_pairs, to_device


def parser():
    parser = cli.step_parser(__doc__, specs.Style)
    parser.add_argument("--model", required=True, help="model folder of the run, whose latent has codes")
    parser.add_argument("--base", required=True, help="base.json")
    parser.add_argument("--pairs", required=True, help="pairs.parquet of the clean data set")
    parser.add_argument("--person", required=True, help="person.json of the run: the source that each code stands for")
    parser.add_argument("--output", required=True, help="shares of sources among the completions of each code (JSON)")
    return parser


def main(args, load=load_run):
    spec = args.spec
    policy, tokenizer = load(args.base, args.model)
    to_device(policy)
    rows = read_parquet(args.pairs, ["pair_id", "prompt_id", "split", "source", "chosen"]).to_pylist()
    training, test = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    sources, texts = real_completions(training)
    classifier = fit_classifier(first_tokens(tokenizer, texts, spec.max_new_tokens), sources)
    sources, texts = real_completions(test)
    accuracy = float(classifier.score(first_tokens(tokenizer, texts, spec.max_new_tokens), sources))
    cli.log.info("classifier: right on %.1f %% of %d real test completions", 100 * accuracy, len(texts))

    places = choose_prompts([row["prompt_id"] for row in test], [""] * len(test), spec.prompts, spec.seed)
    chosen = [test[place]["pair_id"] for place in places]
    _, tokens = load_pairs(args.pairs, tokenizer, spec.tokens, pair_ids=chosen)
    how = {"batch_size": spec.batch_size, "max_new_tokens": spec.max_new_tokens}
    codes = []
    for code, source, right in stands_for(read_json(args.person)["codes"]):
        with autocast(policy, spec.precision):
            texts = list(completions_of_code(policy, tokenizer, [*tokens.prompts], code, **how))
        found = shares(classifier, texts)
        codes.append({"code": code, "source": source, "accuracy": right, "own": found[source], "shares": found})
        cli.log.info("code %d: %.1f %% of %d as %s", code, 100 * found[source], len(texts), source)
    result = {"spec": spec.tracked(), "prompts": len(tokens), "real_accuracy": accuracy, "codes": codes}
    write_json(args.output, result)


def real_completions(rows: list[dict]) -> tuple[list[str], list[str]]:
    """Return sources and texts of the chosen completions, each once."""
    sources, texts = zip(*sorted({(row["source"], row["chosen"]) for row in rows}), strict=True)
    return list(sources), list(texts)


def stands_for(rows: list[dict]) -> list[tuple[int, str, float]]:
    """Return (code, source, accuracy) of each code and the source on whose pairs it is most often right."""
    found = []
    for code in sorted({row["code"] for row in rows}):
        best = max((row for row in rows if row["code"] == code), key=lambda row: row["accuracy"])
        found.append((code, best["source"], best["accuracy"]))
    return found


if __name__ == "__main__":
    cli.run(parser(), main)
