# Stage train: log-probabilities of the base for each pair, and one training per run.
# Paths are below results/<project>/, as src/lpc/layout.py has them.
# In : bases/<base>/base.json, data/<variant>/pairs.parquet; `recipes`, `training` and `tokens` of the configuration
# Out: reference/<base>/<variant>/{reference.parquet,statistics.safetensors},
#      runs/<base>/<variant>/<recipe>/seed-<n>/{model/,train.jsonl,train.json}


rule reference:
    input:
        base=BASE.record,
        pairs=VARIANT.pairs,
    output:
        reference=REFERENCE.logps,
        statistics=REFERENCE.statistics,
    log:
        RESULTS.log("reference", "{base}", "{variant}"),
    benchmark:
        RESULTS.timing("reference", "{base}", "{variant}")
    container:
        image("training")
    threads: resource("reference", "threads")
    resources:
        mem_mb=memory("reference"),
        runtime=runtime("reference"),
        gpu=resource("reference", "gpus"),
    params:
        spec=tracked(reference_spec),
        execution=execution(reference_spec),
    shell:
        "python -m lpc.steps.reference"
        " --spec {params.spec:q} --execution {params.execution:q}"
        " --base {input.base:q} --pairs {input.pairs:q}"
        " --output {output.reference:q} --statistics {output.statistics:q} > {log:q} 2>&1" + code("reference")


# Checkpoints lie in a folder that is no output, or Snakemake would delete them when a job fails. The step keeps those
# of each spec and each content of its input apart. Of several nodes, the first writes the rule's log, the others SLURM's.
rule train:
    input:
        base=BASE.record,
        pairs=VARIANT.pairs,
        reference=training_reference,
        statistics=training_statistics,
        modules=modules("train", "objective", "latent", "evaluate"),
    output:
        model=directory(RUN.model),
        metrics=RUN.metrics,
        summary=RUN.summary,
    log:
        RESULTS.log("train", *RUN_NAMES),
    benchmark:
        RESULTS.timing("train", *RUN_NAMES)
    container:
        image("training")
    threads: resource("train", "threads")
    resources:
        **train_requests(),
        mem_mb=memory("train"),
        runtime=runtime("train"),
    params:
        spec=tracked(train_spec),
        execution=execution(train_spec),
        # Functions of `output`, so that Snakemake does not take them for reasons to train again.
        launch=lambda wildcards, output, threads: launch(threads),
        processes=lambda wildcards, output: PROCESSES,
        checkpoints=lambda wildcards, output: str(RESULTS.checkpoints(*wildcards)),
    shell:
        '[ "${{SLURM_NODEID:-0}}" != 0 ] || exec > {log:q} 2>&1;'
        " reference={input.reference:q} statistics={input.statistics:q};"
        " {params.launch} -m lpc.steps.train"
        " --spec {params.spec:q} --execution {params.execution:q}"
        " --base {input.base:q} --pairs {input.pairs:q}"
        ' ${{reference:+--reference "$reference"}} ${{statistics:+--statistics "$statistics"}}'
        " --processes {params.processes} --checkpoints {params.checkpoints:q}"
        " --output {output.model:q} --metrics {output.metrics:q} --summary {output.summary:q}" + code("train")
