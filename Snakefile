# Snakemake finds this file first. The workflow is workflow/Snakefile, which other workflows load as a module.
include: "workflow/Snakefile"


# The default target of an included file does not count.
workflow.default_target = "all"
