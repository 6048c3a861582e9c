# Stage evaluate: preference accuracy, latents and benchmarks of each run, benchmarks of each base.
# Paths are below results/<project>/, as src/lpc/layout.py has them.
# In : runs/<run>/model, bases/<base>/base.json, data/<dataset>/pairs.parquet; `evaluation` of the configuration
# Out: runs/<run>/evaluation/, runs/<run>/benchmarks/<task>.{json,samples.jsonl},
#      bases/<base>/benchmarks/<task>.{json,samples.jsonl}, runs/<run>/alpacaeval/{outputs,judged,annotations}.json


rule download_task:
    output:
        TASK.download,
    log:
        RESULTS.log("download_task", "{task}"),
    benchmark:
        RESULTS.timing("download_task", "{task}")
    localrule: True
    container:
        image("evaluation")
    params:
        spec=tracked(download_task_spec),
        execution=execution(download_task_spec),
    shell:
        "HF_HUB_OFFLINE=0 HF_DATASETS_OFFLINE=0 python -m lpc.steps.download_task"
        " --spec {params.spec:q} --execution {params.execution:q}"
        " --output {output:q} > {log:q} 2>&1" + code("download_task")


rule questions:
    output:
        TASK.questions,
    log:
        RESULTS.log("questions", "{task}"),
    benchmark:
        RESULTS.timing("questions", "{task}")
    localrule: True
    container:
        image("evaluation")
    params:
        spec=tracked(questions_spec),
    shell:
        "python -m lpc.steps.questions --spec {params.spec:q} --output {output:q} > {log:q} 2>&1" + code("questions")


# A job does all that is measured of a run on pairs, and loads the model once. Snakemake deletes all of its outputs
# before it, so finished parts also lie in a folder that is no output: the step takes from there what has not changed,
# and computes the others.
rule evaluate:
    input:
        model=RUN.model,
        base=BASE.record,
        pairs=evaluated_pairs,
        reference=evaluated_references,
        modules=modules("evaluate", "objective", "latent"),
    output:
        report(
            directory(RUN.evaluation),
            # Of plain runs there is no figure, and Snakemake refuses a folder in which it finds nothing to show.
            patterns=[
                str(path.relative_to(RUN.evaluation))
                for path in (RUN.tsne_figure("{shown}"), RUN.preference("{shown}"))
            ],
            caption=caption("evaluation"),
            category="Runs",
            labels={"base": "{base}", "data": "{variant}", "recipe": "{recipe}", "seed": "{seed}", "shown": "{shown}"},
        ),
    log:
        RESULTS.log("evaluate", *RUN_NAMES),
    benchmark:
        RESULTS.timing("evaluate", *RUN_NAMES)
    container:
        image("training")
    threads: resource("evaluate", "threads")
    resources:
        mem_mb=memory("evaluate"),
        runtime=runtime("evaluate"),
        gpu=resource("evaluate", "gpus"),
    params:
        spec=tracked(evaluate_spec),
        execution=execution(evaluate_spec),
        finished=lambda wildcards, output: str(RESULTS.finished("evaluate", *wildcards)),
    shell:
        "python -m lpc.steps.evaluate"
        " --spec {params.spec:q} --execution {params.execution:q}"
        " --model {input.model:q} --base {input.base:q}"
        " --pairs {input.pairs:q} --reference {input.reference:q}"
        " --finished {params.finished:q} --output {output:q} > {log:q} 2>&1" + code("evaluate")


