# Latent Preference Coding: preference data -> base and reference -> training -> evaluation -> report.
# `snakemake all --cores 2 --configfile config/demo.yaml`; without --configfile it is the paper's grid.
from snakemake.utils import min_version

min_version("9.27")


# A configuration is complete by itself, so one that is named on the command line replaces this one.
if not workflow.overwrite_configfiles:

    configfile: f"{workflow.basedir}/config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/analysis.smk"
include: "workflow/rules/report.smk"


onstart:
    announce(workflow.dag)


rule all:
    default_target: True
    input:
        RESULTS.report,
        table_files(),
    localrule: True
