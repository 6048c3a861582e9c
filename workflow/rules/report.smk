# Stage report: tables over all runs of all experiments, and the page.
# In : what the stages before wrote for each run; the whole configuration
# Out: R/tables/*.csv, R/report.html
TABLES = [
    "preference_accuracy",
    "comparisons",
    "benchmarks",
    "latents",
    "codes",
    "code_correlations",
    "training",
    "cost",
]
# What a result depends on; how many cores it took is no part of it.
CONFIGURATION = {key: value for key, value in SETTINGS.items() if key != "resources"}
# On whose test pairs runs are scored besides those of their own dataset.
HELDOUT = dict.fromkeys(SETTINGS["evaluation"]["preference"]["datasets"])


def results_of(run):
    folder = f"{R}/runs/{run.path}"
    files = ["train.json", "train.jsonl"]
    files += [f"preference/{name}.{kind}" for name in {run.dataset: None, **HELDOUT} for kind in ("json", "parquet")]
    files += [f"benchmarks/{name}.json" for name in TASKS]
    if CONFIG.recipes[run.recipe]["latent"]:
        files += ["latents.json", "latents.parquet", "tsne_source.svg", "tsne_code.svg"]
    return [f"{folder}/{file}" for file in files]


def benchmarks_of_bases(runs):
    return [f"{R}/bases/{base}/benchmarks/{name}.json" for base in {run.base: None for run in runs} for name in TASKS]


RESULTS = [file for run in CONFIG.runs for file in results_of(run)] + benchmarks_of_bases(CONFIG.runs)


def run_list():
    """What the tables and the page are told of each run."""
    experiments = {}
    for name, runs in CONFIG.experiments.items():
        for run in runs:
            experiments.setdefault(run, []).append(name)
    return [
        {
            "path": run.path,
            "base": run.base,
            "dataset": run.dataset,
            "noise": run.noise,
            "variant": run.variant,
            "recipe": run.recipe,
            "seed": run.seed,
            "experiments": experiments[run],
        }
        for run in CONFIG.runs
    ]


rule tables:
    input:
        results=RESULTS,
        code=code("tables"),
    output:
        expand(f"{R}/tables/{{table}}.csv", table=TABLES),
    log:
        f"{R}/logs/tables/tables.log",
    benchmark:
        f"{R}/timing/tables/tables.tsv"
    localrule: True
    container:
        image("reporting")
    params:
        spec=lambda wildcards: spec(runs=run_list(), recipes=CONFIG.recipes, tasks=list(TASKS), datasets=list(HELDOUT)),
    # The list of runs may be longer than one argument of a command can be.
    shell:
        "python -m lpc.steps.tables --spec @<(printf %s {params.spec:q}) --results {R:q} --output {R:q}/tables > {log:q} 2>&1"


rule report:
    input:
        results=RESULTS,
        tables=rules.tables.output,
        code=code("report"),
    output:
        f"{R}/report.html",
    log:
        f"{R}/logs/report/report.log",
    benchmark:
        f"{R}/timing/report/report.tsv"
    localrule: True
    container:
        image("reporting")
    params:
        spec=lambda wildcards: spec(CONFIGURATION, runs=run_list(), recipes=CONFIG.recipes),
    shell:
        "python -m lpc.steps.report --spec @<(printf %s {params.spec:q}) --results {R:q} --output {output:q} > {log:q} 2>&1"
