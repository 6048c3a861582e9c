# Stage evaluate: preference accuracy and benchmarks of each run, benchmarks of each base.
# In : R/runs/<run>/model, R/bases/<base>/base.json, R/data/<dataset>/pairs.parquet; `evaluation` of the configuration
# Out: R/runs/<run>/preference/<dataset>.{parquet,json}, R/runs/<run>/benchmarks/<task>.{json,samples.jsonl},
#      R/bases/<base>/benchmarks/<task>.{json,samples.jsonl}


def preference_reference(wildcards):
    """Test pairs are never flipped, so the reference of the training variant holds those of its dataset, too."""
    if recipe(wildcards)["objective"]["name"] == "simpo":
        return []
    own = wildcards.variant.split(".")[0] == wildcards.dataset
    variant = wildcards.variant if own else wildcards.dataset
    return [f"{R}/reference/{wildcards.base}/{variant}/reference.parquet"]


def definition(name):
    """The YAML file of one of our own tasks, or lm-eval's name of one of its."""
    task = TASKS[name]["task"] or name
    if not task.endswith(".yaml"):
        return task
    return task if Path(task).is_file() else here(ROOT / task)


def task(wildcards):
    entry = {key: value for key, value in TASKS[wildcards.task].items() if key != "questions"}
    return {**entry, "name": wildcards.task, "task": definition(wildcards.task)}


def task_spec(wildcards):
    return spec(task(wildcards), batch_size=SETTINGS["evaluation"]["benchmarks"]["batch_size"])


def task_questions(wildcards):
    return [f"{R}/tasks/{wildcards.task}/questions.jsonl"] if TASKS[wildcards.task]["questions"] else []


def task_data(wildcards):
    """The task's local files, or the record that its data set was brought from the hub into the cache."""
    entry = TASKS[wildcards.task]
    if entry["questions"]:
        return []
    return list(entry["data"].values()) if entry["data"] else [f"{R}/tasks/{wildcards.task}/download.json"]


def task_code(wildcards):
    """The task's own definition, and the modules of its functions."""
    file = definition(wildcards.task)
    if not file.endswith(".yaml"):
        return []
    modules = re.findall(r"!function\s+(lpc[\w.]*)\.\w+", Path(file).read_text(encoding="utf-8"))
    return [file, *{here(source) for module in modules for source in sources(module)}]


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
            objective=recipe(wildcards)["objective"],
            tokens=SETTINGS["tokens"],
            batch_size=SETTINGS["evaluation"]["preference"]["batch_size"],
            precision=SETTINGS["training"]["precision"],
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
