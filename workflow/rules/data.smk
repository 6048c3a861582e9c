# Stage data: preference rows, their split, the pairs, and the base models.
# In : `datasets`, `noise`, `bases` and `tokens` of the configuration; the hub or local files
# Out: R/data/<dataset>/{source.json,rows.parquet,rejects.jsonl,split.json}, R/data/<variant>/{pairs.parquet,pairs.json},
#      R/bases/<base>/base.json (and model/ where it is trained from scratch)


rule world:
    input:
        code=code("world"),
    output:
        rows=f"{R}/data/{{dataset}}/world.jsonl.gz",
        source=f"{R}/data/{{dataset}}/source.json",
    log:
        f"{R}/logs/world/{{dataset}}.log",
    benchmark:
        f"{R}/timing/world/{{dataset}}.tsv"
    wildcard_constraints:
        dataset=one_of(WORLDS),
    container:
        image("training")
    threads: resource("world", "threads")
    resources:
        mem_mb=memory("world"),
        runtime=runtime("world"),
    params:
        spec=lambda wildcards: spec(pick(dataset(wildcards), "rows", "completions", "score_noise", "seed")),
    shell:
        "python -m lpc.steps.world --spec {params.spec:q}"
        " --output {output.rows:q} --source {output.source:q} > {log:q} 2>&1"


# The only rules that use the network, so they run where Snakemake does.
rule download_dataset:
    input:
        file=local_dataset,
        code=code("download_dataset"),
    output:
        source=f"{R}/data/{{dataset}}/source.json",
    log:
        f"{R}/logs/download_dataset/{{dataset}}.log",
    benchmark:
        f"{R}/timing/download_dataset/{{dataset}}.tsv"
    wildcard_constraints:
        dataset=one_of(name for name in SETTINGS["datasets"] if name not in WORLDS),
    localrule: True
    container:
        image("training")
    params:
        spec=lambda wildcards: spec(pick(dataset(wildcards), "kind", "path", "revision", "hub_split")),
    shell:
        "HF_HUB_OFFLINE=0 HF_DATASETS_OFFLINE=0 python -m lpc.steps.download_dataset --spec {params.spec:q}"
        " --output {output.source:q} > {log:q} 2>&1"


rule download_base:
    input:
        files=local_base,
        code=code("download_base"),
    output:
        base=f"{R}/bases/{{base}}/base.json",
    log:
        f"{R}/logs/download_base/{{base}}.log",
    benchmark:
        f"{R}/timing/download_base/{{base}}.tsv"
    wildcard_constraints:
        base=one_of(name for name in SETTINGS["bases"] if name not in SCRATCH),
    localrule: True
    container:
        image("training")
    params:
        spec=lambda wildcards: spec(base(wildcards), name=wildcards.base),
    shell:
        "HF_HUB_OFFLINE=0 python -m lpc.steps.download_base --spec {params.spec:q}"
        " --output {output.base:q} > {log:q} 2>&1"


rule split:
    input:
        source=f"{R}/data/{{dataset}}/source.json",
        file=world_file,
        code=code("split"),
    output:
        rows=f"{R}/data/{{dataset}}/rows.parquet",
        rejects=f"{R}/data/{{dataset}}/rejects.jsonl",
        summary=f"{R}/data/{{dataset}}/split.json",
    log:
        f"{R}/logs/split/{{dataset}}.log",
    benchmark:
        f"{R}/timing/split/{{dataset}}.tsv"
    container:
        image("training")
    threads: resource("split", "threads")
    resources:
        mem_mb=memory("split"),
        runtime=runtime("split"),
    params:
        spec=lambda wildcards: spec(pick(dataset(wildcards), "split", "max_rejected_rows")),
    shell:
        "python -m lpc.steps.split --spec {params.spec:q} --source {input.source:q}"
        " --output {output.rows:q} --rejects {output.rejects:q} --summary {output.summary:q} > {log:q} 2>&1"


rule pairs:
    input:
        rows=f"{R}/data/{{dataset}}/rows.parquet",
        code=code("pairs"),
    output:
        pairs=f"{R}/data/{{dataset}}/pairs.parquet",
        summary=f"{R}/data/{{dataset}}/pairs.json",
    log:
        f"{R}/logs/pairs/{{dataset}}.log",
    benchmark:
        f"{R}/timing/pairs/{{dataset}}.tsv"
    container:
        image("training")
    threads: resource("pairs", "threads")
    resources:
        mem_mb=memory("pairs"),
        runtime=runtime("pairs"),
    params:
        spec=lambda wildcards: spec(dataset(wildcards)["pairs"]),
    shell:
        "python -m lpc.steps.pairs --spec {params.spec:q} --rows {input.rows:q}"
        " --output {output.pairs:q} --summary {output.summary:q} > {log:q} 2>&1"


rule flip:
    input:
        pairs=f"{R}/data/{{dataset}}/pairs.parquet",
        code=code("flip"),
    output:
        pairs=f"{R}/data/{{dataset}}.{{noise}}/pairs.parquet",
        summary=f"{R}/data/{{dataset}}.{{noise}}/pairs.json",
    log:
        f"{R}/logs/flip/{{dataset}}~{{noise}}.log",
    benchmark:
        f"{R}/timing/flip/{{dataset}}~{{noise}}.tsv"
    container:
        image("training")
    threads: resource("flip", "threads")
    resources:
        mem_mb=memory("flip"),
        runtime=runtime("flip"),
    params:
        spec=lambda wildcards: spec(SETTINGS["noise"][wildcards.noise]),
    shell:
        "python -m lpc.steps.flip --spec {params.spec:q} --pairs {input.pairs:q}"
        " --output {output.pairs:q} --summary {output.summary:q} > {log:q} 2>&1"


rule pretrain:
    input:
        rows=scratch_rows,
        code=code("pretrain"),
    output:
        base=f"{R}/bases/{{base}}/base.json",
        model=directory(f"{R}/bases/{{base}}/model"),
    log:
        f"{R}/logs/pretrain/{{base}}.log",
    benchmark:
        f"{R}/timing/pretrain/{{base}}.tsv"
    wildcard_constraints:
        base=one_of(SCRATCH),
    container:
        image("training")
    threads: resource("pretrain", "threads")
    resources:
        mem_mb=memory("pretrain"),
        runtime=runtime("pretrain"),
        gpu=resource("pretrain", "gpus"),
    params:
        spec=lambda wildcards: spec(base(wildcards), name=wildcards.base, tokens=SETTINGS["tokens"]),
    shell:
        "python -m lpc.steps.pretrain --spec {params.spec:q} --rows {input.rows:q}"
        " --output {output.model:q} --record {output.base:q} > {log:q} 2>&1"
