"""An entry of `evaluation.benchmarks.tasks` as the configuration gives it, with its defaults."""


def entry(**keys):
    defaults = {"num_fewshot": None, "limit": None, "chat_template": False, "data": None}
    return {"name": "mine"} | defaults | keys
