# Stage data: preference rows, their split, the pairs, and the base models.
# Paths are below results/<project>/, as src/lpc/layout.py has them.
# In : `datasets`, `noise`, `bases` and `tokens` of the configuration; the hub or local files
# Out: data/<dataset>/{dataset.json,rows.parquet,rejects.jsonl,split.json}, data/<variant>/{pairs.parquet,pairs.json},
#      bases/<base>/base.json (and model/ where it is trained from scratch or quantised)


rule world:
    output:
        rows=DATASET.world,
        record=DATASET.record,
    log:
        RESULTS.log("world", "{dataset}"),
    benchmark:
        RESULTS.timing("world", "{dataset}")
    wildcard_constraints:
        dataset=one_of(WORLDS),
    container:
        image("training")
    threads: resource("world", "threads")
    resources:
        mem_mb=memory("world"),
        runtime=runtime("world"),
    params:
        spec=tracked(world_spec),
    shell:
        "python -m lpc.steps.world --spec {params.spec:q}"
        " --output {output.rows:q} --record {output.record:q} > {log:q} 2>&1" + code("world")


# The only rules that use the network, so they run where Snakemake does.
rule download_dataset:
    input:
        file=local_dataset,
    output:
        record=DATASET.record,
    log:
        RESULTS.log("download_dataset", "{dataset}"),
    benchmark:
        RESULTS.timing("download_dataset", "{dataset}")
    wildcard_constraints:
        dataset=one_of(name for name in SETTINGS.datasets if name not in [*WORLDS, *MIXTURES]),
    localrule: True
    container:
        image("training")
    params:
        spec=tracked(download_dataset_spec),
    shell:
        "HF_HUB_OFFLINE=0 HF_DATASETS_OFFLINE=0 python -m lpc.steps.download_dataset --spec {params.spec:q}"
        " --output {output.record:q} > {log:q} 2>&1" + code("download_dataset")


rule download_base:
    input:
        files=local_base,
    output:
        base=BASE.record,
    log:
        RESULTS.log("download_base", "{base}"),
    benchmark:
        RESULTS.timing("download_base", "{base}")
    wildcard_constraints:
        base=one_of(name for name in SETTINGS.bases if name not in SCRATCH + QUANTIZED),
    localrule: True
    container:
        image("training")
    params:
        spec=tracked(download_base_spec),
    shell:
        "HF_HUB_OFFLINE=0 python -m lpc.steps.download_base --spec {params.spec:q}"
        " --output {output.base:q} > {log:q} 2>&1" + code("download_base")


rule split:
    input:
        record=DATASET.record,
        file=world_file,
        modules=modules("split", "dataset"),
    output:
        rows=DATASET.rows,
        rejects=DATASET.rejects,
        summary=DATASET.split,
    log:
        RESULTS.log("split", "{dataset}"),
    benchmark:
        RESULTS.timing("split", "{dataset}")
    container:
        image("training")
    threads: resource("split", "threads")
    resources:
        mem_mb=memory("split"),
        runtime=runtime("split"),
    params:
        spec=tracked(split_spec),
    shell:
        "python -m lpc.steps.split --spec {params.spec:q} --record {input.record:q}"
        " --output {output.rows:q} --rejects {output.rejects:q} --summary {output.summary:q} > {log:q} 2>&1"
        + code("split")


rule pairs:
    input:
        rows=DATASET.rows,
    output:
        pairs=DATASET.pairs,
        summary=DATASET.pairs_summary,
    log:
        RESULTS.log("pairs", "{dataset}"),
    benchmark:
        RESULTS.timing("pairs", "{dataset}")
    wildcard_constraints:
        dataset=one_of(name for name in SETTINGS.datasets if name not in MIXTURES),
    container:
        image("training")
    threads: resource("pairs", "threads")
    resources:
        mem_mb=memory("pairs"),
        runtime=runtime("pairs"),
    params:
        spec=tracked(pairs_spec),
    shell:
        "python -m lpc.steps.pairs --spec {params.spec:q} --rows {input.rows:q}"
        " --output {output.pairs:q} --summary {output.summary:q} > {log:q} 2>&1" + code("pairs")


rule mix:
    input:
        pairs=members,
    output:
        pairs=DATASET.pairs,
        summary=DATASET.pairs_summary,
    log:
        RESULTS.log("mix", "{dataset}"),
    benchmark:
        RESULTS.timing("mix", "{dataset}")
    wildcard_constraints:
        dataset=one_of(MIXTURES),
    container:
        image("training")
    threads: resource("pairs", "threads")
    resources:
        mem_mb=memory("pairs", rule="mix"),
        runtime=runtime("pairs"),
    params:
        spec=tracked(mix_spec),
    shell:
        "python -m lpc.steps.mix --spec {params.spec:q} --pairs {input.pairs:q}"
        " --output {output.pairs:q} --summary {output.summary:q} > {log:q} 2>&1" + code("mix")


rule flip:
    input:
        pairs=DATASET.pairs,
    output:
        pairs=NOISY.pairs,
        summary=NOISY.pairs_summary,
    log:
        RESULTS.log("flip", "{dataset}", "{noise}"),
    benchmark:
        RESULTS.timing("flip", "{dataset}", "{noise}")
    container:
        image("training")
    threads: resource("flip", "threads")
    resources:
        mem_mb=memory("flip"),
        runtime=runtime("flip"),
    params:
        spec=tracked(flip_spec),
    shell:
        "python -m lpc.steps.flip --spec {params.spec:q} --pairs {input.pairs:q}"
        " --output {output.pairs:q} --summary {output.summary:q} > {log:q} 2>&1" + code("flip")


rule pretrain:
    input:
        rows=scratch_rows,
    output:
        base=BASE.record,
        model=directory(BASE.model),
    log:
        RESULTS.log("pretrain", "{base}"),
    benchmark:
        RESULTS.timing("pretrain", "{base}")
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
        spec=tracked(pretrain_spec),
    shell:
        "python -m lpc.steps.pretrain --spec {params.spec:q} --rows {input.rows:q}"
        " --output {output.model:q} --record {output.base:q} > {log:q} 2>&1" + code("pretrain")


rule quantize:
    input:
        base=quantize_source,
    output:
        base=BASE.record,
        model=directory(BASE.model),
    log:
        RESULTS.log("quantize", "{base}"),
    benchmark:
        RESULTS.timing("quantize", "{base}")
    wildcard_constraints:
        base=one_of(QUANTIZED),
    container:
        image("training")
    threads: resource("quantize", "threads")
    resources:
        mem_mb=memory("quantize"),
        runtime=runtime("quantize"),
    params:
        spec=tracked(quantize_spec),
    shell:
        "python -m lpc.steps.quantize --spec {params.spec:q} --base {input.base:q}"
        " --output {output.model:q} --record {output.base:q} > {log:q} 2>&1" + code("quantize")
