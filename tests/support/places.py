"""Folders that tests read: the repository, its tests, and the published data, which not every machine has."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
PUBLISHED = ROOT.parent / "shared" / "data"
LONGEST = """
training/test_distributed training/test_group study/units/test_driver study/consistency/test_cells study/test_study
report/test_page study/test_dryrun training/test_options training/test_resuming training/test_exactness fuzz/test_texts
fuzz/test_files oracles/test_reasoner oracles/test_smollm2 report/test_size report/test_following study/test_starts
study/test_kills study/test_failing cli/test_main house/test_limits training/test_imports interop/test_lm_eval
judges/test_attacks benchmarks/grading/test_mathematics engines/test_openai benchmarks/sandbox/test_sandbox
data/test_readers data/test_training_sets benchmarks/test_evaluate house/test_examples
""".split()  # files of tests that take ten seconds or more, about in that order