# Likewise for the benchmark tasks.
if TASKS:

    rule benchmark:
        input:
            model=RUN.model,
            base=BASE.record,
            data=task_data,
            modules=modules("benchmark", "latent"),
            task_modules=task_modules,
        output:
            results=[RUN.benchmarks.result(name) for name in TASKS],
            samples=[RUN.benchmarks.samples(name) for name in TASKS],
        log:
            RESULTS.log("benchmark", *RUN_NAMES),
        benchmark:
            RESULTS.timing("benchmark", *RUN_NAMES)
        container:
            image("evaluation")
        threads: resource("benchmark", "threads")
        resources:
            mem_mb=memory("benchmark"),
            runtime=runtime("benchmark"),
            gpu=resource("benchmark", "gpus"),
        params:
            spec=tracked(benchmark_spec),
            execution=execution(benchmark_spec),
            finished=lambda wildcards, output: str(RESULTS.finished("benchmark", *wildcards)),
            folder=lambda wildcards, output: str(RESULTS.run(*wildcards).benchmarks.folder),
        shell:
            "python -m lpc.steps.benchmark"
            " --spec {params.spec:q} --execution {params.execution:q}"
            " --model {input.model:q} --base {input.base:q}"
            " --finished {params.finished:q} --output {params.folder:q} > {log:q} 2>&1" + code("benchmark")

    rule benchmark_base:
        input:
            base=BASE.record,
            data=task_data,
            task_modules=task_modules,
        output:
            results=[BASE.benchmarks.result(name) for name in TASKS],
            samples=[BASE.benchmarks.samples(name) for name in TASKS],
        log:
            RESULTS.log("benchmark_base", "{base}"),
        benchmark:
            RESULTS.timing("benchmark_base", "{base}")
        container:
            image("evaluation")
        threads: resource("benchmark", "threads")
        resources:
            mem_mb=memory("benchmark", rule="benchmark_base"),
            runtime=runtime("benchmark"),
            gpu=resource("benchmark", "gpus"),
        params:
            spec=tracked(benchmark_base_spec),
            execution=execution(benchmark_base_spec),
            finished=lambda wildcards, output: str(RESULTS.finished("benchmark_base", *wildcards)),
            folder=lambda wildcards, output: str(RESULTS.base(*wildcards).benchmarks.folder),
        shell:
            "python -m lpc.steps.benchmark"
            " --spec {params.spec:q} --execution {params.execution:q}"
            " --base {input.base:q}"
            " --finished {params.finished:q} --output {params.folder:q} > {log:q} 2>&1" + code("benchmark")


rule alpacaeval_download:
    input:
        files=alpacaeval_files,
    output:
        instructions=RESULTS.alpacaeval_instructions,
        reference=RESULTS.alpacaeval_reference,
    log:
        RESULTS.log("alpacaeval_download", "alpacaeval"),
    benchmark:
        RESULTS.timing("alpacaeval_download", "alpacaeval")
    localrule: True
    container:
        image("evaluation")
    params:
        spec=tracked(alpacaeval_download_spec),
    shell:
        "HF_HUB_OFFLINE=0 python -m lpc.steps.alpacaeval_download --spec {params.spec:q}"
        " --instructions {output.instructions:q} --reference {output.reference:q} > {log:q} 2>&1"
        + code("alpacaeval_download")


rule alpacaeval_generate:
    input:
        model=RUN.model,
        base=BASE.record,
        instructions=RESULTS.alpacaeval_instructions,
        modules=modules("alpacaeval_generate", "latent"),
    output:
        RUN.answers,
    log:
        RESULTS.log("alpacaeval_generate", *RUN_NAMES),
    benchmark:
        RESULTS.timing("alpacaeval_generate", *RUN_NAMES)
    container:
        image("evaluation")
    threads: resource("alpacaeval_generate", "threads")
    resources:
        mem_mb=memory("alpacaeval_generate"),
        runtime=runtime("alpacaeval_generate"),
        gpu=resource("alpacaeval_generate", "gpus"),
    params:
        spec=tracked(alpacaeval_generate_spec),
        execution=execution(alpacaeval_generate_spec),
    shell:
        "python -m lpc.steps.alpacaeval_generate"
        " --spec {params.spec:q} --execution {params.execution:q}"
        " --model {input.model:q} --base {input.base:q}"
        " --instructions {input.instructions:q} --output {output:q} > {log:q} 2>&1" + code("alpacaeval_generate")


rule alpacaeval_judge:
    input:
        outputs=RUN.answers,
        reference=RESULTS.alpacaeval_reference,
    output:
        result=RUN.judged,
        annotations=RUN.annotations,
    log:
        RESULTS.log("alpacaeval_judge", *RUN_NAMES),
    benchmark:
        RESULTS.timing("alpacaeval_judge", *RUN_NAMES)
    localrule: True
    container:
        image("evaluation")
    params:
        spec=tracked(alpacaeval_judge_spec),
    shell:
        "HF_HUB_OFFLINE=0 python -m lpc.steps.alpacaeval_judge --spec {params.spec:q}"
        " --outputs {input.outputs:q} --reference {input.reference:q}"
        " --output {output.result:q} --annotations {output.annotations:q} > {log:q} 2>&1" + code("alpacaeval_judge")
