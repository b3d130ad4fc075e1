"""Evidence: experiments as YAML files over the package's own command and callbacks, with their tables and plots.

python -m examples.benchmarks.evidence run least_squares --data FOLDER --runs runs
python -m examples.benchmarks.evidence report least_squares --runs runs --into docs/evidence
python -m examples.benchmarks.evidence run all --small --data FOLDER --runs runs/small      # in less than fifteen minutes
"""
