# Stage analysis: what the latent of a run does on the test pairs.
# Paths are below results/<project>/, as src/lpc/layout.py has them.
# In : runs/<run>/model of runs with a latent, data/<dataset>/pairs.parquet; `evaluation` of the configuration
# Out: runs/<run>/{latents.parquet,latents.json,tsne.csv,tsne_source.{svg,png},tsne_code.{svg,png},completions.json,
#      style.json}


rule latents:
    input:
        model=RUN.model,
        base=BASE.record,
        pairs=lambda wildcards: RESULTS.data(dataset_of(wildcards.variant)).pairs,
        modules=modules("latents", "latent"),
    output:
        latents=RUN.latents,
        summary=RUN.latents_summary,
    log:
        RESULTS.log("latents", *RUN_NAMES),
    benchmark:
        RESULTS.timing("latents", *RUN_NAMES)
    container:
        image("training")
    threads: resource("latents", "threads")
    resources:
        mem_mb=memory("latents"),
        runtime=runtime("latents"),
        gpu=resource("latents", "gpus"),
    params:
        spec=tracked(latents_spec),
        execution=execution(latents_spec),
    shell:
        "python -m lpc.steps.latents"
        " --spec {params.spec:q} --execution {params.execution:q}"
        " --model {input.model:q} --base {input.base:q}"
        " --pairs {input.pairs:q} --output {output.latents:q} --summary {output.summary:q} > {log:q} 2>&1"
        + code("latents")


rule tsne:
    input:
        latents=RUN.latents,
    output:
        coordinates=RUN.tsne,
        by_source=report(
            RUN.tsne_figure("source"),
            caption=caption("tsne_source"),
            category="Figures",
            labels={"base": "{base}", "data": "{variant}", "recipe": "{recipe}", "seed": "{seed}", "colour": "source"},
        ),
        by_source_png=RUN.tsne_figure("source", "png"),
        by_code=report(
            RUN.tsne_figure("code"),
            caption=caption("tsne_code"),
            category="Figures",
            labels={"base": "{base}", "data": "{variant}", "recipe": "{recipe}", "seed": "{seed}", "colour": "code"},
        ),
        by_code_png=RUN.tsne_figure("code", "png"),
    log:
        RESULTS.log("tsne", *RUN_NAMES),
    benchmark:
        RESULTS.timing("tsne", *RUN_NAMES)
    container:
        image("reporting")
    threads: resource("tsne", "threads")
    resources:
        mem_mb=memory("tsne"),
        runtime=runtime("tsne"),
    params:
        spec=tracked(tsne_spec),
    shell:
        "python -m lpc.steps.tsne --spec {params.spec:q} --latents {input.latents:q} --coordinates {output.coordinates:q}"
        " --by-source {output.by_source:q} --by-code {output.by_code:q} > {log:q} 2>&1" + code("tsne")


rule completions:
    input:
        model=RUN.model,
        base=BASE.record,
        pairs=lambda wildcards: RESULTS.data(dataset_of(wildcards.variant)).pairs,
        latents=RUN.latents,
        modules=modules("completions", "latent"),
    output:
        RUN.completions,
    log:
        RESULTS.log("completions", *RUN_NAMES),
    benchmark:
        RESULTS.timing("completions", *RUN_NAMES)
    container:
        image("training")
    threads: resource("completions", "threads")
    resources:
        mem_mb=memory("completions"),
        runtime=runtime("completions"),
        gpu=resource("completions", "gpus"),
    params:
        spec=tracked(completions_spec),
    shell:
        "python -m lpc.steps.completions --spec {params.spec:q} --model {input.model:q} --base {input.base:q}"
        " --pairs {input.pairs:q} --latents {input.latents:q} --output {output:q} > {log:q} 2>&1" + code("completions")


rule style:
    input:
        model=RUN.model,
        base=BASE.record,
        pairs=lambda wildcards: RESULTS.data(dataset_of(wildcards.variant)).pairs,
        person=RUN.person,
        modules=modules("style", "latent"),
    output:
        RUN.style,
    log:
        RESULTS.log("style", *RUN_NAMES),
    benchmark:
        RESULTS.timing("style", *RUN_NAMES)
    container:
        image("training")
    threads: resource("style", "threads")
    resources:
        mem_mb=memory("style"),
        runtime=runtime("style"),
        gpu=resource("style", "gpus"),
    params:
        spec=tracked(style_spec),
        execution=execution(style_spec),
    shell:
        "python -m lpc.steps.style --spec {params.spec:q} --execution {params.execution:q}"
        " --model {input.model:q} --base {input.base:q}"
        " --pairs {input.pairs:q} --person {input.person:q} --output {output:q} > {log:q} 2>&1" + code("style")
