"""Draw t-SNE of z over the test prompts of a run, coloured by data source and by strongest code.

One point a prompt: pairs of one prompt share z, and drawn twice they would look like clusters. The titles state how
much z varies and how much the codes know of the prompt, since t-SNE shows structure in differences of any size.
"""

import csv
import io

import numpy as np

from lpc import cli, files
from lpc.config import specs
from lpc.evaluation import diagnostics
from lpc.report import figures, svg


def parser():
    parser = cli.step_parser(__doc__, specs.TSNE)
    parser.add_argument("--latents", required=True, help="latents.parquet of the run")
    parser.add_argument("--coordinates", required=True, help="CSV to write: one row a prompt")
    parser.add_argument("--by-source", required=True, help="SVG to write, and a PNG beside it")
    parser.add_argument("--by-code", required=True, help="SVG to write, and a PNG beside it")
    return parser


def main(args) -> None:
    table = files.read_parquet(args.latents)
    table = table.take(diagnostics.distinct(table["prompt_id"].to_pylist()))
    source = table["source"].to_pylist()
    z, h_x = (np.stack(table[name].to_numpy()).astype(np.float64) for name in ("z", "h_x"))
    settings = {"perplexity": args.spec.perplexity, "seed": args.spec.seed}
    z_map, h_map = diagnostics.embed(z, **settings), diagnostics.embed(h_x, **settings)

    note = f"Spread of z {diagnostics.spread(z):.2g}, mean |h| {np.linalg.norm(h_x, axis=1).mean():.3g}"
    if "prior" in table.column_names:
        prior = np.stack(table["prior"].to_numpy())
        code = [f"code {k}" for k in prior.argmax(axis=1)]
        note += f"; I(code; prompt) {diagnostics.mutual_information(prior):.2g} nats"
    else:
        code = ["no codes"] * len(source)
        note += "; a latent without codes"
    svg.save(figures.tsne_by_source(z_map, h_map, source, note), args.by_source)
    svg.save(figures.tsne_by_code(z_map, code, note), args.by_code)

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["prompt_id", "source", "code", "z_1", "z_2", "h_1", "h_2"])
    blank = np.full((len(source), 2), "")
    maps = [blank if points is None else np.round(points.astype(float), 4) for points in (z_map, h_map)]
    for prompt, name, strongest, at, of in zip(table["prompt_id"].to_pylist(), source, code, *maps, strict=True):
        writer.writerow([prompt, name, strongest, *at.tolist(), *of.tolist()])
    files.write_text(args.coordinates, stream.getvalue())


if __name__ == "__main__":
    cli.run(parser(), main)
