# Stage evaluate: preference accuracy and benchmarks of each run, benchmarks of each base.
# In : R/runs/<run>/model, R/bases/<base>/base.json, R/data/<dataset>/pairs.parquet; `evaluation` of the configuration
# Out: R/runs/<run>/preference/<dataset>.{parquet,json}, R/runs/<run>/benchmarks/<task>.{json,samples.jsonl},
#      R/bases/<base>/benchmarks/<task>.{json,samples.jsonl}, R/runs/<run>/alpacaeval/{outputs,judged,annotations}.json


rule download_task:
    input:
        code=code("download_task"),
    output:
        f"{R}/tasks/{{task}}/download.json",
    log:
        f"{R}/logs/download_task/{{task}}.log",
    benchmark:
        f"{R}/timing/download_task/{{task}}.tsv"
    localrule: True
    container:
        image("evaluation")
    params:
        spec=lambda wildcards: spec(task(wildcards)),
    shell:
        "HF_HUB_OFFLINE=0 HF_DATASETS_OFFLINE=0 python -m lpc.steps.download_task --spec {params.spec:q}"
        " --output {output:q} > {log:q} 2>&1"


rule questions:
    input:
        code=code("questions"),
    output:
        f"{R}/tasks/{{task}}/questions.jsonl",
    log:
        f"{R}/logs/questions/{{task}}.log",
    benchmark:
        f"{R}/timing/questions/{{task}}.tsv"
    localrule: True
    container:
        image("evaluation")
    params:
        spec=lambda wildcards: spec(TASKS[wildcards.task]["questions"]),
    shell:
        "python -m lpc.steps.questions --spec {params.spec:q} --output {output:q} > {log:q} 2>&1"


rule preference:
    input:
        model=f"{RUN}/model",
        base=f"{R}/bases/{{base}}/base.json",
        pairs=f"{R}/data/{{dataset}}/pairs.parquet",
        reference=preference_reference,
        code=code("preference"),
    output:
        rewards=f"{RUN}/preference/{{dataset}}.parquet",
        summary=f"{RUN}/preference/{{dataset}}.json",
    log:
        f"{R}/logs/preference/{{base}}~{{variant}}~{{recipe}}~{{seed}}~{{dataset}}.log",
    benchmark:
        f"{R}/timing/preference/{{base}}~{{variant}}~{{recipe}}~{{seed}}~{{dataset}}.tsv"
    container:
        image("training")
    threads: resource("preference", "threads")
    resources:
        mem_mb=memory("preference"),
        runtime=runtime("preference"),
        gpu=resource("preference", "gpus"),
    params:
        spec=lambda wildcards: spec(
            scoring(), objective=recipe(wildcards)["objective"], batch_size=EVALUATION["preference"]["batch_size"]
        ),
    shell:
        "reference={input.reference:q};"
        " python -m lpc.steps.preference --spec {params.spec:q} --model {input.model:q} --base {input.base:q}"
        ' --pairs {input.pairs:q} ${{reference:+--reference "$reference"}}'
        " --output {output.rewards:q} --summary {output.summary:q} > {log:q} 2>&1"


rule benchmark:
    input:
        model=f"{RUN}/model",
        base=f"{R}/bases/{{base}}/base.json",
        questions=task_questions,
        data=task_data,
        code=code("benchmark"),
        task_code=task_code,
    output:
        result=f"{RUN}/benchmarks/{{task}}.json",
        samples=f"{RUN}/benchmarks/{{task}}.samples.jsonl",
    log:
        f"{R}/logs/benchmark/{{base}}~{{variant}}~{{recipe}}~{{seed}}~{{task}}.log",
    benchmark:
        f"{R}/timing/benchmark/{{base}}~{{variant}}~{{recipe}}~{{seed}}~{{task}}.tsv"
    container:
        image("evaluation")
    threads: resource("benchmark", "threads")
    resources:
        mem_mb=memory("benchmark"),
        runtime=runtime("benchmark"),
        gpu=resource("benchmark", "gpus"),
    params:
        spec=task_spec,
    shell:
        "questions={input.questions:q};"
        " python -m lpc.steps.benchmark --spec {params.spec:q} --model {input.model:q} --base {input.base:q}"
        ' ${{questions:+--questions "$questions"}}'
        " --output {output.result:q} --samples {output.samples:q} > {log:q} 2>&1"


