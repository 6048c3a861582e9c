# Stage evaluate: preference accuracy and benchmarks of each run, benchmarks of each base.
# Paths are below results/<project>/, as src/lpc/layout.py has them.
# In : runs/<run>/model, bases/<base>/base.json, data/<dataset>/pairs.parquet; `evaluation` of the configuration
# Out: runs/<run>/preference/<dataset>.{parquet,json}, runs/<run>/person.json,
#      runs/<run>/benchmarks/<task>.{json,samples.jsonl},
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


rule preference:
    input:
        model=RUN.model,
        base=BASE.record,
        pairs=DATASET.pairs,
        reference=preference_reference,
        modules=modules("preference", "objective", "latent"),
    output:
        rewards=RUN.rewards("{dataset}"),
        summary=RUN.preference("{dataset}"),
    log:
        RESULTS.log("preference", *RUN_NAMES, "{dataset}"),
    benchmark:
        RESULTS.timing("preference", *RUN_NAMES, "{dataset}")
    container:
        image("training")
    threads: resource("preference", "threads")
    resources:
        mem_mb=memory("preference"),
        runtime=runtime("preference"),
        gpu=resource("preference", "gpus"),
    params:
        spec=tracked(preference_spec),
        execution=execution(preference_spec),
    shell:
        "python -m lpc.steps.preference"
        " --spec {params.spec:q} --execution {params.execution:q}"
        " --model {input.model:q} --base {input.base:q}"
        " --pairs {input.pairs:q} --reference {input.reference:q}"
        " --output {output.rewards:q} --summary {output.summary:q} > {log:q} 2>&1" + code("preference")


rule personalise:
    input:
        model=RUN.model,
        base=BASE.record,
        pairs=lambda wildcards: RESULTS.data(dataset_of(wildcards.variant)).pairs,
        # Test pairs are never flipped, so the reference of the variant is theirs.
        reference=training_reference,
        modules=modules("personalise", "objective", "latent"),
    output:
        RUN.person,
    log:
        RESULTS.log("personalise", *RUN_NAMES),
    benchmark:
        RESULTS.timing("personalise", *RUN_NAMES)
    container:
        image("training")
    threads: resource("personalise", "threads")
    resources:
        mem_mb=memory("personalise"),
        runtime=runtime("personalise"),
        gpu=resource("personalise", "gpus"),
    params:
        spec=tracked(personalise_spec),
        execution=execution(personalise_spec),
    shell:
        "reference={input.reference:q};"
        " python -m lpc.steps.personalise"
        " --spec {params.spec:q} --execution {params.execution:q}"
        " --model {input.model:q} --base {input.base:q}"
        ' --pairs {input.pairs:q} ${{reference:+--reference "$reference"}}'
        " --output {output:q} > {log:q} 2>&1" + code("personalise")


# A job does all tasks of a model, which it loads once. Snakemake deletes all of its outputs before it, so finished tasks
# also lie in a folder that is no output: the step takes from there what has not changed, and computes the others.
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
            finished=lambda wildcards, output: str(RESULTS.benchmarked(*wildcards)),
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
            finished=lambda wildcards, output: str(RESULTS.benchmarked(*wildcards)),
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
