# Stage report: tables over all runs of all experiments, and the page.
# Paths are below results/<project>/, as src/lpc/layout.py has them.
# In : what the stages before wrote for each run; the whole configuration
# Out: tables/*.{csv,rst}, report.html, runs/<run>/README.md


rule tables:
    input:
        results=results_of(CONFIG.runs),
    output:
        [
            report(RESULTS.table(table), caption=os.path.abspath(RESULTS.caption(table)), category="Tables")
            for table in TABLES
        ],
        [RESULTS.caption(table) for table in TABLES],
    log:
        RESULTS.log("tables"),
    benchmark:
        RESULTS.timing("tables")
    localrule: True
    container:
        image("reporting")
    params:
        spec=tracked(tables_spec),
        results=lambda wildcards, output: str(RESULTS.root),
        tables=lambda wildcards, output: str(RESULTS.tables),
    # The list of runs may be longer than one argument of a command can be.
    shell:
        "python -m lpc.steps.tables --spec @<(printf %s {params.spec:q})"
        " --results {params.results:q} --output {params.tables:q} > {log:q} 2>&1" + code("tables", *every_kind())


rule report:
    input:
        results=results_of(CONFIG.runs),
        tables=table_files(),
    output:
        report(RESULTS.report, caption=caption("report"), category="Report"),
    log:
        RESULTS.log("report"),
    benchmark:
        RESULTS.timing("report")
    localrule: True
    container:
        image("reporting")
    params:
        spec=tracked(report_spec),
        # Functions of `output`, so that Snakemake does not take them for reasons to make the page again. The commit is
        # found here, since there is no git in a container.
        results=lambda wildcards, output: str(RESULTS.root),
        commit=lambda wildcards, output: commit(),
    shell:
        "python -m lpc.steps.report --spec @<(printf %s {params.spec:q})"
        " --results {params.results:q} --commit {params.commit:q} --output {output:q} > {log:q} 2>&1"
        + code("report", *every_kind())


# A target of its own: `snakemake cards` writes the model card of each run, for people and for the hub (lpc.push).
rule cards:
    input:
        results=results_of(CONFIG.runs),
        tables=table_files(),
    output:
        [RESULTS.of(pick(run, "base", "variant", "recipe", "seed")).card for run in CONFIG.runs],
    log:
        RESULTS.log("cards"),
    benchmark:
        RESULTS.timing("cards")
    localrule: True
    container:
        image("reporting")
    params:
        spec=tracked(report_spec),
        results=lambda wildcards, output: str(RESULTS.root),
        commit=lambda wildcards, output: commit(),
    shell:
        "python -m lpc.steps.cards --spec @<(printf %s {params.spec:q})"
        " --results {params.results:q} --commit {params.commit:q} > {log:q} 2>&1" + code("cards", *every_kind())


# An experiment's name is a target: `snakemake codebook` makes the results of its runs, without tables and page.
for name, runs in CONFIG.experiments.items():

    rule:
        name:
            name
        input:
            results_of(runs),
        localrule: True
