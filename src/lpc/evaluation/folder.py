"""The files of a run's evaluation, in a module of their own: an edit of other paths must not evaluate again."""

from pathlib import Path


class Evaluated:
    """Paths of the results on test pairs of one run, all in the folder `evaluation`."""

    def __init__(self, evaluation: Path):
        self.evaluation = evaluation
        self.latents = evaluation / "latents.parquet"
        self.latents_summary = evaluation / "latents.json"
        self.tsne = evaluation / "tsne.csv"
        self.completions = evaluation / "completions.json"
        self.person = evaluation / "person.json"
        self.style = evaluation / "style.json"

    def preference(self, dataset: str) -> Path:
        """Return the path of preference accuracy on the pairs of a dataset."""
        return self.evaluation / "preference" / f"{dataset}.json"

    def rewards(self, dataset: str) -> Path:
        """Return the path of the rewards of each of its test pairs."""
        return self.evaluation / "preference" / f"{dataset}.parquet"

    def tsne_figure(self, colour: str, suffix: str = "svg") -> Path:
        """Return a figure of t-SNE; `colour`: source or code, `suffix`: svg or png."""
        return self.evaluation / f"tsne_{colour}.{suffix}"
