# Stage analysis: what the latent of a run does on the test pairs.
# In : R/runs/<run>/model of runs with a latent, R/data/<dataset>/pairs.parquet; `evaluation` of the configuration
# Out: R/runs/<run>/{latents.parquet,latents.json,tsne.csv,tsne_source.{svg,png},tsne_code.{svg,png},completions.json}


rule latents:
    input:
        model=f"{RUN}/model",
        base=f"{R}/bases/{{base}}/base.json",
        pairs=lambda wildcards: f"{R}/data/{wildcards.variant.split('.')[0]}/pairs.parquet",
        code=code("latents"),
    output:
        latents=f"{RUN}/latents.parquet",
        summary=f"{RUN}/latents.json",
    log:
        f"{R}/logs/latents/{{base}}~{{variant}}~{{recipe}}~{{seed}}.log",
    benchmark:
        f"{R}/timing/latents/{{base}}~{{variant}}~{{recipe}}~{{seed}}.tsv"
    container:
        image("training")
    threads: resource("latents", "threads")
    resources:
        mem_mb=memory("latents"),
        runtime=runtime("latents"),
        gpu=resource("latents", "gpus"),
    params:
        spec=lambda wildcards: spec(scoring(), EVALUATION["latents"], batch_size=EVALUATION["preference"]["batch_size"]),
    shell:
        "python -m lpc.steps.latents --spec {params.spec:q} --model {input.model:q} --base {input.base:q}"
        " --pairs {input.pairs:q} --output {output.latents:q} --summary {output.summary:q} > {log:q} 2>&1"


rule tsne:
    input:
        latents=f"{RUN}/latents.parquet",
        code=code("tsne"),
    output:
        coordinates=f"{RUN}/tsne.csv",
        by_source=report(
            f"{RUN}/tsne_source.svg",
            caption="../report/tsne_source.rst",
            category="Figures",
            labels={"base": "{base}", "data": "{variant}", "recipe": "{recipe}", "seed": "{seed}", "colour": "source"},
        ),
        by_source_png=f"{RUN}/tsne_source.png",
        by_code=report(
            f"{RUN}/tsne_code.svg",
            caption="../report/tsne_code.rst",
            category="Figures",
            labels={"base": "{base}", "data": "{variant}", "recipe": "{recipe}", "seed": "{seed}", "colour": "code"},
        ),
        by_code_png=f"{RUN}/tsne_code.png",
    log:
        f"{R}/logs/tsne/{{base}}~{{variant}}~{{recipe}}~{{seed}}.log",
    benchmark:
        f"{R}/timing/tsne/{{base}}~{{variant}}~{{recipe}}~{{seed}}.tsv"
    container:
        image("reporting")
    threads: resource("tsne", "threads")
    resources:
        mem_mb=memory("tsne"),
        runtime=runtime("tsne"),
    params:
        spec=lambda wildcards: spec(EVALUATION["tsne"]),
    shell:
        "python -m lpc.steps.tsne --spec {params.spec:q} --latents {input.latents:q} --coordinates {output.coordinates:q}"
        " --by-source {output.by_source:q} --by-code {output.by_code:q} > {log:q} 2>&1"


rule completions:
    input:
        model=f"{RUN}/model",
        base=f"{R}/bases/{{base}}/base.json",
        pairs=lambda wildcards: f"{R}/data/{wildcards.variant.split('.')[0]}/pairs.parquet",
        latents=f"{RUN}/latents.parquet",
        code=code("completions"),
    output:
        f"{RUN}/completions.json",
    log:
        f"{R}/logs/completions/{{base}}~{{variant}}~{{recipe}}~{{seed}}.log",
    benchmark:
        f"{R}/timing/completions/{{base}}~{{variant}}~{{recipe}}~{{seed}}.tsv"
    container:
        image("training")
    threads: resource("completions", "threads")
    resources:
        mem_mb=memory("completions"),
        runtime=runtime("completions"),
        gpu=resource("completions", "gpus"),
    params:
        spec=lambda wildcards: spec(scoring(), EVALUATION["completions"] or {}),
    shell:
        "python -m lpc.steps.completions --spec {params.spec:q} --model {input.model:q} --base {input.base:q}"
        " --pairs {input.pairs:q} --latents {input.latents:q} --output {output:q} > {log:q} 2>&1"
