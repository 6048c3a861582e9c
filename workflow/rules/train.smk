# Stage train: log-probabilities of the base for each pair, and one training per run.
# In : R/bases/<base>/base.json, R/data/<variant>/pairs.parquet; `recipes`, `training` and `tokens` of the configuration
# Out: R/reference/<base>/<variant>/{reference.parquet,statistics.safetensors},
#      R/runs/<base>/<variant>/<recipe>/seed-<n>/{model/,train.jsonl,train.json}


rule reference:
    input:
        base=f"{R}/bases/{{base}}/base.json",
        pairs=f"{R}/data/{{variant}}/pairs.parquet",
        code=code("reference"),
    output:
        reference=f"{R}/reference/{{base}}/{{variant}}/reference.parquet",
        statistics=f"{R}/reference/{{base}}/{{variant}}/statistics.safetensors",
    log:
        f"{R}/logs/reference/{{base}}~{{variant}}.log",
    benchmark:
        f"{R}/timing/reference/{{base}}~{{variant}}.tsv"
    container:
        image("training")
    threads: resource("reference", "threads")
    resources:
        mem_mb=memory("reference"),
        runtime=runtime("reference"),
        gpu=resource("reference", "gpus"),
    params:
        spec=lambda wildcards: spec(scoring(), batch_size=SETTINGS["training"]["micro_batch_size"]),
    shell:
        "python -m lpc.steps.reference --spec {params.spec:q} --base {input.base:q} --pairs {input.pairs:q}"
        " --output {output.reference:q} --statistics {output.statistics:q} > {log:q} 2>&1"


# Checkpoints lie in a folder that is no output, or Snakemake would delete them when a job fails. The step keeps those
# of each spec and each content of its input apart.
rule train:
    input:
        base=f"{R}/bases/{{base}}/base.json",
        pairs=f"{R}/data/{{variant}}/pairs.parquet",
        reference=training_reference,
        statistics=training_statistics,
        code=code("train"),
    output:
        model=directory(f"{RUN}/model"),
        metrics=f"{RUN}/train.jsonl",
        summary=f"{RUN}/train.json",
    log:
        f"{R}/logs/train/{{base}}~{{variant}}~{{recipe}}~{{seed}}.log",
    benchmark:
        f"{R}/timing/train/{{base}}~{{variant}}~{{recipe}}~{{seed}}.tsv"
    container:
        image("training")
    threads: resource("train", "threads")
    resources:
        mem_mb=memory("train"),
        runtime=runtime("train"),
        gpu=resource("train", "gpus"),
    params:
        spec=lambda wildcards: spec(recipe(wildcards), tokens=SETTINGS["tokens"], seed=int(wildcards.seed)),
        # Functions of `output`, so that Snakemake does not take them for reasons to train again.
        launch=lambda wildcards, output, threads: launch(threads),
        processes=lambda wildcards, output: PROCESSES,
        checkpoints=lambda wildcards, output: f"{R}/checkpoints/{'~'.join(wildcards)}",
    shell:
        "reference={input.reference:q} statistics={input.statistics:q};"
        " {params.launch} -m lpc.steps.train --spec {params.spec:q} --base {input.base:q} --pairs {input.pairs:q}"
        ' ${{reference:+--reference "$reference"}} ${{statistics:+--statistics "$statistics"}}'
        " --processes {params.processes} --checkpoints {params.checkpoints:q}"
        " --output {output.model:q} --metrics {output.metrics:q} --summary {output.summary:q} > {log:q} 2>&1"