rule benchmark_base:
    input:
        base=f"{R}/bases/{{base}}/base.json",
        questions=task_questions,
        data=task_data,
        code=code("benchmark"),
        task_code=task_code,
    output:
        result=f"{R}/bases/{{base}}/benchmarks/{{task}}.json",
        samples=f"{R}/bases/{{base}}/benchmarks/{{task}}.samples.jsonl",
    log:
        f"{R}/logs/benchmark_base/{{base}}~{{task}}.log",
    benchmark:
        f"{R}/timing/benchmark_base/{{base}}~{{task}}.tsv"
    container:
        image("evaluation")
    threads: resource("benchmark", "threads")
    resources:
        mem_mb=memory("benchmark"),
        runtime=runtime("benchmark"),
        gpu=resource("benchmark", "gpus"),
    params:
        spec=task_spec,
    shell:
        "questions={input.questions:q};"
        " python -m lpc.steps.benchmark --spec {params.spec:q} --base {input.base:q}"
        ' ${{questions:+--questions "$questions"}}'
        " --output {output.result:q} --samples {output.samples:q} > {log:q} 2>&1"


rule alpacaeval_download:
    input:
        files=alpacaeval_files,
        code=code("alpacaeval_download"),
    output:
        instructions=f"{R}/alpacaeval/instructions.json",
        reference=f"{R}/alpacaeval/reference.json",
    log:
        f"{R}/logs/alpacaeval_download/alpacaeval.log",
    benchmark:
        f"{R}/timing/alpacaeval_download/alpacaeval.tsv"
    localrule: True
    container:
        image("evaluation")
    params:
        spec=lambda wildcards: spec(pick(EVALUATION["alpacaeval"], "instructions", "reference")),
    shell:
        "HF_HUB_OFFLINE=0 python -m lpc.steps.alpacaeval_download --spec {params.spec:q}"
        " --instructions {output.instructions:q} --reference {output.reference:q} > {log:q} 2>&1"


rule alpacaeval_generate:
    input:
        model=f"{RUN}/model",
        base=f"{R}/bases/{{base}}/base.json",
        instructions=f"{R}/alpacaeval/instructions.json",
        code=code("alpacaeval_generate"),
    output:
        f"{RUN}/alpacaeval/outputs.json",
    log:
        f"{R}/logs/alpacaeval_generate/{{base}}~{{variant}}~{{recipe}}~{{seed}}.log",
    benchmark:
        f"{R}/timing/alpacaeval_generate/{{base}}~{{variant}}~{{recipe}}~{{seed}}.tsv"
    container:
        image("evaluation")
    threads: resource("alpacaeval_generate", "threads")
    resources:
        mem_mb=memory("alpacaeval_generate"),
        runtime=runtime("alpacaeval_generate"),
        gpu=resource("alpacaeval_generate", "gpus"),
    params:
        spec=lambda wildcards: spec(
            pick(EVALUATION["alpacaeval"], "batch_size", "max_new_tokens"), name="/".join(wildcards)
        ),
    shell:
        "python -m lpc.steps.alpacaeval_generate --spec {params.spec:q} --model {input.model:q} --base {input.base:q}"
        " --instructions {input.instructions:q} --output {output:q} > {log:q} 2>&1"


rule alpacaeval_judge:
    input:
        outputs=f"{RUN}/alpacaeval/outputs.json",
        reference=f"{R}/alpacaeval/reference.json",
        code=code("alpacaeval_judge"),
    output:
        result=f"{RUN}/alpacaeval/judged.json",
        annotations=f"{RUN}/alpacaeval/annotations.json",
    log:
        f"{R}/logs/alpacaeval_judge/{{base}}~{{variant}}~{{recipe}}~{{seed}}.log",
    benchmark:
        f"{R}/timing/alpacaeval_judge/{{base}}~{{variant}}~{{recipe}}~{{seed}}.tsv"
    localrule: True
    container:
        image("evaluation")
    params:
        spec=lambda wildcards: spec(EVALUATION["alpacaeval"]["judge"] or {}),
    shell:
        "HF_HUB_OFFLINE=0 python -m lpc.steps.alpacaeval_judge --spec {params.spec:q}"
        " --outputs {input.outputs:q} --reference {input.reference:q}"
        " --output {output.result:q} --annotations {output.annotations:q} > {log:q} 2>&1"
