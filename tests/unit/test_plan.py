"""What a run would do, from Snakemake's summary and the times of earlier jobs."""

from lpc import plan
from lpc.jobs import Job
from lpc.layout import Layout

SUMMARY = (
    "Building DAG of jobs...\n"
    "output_file\tdate\trule\tlog-file(s)\tstatus\tplan\n"
    "r/a/model\tToday\ttrain\t-\tparams changed\tupdate pending\n"
    "r/a/train.json\tToday\ttrain\t-\tparams changed\tupdate pending\n"
    "r/b/train.json\t-\ttrain\t-\tmissing\tupdate pending\n"
    "r/c/train.json\tToday\ttrain\t-\tok\tno update\n"
    "r/a/evaluation\tToday\tevaluate\t-\tok\tupdate pending\n"
    "r/t.csv\tToday\ttables\t-\trule implementation changed\tupdate pending\n"
    "r/report.html\t-\treport\t-\tmissing\tupdate pending\n"
)


def test_jobs_by_rule_have_reasons_and_the_median_time_of_earlier_ones(tmp_path):
    layout = Layout(tmp_path)
    for name, seconds in (("a", 100), ("b", 3600), ("c", 7200)):
        file = layout.timing("train", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"s\th:m:s\n1.0\t0:00:01\n{seconds}\t-\n")  # the last line is that of the last attempt
    layout.timing("evaluate").parent.mkdir()
    layout.timing("evaluate", "a").write_text("s\th:m:s\n20\t-\n")
    jobs = [Job("train", (name,), (tmp_path / f"{name}/train.json",)) for name in "abc"]
    jobs += [Job("evaluate", ("a",), (tmp_path / "a/evaluation",)), Job("report", (), (tmp_path / "report.html",))]
    outputs = plan.pending(SUMMARY.replace("r/", f"{tmp_path}/"))
    assert outputs[f"{tmp_path}/t.csv"] == "code changed"
    train, evaluate, report, total = plan.jobs_by_rule(jobs, outputs, layout)
    assert train.split(maxsplit=4) == ["train", "2", "2.0", "h", "params changed (1), missing (1)"]
    assert evaluate.split(maxsplit=4) == ["evaluate", "1", "20", "s", "its inputs change (1)"]
    assert report.split(maxsplit=3) == ["report", "1", "?", "missing (1)"]
    assert total == "4 jobs, 2.0 h of work by earlier jobs of the same rules; no job of report has run yet"


def test_a_run_with_nothing_to_do(tmp_path):
    assert plan.jobs_by_rule([Job("report", (), (tmp_path / "report.html",))], {}, Layout(tmp_path)) == [
        "0 jobs, 0 s of work by earlier jobs of the same rules"
    ]
