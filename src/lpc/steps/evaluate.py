"""Evaluate a run on test pairs: preference accuracy, latents and their t-SNE, completions, people, and style.

Each part is a step of its own, which also runs alone (`python -m lpc.steps.latents --help`). Here they share a process,
which loads the model once. A part that --finished holds with the same settings, data, model, code and versions is taken
from there, and the model is loaded only where a part that reads it is left.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from lpc import cli, files
from lpc.config import specs
from lpc.evaluation import finished
from lpc.evaluation.folder import Evaluated
from lpc.model.loading import LoadedRun
from lpc.steps import completions, latents, personalise, preference, style, tsne


@dataclass(frozen=True)
class Part:
    """A step with its arguments. name: of its folder in --finished. kinds: further modules that it runs."""

    name: str
    step: ModuleType
    spec: specs.Spec
    inputs: dict[str, Path | None]
    outputs: dict[str, Path]
    beside: tuple[Path, ...] = ()
    """Outputs that the step writes beside others."""
    kinds: tuple[str, ...] = ()

    def identity(self, model: dict) -> dict:
        """Return what the results of the part depend on. model: the identity of the model, if it reads that."""
        step = self.step.__name__.rpartition(".")[2]
        packages = ("torch", "transformers", "numpy", "scikit-learn", *(["matplotlib"] if self.beside else []))
        return {
            "spec": self.spec.tracked(),
            "inputs": {name: path and files.sha256(path) for name, path in self.inputs.items()},
            **(model if self.reads_model else {}),
            **finished.of_code(step, self.kinds, packages),
        }

    @property
    def reads_model(self) -> bool:
        return self.step is not tsne

    def files(self) -> list[Path]:
        return [*self.outputs.values(), *self.beside]


def parser():
    parser = cli.step_parser(__doc__, specs.Evaluate)
    parser.add_argument("--model", type=Path, required=True, help="model folder of the run")
    parser.add_argument("--base", type=Path, required=True, help="base.json")
    parser.add_argument(
        "--pairs", type=Path, nargs="+", required=True, help="pairs.parquet of each of `datasets`, in their order"
    )
    parser.add_argument("--reference", type=Path, nargs="+", required=True, help="reference.parquet of each, likewise")
    parser.add_argument("--finished", type=Path, required=True, help="folder of this run's finished parts")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    return parser


def main(args):
    model = finished.of_model(files.read_json(args.base), args.model)
    load = LoadedRun()
    for part in parts(args):
        identity, kept = part.identity(model), args.finished / part.name
        if finished.restore(kept, identity, part.files()):
            cli.log.info("%s: taken from %s, since nothing that it depends on has changed", part.name, kept)
            continue
        cli.log.info("%s", part.name)
        arguments = argparse.Namespace(spec=part.spec, **part.inputs, **part.outputs)
        if part.reads_model:
            part.step.main(argparse.Namespace(model=args.model, base=args.base, **vars(arguments)), load)
        else:
            part.step.main(arguments)
        finished.keep(kept, identity, part.files())


def parts(args) -> Iterator[Part]:
    """Yield the parts of the spec, each after those whose outputs it reads."""
    spec, out = args.spec, Evaluated(args.output)
    counts = {"datasets": len(spec.datasets), "--pairs": len(args.pairs), "--reference": len(args.reference)}
    if len(set(counts.values())) > 1:
        raise cli.UserError(f"{', '.join(f'{name}: {n}' for name, n in counts.items())}; give one of each per dataset")
    latent = tuple(finished.latent_module(args.model))
    objective = type(spec.preference.objective).__module__
    for name, pairs, reference in zip(spec.datasets, args.pairs, args.reference, strict=True):
        inputs, outputs = {"pairs": pairs, "reference": reference}, {"output": out.rewards(name)}
        outputs["summary"] = out.preference(name)
        kinds = (objective, *latent)
        yield Part(f"preference-{name}", preference, spec.preference, inputs, outputs, kinds=kinds)
    own = {"pairs": args.pairs[0]}
    if spec.latents:
        outputs = {"output": out.latents, "summary": out.latents_summary}
        yield Part("latents", latents, spec.latents, own, outputs, kinds=latent)
        outputs = {"coordinates": out.tsne} | {f"by_{colour}": out.tsne_figure(colour) for colour in ("source", "code")}
        beside = tuple(out.tsne_figure(colour, "png") for colour in ("source", "code"))
        yield Part("tsne", tsne, spec.tsne, {"latents": out.latents}, outputs, beside)
    if spec.completions:
        inputs, outputs = own | {"latents": out.latents}, {"output": out.completions}
        yield Part("completions", completions, spec.completions, inputs, outputs, kinds=latent)
    if spec.personalise:
        needed = spec.personalise.objective.needs_reference
        inputs, outputs = own | {"reference": args.reference[0] if needed else None}, {"output": out.person}
        yield Part("personalise", personalise, spec.personalise, inputs, outputs, kinds=(objective, *latent))
    if spec.style:
        inputs, outputs = own | {"person": out.person}, {"output": out.style}
        yield Part("style", style, spec.style, inputs, outputs, kinds=latent)


if __name__ == "__main__":
    cli.run(parser(), main)
